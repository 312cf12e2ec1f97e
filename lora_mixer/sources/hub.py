"""
Adapters in repositories of the Hugging Face Hub, through huggingface_hub and its cache.

The environment is read at each call: huggingface_hub itself looks at HF_ENDPOINT and HF_HUB_OFFLINE only once, when it
is imported, and most likely diffusers did that long before.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from huggingface_hub import _CACHED_NO_EXIST, HfApi, constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
)
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils._validators import validate_repo_id

from lora_mixer.errors import CorruptFileError, SourceError, SourceNotFoundError
from lora_mixer.sources._hub_errors import OFFLINE, translate
from lora_mixer.sources._local import read_config
from lora_mixer.sources._names import (
    ADAPTER_SUFFIXES,
    CONFIG_NAME,
    adapters_left,
    candidates,
    check_allowed,
    choose_file,
    component_files,
    component_of,
    safe_relative,
)
from lora_mixer.sources._types import AdapterSource, Request

if TYPE_CHECKING:
    from collections.abc import Mapping

_COMMIT = re.compile(r"[0-9a-f]{40}")
_HUB_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")
_TRUE = {"1", "ON", "YES", "TRUE"}


def from_repo(repo_id: str, request: Request) -> AdapterSource:
    """
    Choose a repository's adapter and download it, with its ``adapter_config.json`` where there is one.

    Args:
        repo_id: ``"user/name"``.
        request: What the caller said besides.

    Raises:
        SourceError: It is not there, not allowed, not reachable, or several files could be meant.
        CorruptFileError: The ``adapter_config.json`` is broken.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise SourceNotFoundError(
            f"cannot be a repository's name: {str(error)[:500]}", file=repo_id[:200]
        ) from None
    offline = request.local_files_only or _offline()
    request = replace(request, local_files_only=bool(offline))
    if request.proxies and not offline:
        raise SourceError(
            f"proxies={dict(request.proxies)!r} cannot be passed on, as huggingface_hub has no proxies per "
            f"call since 1.0. Set the environment variables HTTPS_PROXY and HTTP_PROXY instead.",
            file=repo_id,
            argument="proxies",
        )
    subfolder = safe_relative(request.subfolder, "subfolder") if request.subfolder else ""
    left: tuple[str, ...] = ()
    if request.weight_name:
        names = [request.weight_name]
    else:
        names, left = _chosen(repo_id, subfolder, request)
    names = [safe_relative(name, "weight_name") for name in names]
    parts = [_one(repo_id, f"{subfolder}/{name}" if subfolder else name, request) for name in names]
    if len(parts) == 1:
        return replace(parts[0], left_out=left)
    label = f"{repo_id}: {subfolder}" if subfolder else repo_id
    return AdapterSource(
        label,
        parts[0].weights,
        repo_id=repo_id,
        revision=parts[0].revision,
        parts=tuple(parts),
        left_out=left,
    )


def _one(repo_id: str, name: str, request: Request) -> AdapterSource:
    label = f"{repo_id}: {name}"
    check_allowed(name, label, request)
    try:
        weights = _download(repo_id, name, request)
    except Exception as error:
        raise translate(error, repo_id, request, name) from error
    commit = _commit_of(weights, name)
    # The same commit for both, even if somebody pushes in between.
    config = _config_beside(repo_id, name, request if commit is None else replace(request, revision=commit))
    folder = name.rpartition("/")[0].rpartition("/")[2]
    named = component_of(folder) if config is not None else None
    return AdapterSource(label, weights, config, repo_id, commit, named)


def from_url(url: str, request: Request) -> AdapterSource:
    """
    Read ``https://huggingface.co/user/repo[/blob|resolve|tree/REVISION[/PATH]]`` as what it names.

    Raises:
        SourceError: It is another site's, no repository's, or says otherwise than ``revision`` or ``weight_name``.
    """
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise SourceNotFoundError(f"is not an address ({error})", file=url[:500]) from None
    hosts = (*_HUB_HOSTS, urlsplit(_endpoint()).netloc)
    path = [unquote(part) for part in parts.path.split("/") if part]
    if parts.netloc not in hosts:
        raise SourceNotFoundError(
            f"is not an address at the Hub ({hosts[0]}), and others are not downloaded. "
            f"Download the file and pass its path.",
            file=url[:500],
        )
    repo_id = "/".join(path[:2])
    # A whole repository, a folder of one, or a file of one.
    if len(path) == 2:
        return from_repo(repo_id, request)
    kind, revision, inside = path[2] if path[2:] else "", "".join(path[3:4]), "/".join(path[4:])
    if kind not in ("blob", "resolve", "tree") or not revision or (kind != "tree" and not inside):
        raise SourceNotFoundError(
            f"names no repository and no file in one: expected https://{parts.netloc}/USER/REPO/blob/main/FILE.",
            file=url[:500],
        )
    argument = "subfolder" if kind == "tree" else "weight_name"
    for name, given, here in (
        ("revision", request.revision, revision),
        (argument, getattr(request, argument), inside),
    ):
        if given not in (None, here):
            raise SourceError(
                f"says {name}={here!r}, the call says {given!r}. Leave one of them out.",
                file=url[:500],
                argument=name,
            )
    if kind == "tree":
        return from_repo(repo_id, replace(request, revision=revision, subfolder=inside or None))
    return from_repo(repo_id, replace(request, revision=revision, weight_name=inside))


def _chosen(repo_id: str, subfolder: str, request: Request) -> tuple[list[str], tuple[str, ...]]:
    """Return the files of the adapter, and folders beside them with adapters that are not read."""
    prefix = f"{subfolder}/" if subfolder else ""
    names = _cached_names(repo_id, request) if request.local_files_only else _listed_names(repo_id, request)
    inside = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
    where = f"{repo_id} (folder {subfolder!r})" if subfolder else repo_id
    here = [name for name in inside if "/" not in name]
    parts = [] if candidates(here, ADAPTER_SUFFIXES) else component_files(inside, request, where)
    chosen = parts or [choose_file(inside, where, request)]
    return chosen, adapters_left(inside, chosen)


def _listed_names(repo_id: str, request: Request) -> list[str]:
    try:
        info = HfApi(endpoint=_endpoint()).model_info(
            repo_id, revision=request.revision, token=request.token, timeout=constants.HF_HUB_ETAG_TIMEOUT
        )
    except HfHubHTTPError as error:
        raise translate(error, repo_id, request) from error
    except Exception as error:  # noqa: BLE001  (requests, httpx or httpx2, as huggingface_hub's version has it)
        # No answer at all: what is cached still works, as it does for a single file in huggingface_hub.
        try:
            return _cached_names(repo_id, request)
        except SourceNotFoundError:
            raise translate(error, repo_id, request) from error
    return [sibling.rfilename for sibling in info.siblings or ()]


def _cached_names(repo_id: str, request: Request) -> list[str]:
    """List what the cache has of a revision; snapshot_download would insist on all of the repository's files."""
    storage = Path(request.cache_dir or constants.HF_HUB_CACHE) / repo_folder_name(
        repo_id=repo_id, repo_type="model"
    )
    revision = safe_relative(request.revision or constants.DEFAULT_REVISION, "revision")
    reference = storage / "refs" / revision
    commit = reference.read_text().strip() if reference.is_file() else revision
    snapshot = storage / "snapshots" / commit
    if not snapshot.is_dir():
        raise SourceNotFoundError(
            f"is not in the cache {storage.parent} at revision {revision!r}, and nothing may be downloaded.",
            remedy=OFFLINE,
            file=repo_id,
        )
    return [file.relative_to(snapshot).as_posix() for file in snapshot.rglob("*") if file.is_file()]


def _download(repo_id: str, name: str, request: Request) -> Path:
    return Path(
        hf_hub_download(
            repo_id,
            name,
            revision=request.revision,
            token=request.token,
            cache_dir=request.cache_dir,
            local_files_only=bool(request.local_files_only),
            force_download=request.force_download,
            endpoint=_endpoint(),
        )
    )


def _config_beside(repo_id: str, name: str, request: Request) -> dict[str, Any] | None:
    config_name = f"{name.rpartition('/')[0]}/{CONFIG_NAME}".lstrip("/")
    try:
        return read_config(_download(repo_id, config_name, request))
    except LocalEntryNotFoundError as error:
        # Online, "not in the cache" means that nobody answered. PEFT weights read without their config would have
        # the wrong scale, so this is an error unless the cache remembers that the commit has no such file.
        known = try_to_load_from_cache(repo_id, config_name, request.cache_dir, request.revision)
        if not request.local_files_only and known is not _CACHED_NO_EXIST:
            raise translate(error, repo_id, request, config_name) from error
        return None
    except EntryNotFoundError:
        return None
    except CorruptFileError:
        raise
    except Exception as error:
        raise translate(error, repo_id, request, config_name) from error


def _commit_of(file: Path, name: str) -> str | None:
    """Return the commit that the cache files a download under: ``.../snapshots/<commit>/<name>``."""
    commit = file.parents[name.count("/")].name
    return commit if _COMMIT.fullmatch(commit) else None


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or constants.ENDPOINT


def _offline() -> bool:
    return bool(constants.HF_HUB_OFFLINE) or os.environ.get("HF_HUB_OFFLINE", "").upper() in _TRUE


def repository_file(repo_id: str, name: str, said: Mapping[str, Any]) -> Path | None:
    """
    Return a repository's file, downloaded or from the cache; None where there is no such file or repository, or nobody answers.

    Args:
        repo_id: ``"user/name"``.
        name: The file.
        said: ``revision``, ``token``, ``cache_dir`` and ``local_files_only``, as far as they are said.
    """
    request = Request(
        revision=said.get("revision"),
        token=said.get("token"),
        cache_dir=said.get("cache_dir"),
        local_files_only=bool(said.get("local_files_only") or _offline()),
    )
    try:
        validate_repo_id(repo_id)
        return _download(repo_id, name, request)
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 -- whatever the reason, it is not here; who needs it says what was looked for
        return None
