"""The one door: find out what kind of source this is, and hand it to the room that knows it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from lora_mixer.demo import local_source
from lora_mixer.errors import SourceError, SourceNotFoundError
from lora_mixer.parsing.files import at_home
from lora_mixer.sources._local import from_path
from lora_mixer.sources._names import ADAPTER_SUFFIXES
from lora_mixer.sources._types import AdapterSource, Request

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

# One slash, and letters that the Hub allows in names; anything else can only be a path.
_REPO_ID = re.compile(r"[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*", re.ASCII)


def resolve_source(
    source: str | os.PathLike[str] | bytes | BinaryIO | Mapping[str, torch.Tensor],
    *,
    weight_name: str | None = None,
    subfolder: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool | None = None,
    force_download: bool = False,
    proxies: Mapping[str, str] | None = None,
    use_safetensors: bool | None = None,
    allow_pickle: bool = False,
) -> AdapterSource:
    """
    Turn whatever names an adapter into one place to read it from.

    Args:
        source: A file, a folder, a Hub repository ("user/repo") or a file's Hub URL, ``demo:NAME``, bytes, a file opened
            for bytes, or a state dict. What exists on disk wins over a repository of the same name.
        weight_name: Which file of the folder or repository; needed where there are several.
        subfolder: Which folder inside it.
        revision: Branch, tag or commit of the repository.
        token: Access token of the Hub; True for the one that ``hf auth login`` stored.
        cache_dir: Where downloads are kept, instead of the Hub's usual cache.
        local_files_only: Use what is in that cache and ask nobody. HF_HUB_OFFLINE=1 does the same.
        force_download: Download again what is cached.
        proxies: Not possible per call with today's huggingface_hub: refused where something would be downloaded.
        use_safetensors: True refuses other files; False wants a pickle.
        allow_pickle: Whether .pt, .pth, .ckpt and .bin files may be opened. They can run code: only if you trust them.

    Returns:
        The resolved source; a repository's file has been downloaded by then.

    Raises:
        SourceNotFoundError: There is no such file, folder, repository, revision or file in it.
        AmbiguousSourceError: Several files could be meant; they are listed.
        SourceError: It is there and may not be read: gated, a pickle, outside of the folder, the Hub not reachable.
        CorruptFileError: The ``adapter_config.json`` beside it is broken.

    Example:
        >>> from safetensors.torch import save
        >>> import torch
        >>> resolve_source(save({"a": torch.zeros(1)}), weight_name="in memory").label
        'in memory'
    """
    request = Request(
        weight_name=weight_name,
        subfolder=subfolder,
        revision=revision,
        token=token,
        cache_dir=None if cache_dir is None else Path(cache_dir),
        local_files_only=local_files_only,
        force_download=force_download,
        proxies=proxies,
        use_safetensors=use_safetensors,
        allow_pickle=allow_pickle,
    )
    if isinstance(source, str | os.PathLike):
        return _from_name(source, request)
    return _from_memory(source, request)


def _from_name(source: str | os.PathLike[str], request: Request) -> AdapterSource:
    label: Any = os.fspath(source)
    if not isinstance(label, str) or not label or "\0" in label:
        raise SourceError(f"A path or repository name must be text that is not empty (got {label!r}).")
    for named in NAMED if isinstance(source, str) else NAMED[:1]:
        resolved = named(label, request)
        if resolved is not None:
            return resolved
    raise SourceNotFoundError(
        f"is neither a file or folder (looked for it in {Path.cwd()}) nor the name of a Hub repository "
        f"(these look like 'user/name'). Check the spelling and the current folder.",
        file=label[:500],
    )


def _on_disk(label: str, request: Request) -> AdapterSource | None:
    path = _existing(label) or _existing(local_source(label))
    return None if path is None else from_path(path, request)


# huggingface_hub takes a while to import, and most adapters are files
def _at_an_address(label: str, request: Request) -> AdapterSource | None:
    if not label.startswith(("https://", "http://")):
        return None
    from lora_mixer.sources import hub

    return hub.from_url(label, request)


def _in_a_repository(label: str, request: Request) -> AdapterSource | None:
    if not _REPO_ID.fullmatch(label) or label.lower().endswith(ADAPTER_SUFFIXES):
        return None
    from lora_mixer.sources import hub

    return hub.from_repo(label, request)


NAMED: tuple[Callable[[str, Request], AdapterSource | None], ...] = (
    _on_disk,
    _at_an_address,
    _in_a_repository,
)
"""Who reads what a text names, None where it names none of theirs: the first has it. Path objects are for the first alone."""


def _existing(text: str) -> Path | None:
    """Return the path of what is there; None where nothing is, or nothing can be called so."""
    try:
        path = at_home(text)
        return path if path.exists() else None
    except (OSError, RuntimeError, ValueError):  # a name too long, a user that is not known
        return None


def _from_memory(source: object, request: Request) -> AdapterSource:
    from lora_mixer.sources import _memory

    if isinstance(source, bytes | bytearray | memoryview):
        return _memory.from_bytes(bytes(source), request)
    if isinstance(source, Mapping):
        return _memory.from_state_dict(source, request)
    if hasattr(source, "read") and hasattr(source, "seekable"):
        return _memory.from_open_file(cast("BinaryIO", source), request)
    raise SourceError(
        f"An adapter must be a path, a Hub repository name, bytes, a file opened with mode 'rb' or a state dict "
        f"(got {type(source).__name__})."
    )


def repository_file(repo_id: str, name: str, said: Mapping[str, Any]) -> Path | None:
    """
    Return a file of a Hub repository, downloaded or from the cache; None where it is not to be had, for whatever reason.

    Args:
        repo_id: ``"user/name"``.
        name: The file.
        said: ``revision``, ``token``, ``cache_dir`` and ``local_files_only``, as far as they are said.

    Returns:
        The file's path, or None.

    Example:
        >>> repository_file("no-such-user/no-such-repository", "README.md", {"local_files_only": True}) is None
        True
    """
    from lora_mixer.sources import hub

    return hub.repository_file(repo_id, name, said)
