"""What every kind of source is turned into, and what a caller may say about one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch


@dataclass(frozen=True)
class AdapterSource:
    """
    One resolved place to read an adapter from.

    Attributes:
        label: What messages call it: ``"user/repo: x.safetensors"``, or the path as it was given.
        weights: A file to read, the bytes of one, or a state dict (the caller's own: neither copied nor changed).
        config: The parsed ``adapter_config.json`` beside the weights, where there is one.
        repo_id: The Hub repository, where it is one.
        revision: The commit that the files are from, where it is known.
        component: The pipeline component that its folder is named after, or None.
        parts: The single components' sources, where a folder holds one below it for each; ``weights`` is the first's.
        is_fresh: Whether it was made just now, so that tensors of zeros are what training begins with.
        left_out: Folders beside it with adapters that are not read, since they are named after no component.

    Example:
        >>> from pathlib import Path
        >>> AdapterSource(label="ink.safetensors", weights=Path("ink.safetensors")).config is None
        True
    """

    label: str
    weights: Path | bytes | Mapping[str, torch.Tensor]
    config: Mapping[str, Any] | None = None
    repo_id: str | None = None
    revision: str | None = None
    component: str | None = None
    parts: tuple[AdapterSource, ...] = ()
    is_fresh: bool = False
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class Request:
    """
    What a caller said about a file or repository besides its name; meanings as in diffusers.

    Attributes:
        weight_name: The file, where there are several.
        subfolder: The folder in a repository or folder.
        revision: A branch, tag or commit of a repository.
        token: For private repositories; True takes the one that was logged in with.
        cache_dir: Where downloads are kept.
        local_files_only: Whether nothing may be downloaded.
        force_download: Whether files are downloaded anew.
        proxies: By protocol or host, as ``requests`` takes them.
        use_safetensors: Whether nothing but safetensors will do; False prefers pickles.
        allow_pickle: Whether ``.pt`` and ``.bin`` files may be opened.

    Example:
        >>> Request(weight_name="ink.safetensors").allow_pickle
        False
    """

    weight_name: str | None = None
    subfolder: str | None = None
    revision: str | None = None
    token: str | bool | None = None
    cache_dir: str | Path | None = None
    local_files_only: bool | None = None
    force_download: bool = False
    proxies: Mapping[str, str] | None = None
    use_safetensors: bool | None = None
    allow_pickle: bool = False
