"""Adapters in files and folders on this machine."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_mixer.errors import CorruptFileError, SourceError, SourceNotFoundError
from lora_mixer.parsing.files import place_of, read_regular
from lora_mixer.parsing.json_text import NotJsonError, loose_json
from lora_mixer.sources._names import (
    ADAPTER_SUFFIXES,
    CONFIG_NAME,
    SAFETENSORS_SUFFIX,
    adapters_left,
    candidates,
    check_allowed,
    choose_file,
    component_files,
    component_of,
    is_pickle,
    listing,
    safe_relative,
)
from lora_mixer.sources._types import AdapterSource

if TYPE_CHECKING:
    import os

    from lora_mixer.sources._types import Request

# PEFT's own are below 2 KiB; a per-module rank_pattern for a large model stays far below this.
_CONFIG_BYTES_AT_MOST = 16 * 1024 * 1024
_COMMIT = re.compile(r"[0-9a-f]{40}")


def from_path(path: Path, request: Request) -> AdapterSource:
    """
    Resolve an existing file or folder.

    Args:
        path: The file or folder; what the caller typed, so that messages show the same.
        request: What the caller said besides.

    Raises:
        SourceError: There is no such file, there are several, it leads out of the folder or is not allowed.
        CorruptFileError: ``adapter_config.json`` is not a JSON object.
    """
    if path.is_dir():
        parts = _parts(path, request)
        folder = path / request.subfolder if request.subfolder else path
        if len(parts) > 1:
            found = AdapterSource(label=str(folder), weights=parts[0].weights, parts=parts)
        else:
            found = parts[0] if parts else _one(_in_folder(path, request), request)
        return found if request.weight_name is not None else replace(found, left_out=_left_out(folder, parts))
    return _one(_single_file(path, request), request)


def _one(weights: Path, request: Request) -> AdapterSource:
    if not _is_safetensors(weights):
        check_allowed(weights.name, str(weights), request)
    beside = weights.parent / CONFIG_NAME
    if (
        beside.is_symlink()
        and leads_out(weights.parent, beside)
        and leads_out(weights.resolve().parent, beside)
    ):
        raise SourceError(
            f"is a link that leads out of the adapter's folder, to {beside.resolve()}; put the file itself there",
            file=str(beside),
        )
    config = read_config(beside)
    named = component_of(weights.parent.name) if config is not None else None
    return AdapterSource(label=str(weights), weights=weights, config=config, component=named)


def _is_safetensors(weights: Path) -> bool:
    """Say whether a file named as a pickle holds safetensors, which nobody has to trust."""
    if not is_pickle(weights.name):
        return False
    try:
        size = weights.stat().st_size
        with weights.open("rb") as stream:
            first = stream.read(9)
    except OSError:
        return False
    return first[8:] == b"{" and 8 + int.from_bytes(first[:8], "little") <= size


def _parts(root: Path, request: Request) -> tuple[AdapterSource, ...]:
    """Find the adapters of single components below a folder that has none of its own."""
    folder = root / safe_relative(request.subfolder, "subfolder") if request.subfolder else root
    if request.weight_name is not None or not folder.is_dir() or leads_out(root, folder):
        return ()
    names = _file_names(folder)
    if candidates([name for name in names if "/" not in name], ADAPTER_SUFFIXES):
        return ()
    files = [folder / name for name in component_files(names, request, str(folder))]
    for file in files:
        _refuse_escape(root, file)
    return tuple(_one(file, request) for file in files)


def _left_out(folder: Path, parts: tuple[AdapterSource, ...]) -> tuple[str, ...]:
    """Name the folders below with adapters that are not read."""
    chosen = [f"{part.weights.parent.name}/x" for part in parts if isinstance(part.weights, Path)]
    return adapters_left(_file_names(folder), chosen)


def _single_file(path: Path, request: Request) -> Path:
    if not path.is_file():
        raise SourceNotFoundError(
            "is neither a file nor a folder. Pass the path of a file that can be read.", file=str(path)
        )
    if request.subfolder is not None or request.weight_name not in (None, path.name):
        raise SourceError(
            f"is a file, so weight_name={request.weight_name!r} and subfolder={request.subfolder!r} have "
            f"nothing to choose from. Leave them out, or pass the folder.",
            file=str(path),
        )
    return path


def _in_folder(root: Path, request: Request) -> Path:
    folder = root
    if request.subfolder:
        folder = root / safe_relative(request.subfolder, "subfolder")
        _refuse_escape(root, folder)
        if not folder.is_dir():
            raise SourceNotFoundError(
                f"has no folder {request.subfolder!r}; it holds {_shown(root)}.", file=str(root)
            )
    if request.weight_name is None:
        file = folder / choose_file(_file_names(folder), str(folder), request)
    else:
        file = folder / safe_relative(request.weight_name, "weight_name")
    _refuse_escape(root, file)
    if not file.is_file():
        raise SourceNotFoundError(
            f"has no file {request.weight_name!r}; it holds {_shown(folder)}.", file=str(folder)
        )
    return file


def leads_out(root: Path, path: Path) -> bool:
    """Say whether a link leads out of the folder: the folder may have come from elsewhere."""
    base, target = root.resolve(), path.resolve()
    # The Hub's own cache is made of such links: <repo>/snapshots/<commit>/x -> <repo>/blobs/<hash>.
    blobs = [
        snapshot.parent.parent / "blobs"
        for snapshot in (base, *base.parents)
        if snapshot.parent.name == "snapshots" and _COMMIT.fullmatch(snapshot.name)
    ]
    return not any(target.is_relative_to(folder) for folder in (base, *blobs))


def _refuse_escape(root: Path, path: Path) -> None:
    if leads_out(root, path):
        raise SourceError(
            f"leads out of the folder {root}, to {path.resolve()}. "
            "If that is what you want, pass the file's own path.",
            file=str(path),
        )


def _file_names(folder: Path) -> list[str]:
    """List a folder's files, and the files one level below it for the message when there is no adapter."""
    names = []
    for entry in folder.iterdir():
        if entry.is_file():
            names.append(entry.name)
        elif entry.is_dir() and not entry.name.startswith("."):
            names += [f"{entry.name}/{below.name}" for below in entry.iterdir() if below.is_file()]
    return names


def _shown(folder: Path) -> str:
    names = sorted(f"{entry.name}/" if entry.is_dir() else entry.name for entry in folder.iterdir())
    return listing(names) or "nothing"


def read_config(path: Path) -> dict[str, Any] | None:
    """
    Return a PEFT ``adapter_config.json`` as a dict, or None where there is no such file.

    Args:
        path: The file.

    Returns:
        Its fields.

    Raises:
        CorruptFileError: It is there and is not a JSON object.

    Example:
        >>> read_config(Path("no-such-folder/adapter_config.json")) is None
        True
    """
    if not path.is_file():
        return None
    size = path.stat().st_size
    if size > _CONFIG_BYTES_AT_MOST:
        raise CorruptFileError(
            f"must be a small JSON object (got {size} bytes). Is it the right file?", file=str(path)
        )
    try:
        config = loose_json(read_regular(path, _CONFIG_BYTES_AT_MOST))
    except OSError as error:
        raise SourceError(f"cannot be read ({error.strerror or error})", file=str(path)) from error
    except NotJsonError as error:
        raise CorruptFileError(
            f"must be a JSON object (got text that is none: {error}).", file=str(path)
        ) from error
    except ValueError as error:
        raise CorruptFileError(
            f"must be a small JSON object (it {error}). Is it the right file?", file=str(path)
        ) from error
    if not isinstance(config, dict):
        raise CorruptFileError(f"must be a JSON object (got a {type(config).__name__}).", file=str(path))
    return config


def read_config_file(path: str | os.PathLike[str]) -> dict[str, Any]:
    """
    Return a PEFT configuration from its file or its folder.

    Args:
        path: The file, or the folder that it is in.

    Returns:
        Its fields.

    Raises:
        SourceNotFoundError: There is no such file.
        CorruptFileError: It is not a JSON object.

    Example:
        >>> read_config_file("no-such-folder")
        Traceback (most recent call last):
        lora_mixer.errors.SourceNotFoundError: no-such-folder: there is no such configuration; ...
    """
    place = place_of(path)
    place = place / CONFIG_NAME if place.is_dir() else place
    config = read_config(place)
    if config is None:
        raise SourceNotFoundError(
            f"there is no such configuration; name an {CONFIG_NAME}, or its folder", file=str(place)
        )
    return config


def adapter_files(folder: Path, *, allow_pickle: bool = False) -> list[Path]:
    """
    Find the files in a folder, all the way down, that may be adapters; what they hold is for the reader to say.

    Args:
        folder: Where to look; hidden folders and links to folders are left out.
        allow_pickle: Whether ``.pt``, ``.pth``, ``.ckpt`` and ``.bin`` files count.

    Returns:
        The files, sorted.

    Example:
        >>> from lora_mixer import demo_adapters
        >>> [file.stem for file in adapter_files(demo_adapters()["ink"].path.parent)][:2]
        ['blueprint', 'halftone']
    """
    suffixes = ADAPTER_SUFFIXES if allow_pickle else (SAFETENSORS_SUFFIX,)
    names = (file.relative_to(folder) for file in folder.rglob("*") if file.is_file())
    shown = [name.as_posix() for name in names if not any(part.startswith(".") for part in name.parts)]
    return [folder / name for name in candidates(shown, suffixes)]
