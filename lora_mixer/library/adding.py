"""Files into a library: checked before they get their names, whole or not at all, over nothing that is there."""

from __future__ import annotations

import json
import os
import re
import secrets
import unicodedata
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from lora_mixer.errors import CorruptFileError, FormatError, SaveError, SourceError
from lora_mixer.inspection import read_adapter
from lora_mixer.sources import CONFIG_NAME, SAFETENSORS_SUFFIX, Request, read_config

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

SIZE_AT_MOST = 4 << 30
"""Bytes of a file that is added, unless said otherwise."""
_CHUNK = 1 << 20
_NAME_BYTES_AT_MOST = 120
_BAD = re.compile(r'[\x00-\x1f\x7f<>:"/\\|?*\u202a-\u202e\u2066-\u2069]')
_RESERVED = re.compile(r"(?:con|prn|aux|nul|com\d|lpt\d)(?:\..*)?", re.IGNORECASE)
_REPO_ID = re.compile(r"[A-Za-z0-9_][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95}", re.ASCII)
_HUB_OPTIONS = {"subfolder", "revision", "token", "cache_dir", "local_files_only", "force_download"}
_GENERIC = ("adapter_model", "pytorch_lora_weights")


def safe_name(name: str) -> str:
    r"""
    Return a file's name without its ending that is safe on every system: no folders, no marks that mean something.

    Args:
        name: What a browser or a stranger calls it.

    Returns:
        The name; ``adapter`` where nothing of it is left.

    Example:
        >>> safe_name("../../etc/pass:wd.safetensors"), safe_name("C:\\x\\ink v1.5.safetensors"), safe_name("..")
        ('pass_wd', 'ink v1.5', 'adapter')
    """
    last = name.replace("\\", "/").rstrip("/").rpartition("/")[2]
    text = unicodedata.normalize("NFC", last.encode("utf-8", "replace").decode())
    if text.lower().endswith(SAFETENSORS_SUFFIX):
        text = text[: -len(SAFETENSORS_SUFFIX)]
    text = _BAD.sub("_", text).strip(" .")
    while len(text.encode()) > _NAME_BYTES_AT_MOST:
        text = text[:-1]
    text = text.strip(" .")
    return f"_{text}" if _RESERVED.fullmatch(text) else text or "adapter"


def put(
    source: str | os.PathLike[str] | bytes | IO[bytes],
    folder: Path,
    name: str,
    *,
    limit: int = SIZE_AT_MOST,
    config: dict[str, Any] | None = None,
) -> Path:
    """
    Copy an adapter into a folder.

    Args:
        source: A file, its bytes, or a stream.
        folder: Where it goes.
        name: What to call it; made safe, and numbered where that is taken.
        limit: How many bytes it may have.
        config: A PEFT configuration, which goes with it into a folder of its own.

    Returns:
        The new file.

    Raises:
        SourceError: It is larger than allowed, or cannot be read.
        FormatError: It is not an adapter that can be used.
        SaveError: The disk refuses.
    """
    stem = safe_name(name)
    spare = folder / f".{secrets.token_hex(8)}.tmp"
    try:
        try:
            with spare.open("xb") as target:
                _copy(source, target, name, limit)
                target.flush()
                os.fsync(target.fileno())
            _check(spare, stem + SAFETENSORS_SUFFIX)
            if config is not None:
                return _as_folder(spare, folder, stem, config)
            return _named(lambda path: _link(spare, path), folder, stem, SAFETENSORS_SUFFIX)
        finally:
            with suppress(OSError):
                spare.unlink(missing_ok=True)
    except OSError as error:
        if isinstance(error, SourceError):
            raise
        raise SaveError(f"cannot be written to {folder} ({error.strerror or error})", file=stem) from error


def _copy(
    source: str | os.PathLike[str] | bytes | IO[bytes], target: IO[bytes], name: str, limit: int
) -> None:
    if isinstance(source, bytes):
        if len(source) > limit:
            raise _too_large(name, limit)
        target.write(source)
        return
    if isinstance(source, str | os.PathLike):
        try:
            with Path(source).open("rb") as stream:
                _copy(stream, target, name, limit)
        except FileNotFoundError as error:
            raise SourceError("there is no such file", file=name) from error
        return
    left = limit
    while chunk := source.read(_CHUNK):
        left -= len(chunk)
        if left < 0:
            raise _too_large(name, limit)
        target.write(chunk)


def _too_large(name: str, limit: int) -> SourceError:
    return SourceError(f"larger than the {limit} bytes that are allowed here", file=safe_name(name))


def _check(spare: Path, name: str) -> None:
    try:
        read_adapter(spare)
    except FormatError as error:
        error.file = name  # the one who sent it knows no spare file
        raise
    except (ValueError, OverflowError, RecursionError) as error:
        raise CorruptFileError(f"cannot be read ({type(error).__name__})", file=name) from error


def peft_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """
    Read the configuration that belongs to a PEFT adapter.

    Raises:
        SourceError: There is no such file.
        CorruptFileError: It is not a JSON object.
    """
    config = read_config(Path(path))
    if config is None:
        raise SourceError("there is no such file", file=str(Path(path).name))
    return config


def _named(place: Callable[[Path], None], folder: Path, stem: str, ending: str) -> Path:
    """Put something under the first name that is free."""
    for number in range(1, 10_000):
        path = folder / f"{stem}{'' if number == 1 else f'_{number}'}{ending}"
        try:
            place(path)
        except FileExistsError:
            continue
        return path
    raise SaveError(f"every name like it is taken in {folder}", file=stem)


def _link(spare: Path, path: Path) -> None:
    """Give a file its name, unless that is taken: a second link cannot replace anything."""
    try:
        os.link(spare, path)
    except FileExistsError:
        raise
    except OSError:  # no links on this disk: hold the name with an empty file first
        path.open("xb").close()
        spare.replace(path)


def _as_folder(spare: Path, folder: Path, stem: str, config: dict[str, Any]) -> Path:
    """Make a PEFT folder, complete before it gets its name."""
    made = folder / f".{secrets.token_hex(8)}.tmp"
    made.mkdir()
    try:
        (made / CONFIG_NAME).write_text(json.dumps(config, indent=2), encoding="utf-8")
        spare.replace(made / "adapter_model.safetensors")
        _check(made, stem)  # now with the configuration
        place = _named(lambda path: _renamed(made, path), folder, stem, "")
    finally:
        for left in (made / CONFIG_NAME, made / "adapter_model.safetensors"):
            with suppress(OSError):
                left.unlink(missing_ok=True)
        with suppress(OSError):
            made.rmdir()
    return place / "adapter_model.safetensors"


def _renamed(made: Path, path: Path) -> None:
    if path.exists():
        raise FileExistsError
    made.rename(path)


@dataclass(frozen=True)
class Downloaded:
    """What came from a repository."""

    weights: Path
    name: str
    config: dict[str, Any] | None


def from_hub(repo_id: str, weight_name: str | None, options: Mapping[str, Any]) -> Downloaded:
    """
    Download an adapter; unlike ``resolve_source`` this never takes a path of this machine.

    Args:
        repo_id: ``user/name``, or the address of a file at the Hub.
        weight_name: Which file of the repository.
        options: As in :func:`lora_mixer.read_adapter`.

    Raises:
        SourceError: It is no such name, or cannot be had.
    """
    from lora_mixer.sources.hub import from_repo, from_url

    unknown = set(options) - _HUB_OPTIONS
    if unknown:
        raise SourceError(
            f"add_from_hub takes {', '.join(sorted(_HUB_OPTIONS))}, got {min(unknown)!r}",
            argument=min(unknown),
        )
    request = Request(weight_name=weight_name, use_safetensors=True, **options)
    if repo_id.startswith(("https://", "http://")):
        source = from_url(repo_id, request)
    elif _REPO_ID.fullmatch(repo_id):
        source = from_repo(repo_id, request)
    else:
        raise SourceError(
            "expected the name of a repository such as user/name, or its address at the Hub",
            file=repo_id[:100],
        )
    weights = Path(str(source.weights))
    name = (source.repo_id or "").rpartition("/")[2] if weights.stem in _GENERIC else weights.stem
    return Downloaded(weights, name, dict(source.config) if source.config is not None else None)
