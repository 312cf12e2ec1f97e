"""Files of a library renamed, moved and put into the trash, with what lies beside them: all of it or nothing, over nothing."""

from __future__ import annotations

import json
import secrets
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from lora_mixer.errors import SaveError, SourceError
from lora_mixer.library.adding import safe_name
from lora_mixer.parsing.json_text import loose_json
from lora_mixer.sources import CONFIG_NAME, PICTURES, SAFETENSORS_SUFFIX, TEXTS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_mixer.library.entry import Entry

TRASH = ".lora-mixer-trash"
"""The folder within each of a library's folders; hidden, so that scans do not see it."""
_PLACES = "places.json"


def is_folder(entry: Entry) -> bool:
    """Tell whether an adapter is a folder of its own, as PEFT writes them, rather than a file among others."""
    folder = entry.path.parent
    return folder != entry.root and (folder / CONFIG_NAME).is_file() and entry.name == folder.name


def belonging(entry: Entry) -> list[Path]:
    """List what goes where an entry goes: its folder, or its file and those beside it that bear its name."""
    if is_folder(entry):
        return [entry.path.parent]
    stem = entry.path.name[: -len(SAFETENSORS_SUFFIX)]
    beside = (entry.path.with_name(f"{stem}{ending}") for ending in dict.fromkeys((*TEXTS, *PICTURES)))
    return [entry.path, *(path for path in beside if path.is_file())]


def rename(entry: Entry, name: str) -> Path:
    """
    Give an entry's files another name.

    Returns:
        Where the weights are now.

    Raises:
        SourceError: When something is called so already, or it is not a name.
        SaveError: When the disk refuses.
    """
    stem = safe_name(name)
    if is_folder(entry):
        folder = entry.path.parent
        _move({folder: folder.with_name(stem)}, entry.name)
        return folder.with_name(stem) / entry.path.name
    old = entry.path.name[: -len(SAFETENSORS_SUFFIX)]
    places = {path: path.with_name(stem + path.name[len(old) :]) for path in belonging(entry)}
    _move(places, entry.name)
    return places[entry.path]


def move(entry: Entry, folder: Path) -> Path:
    """
    Put an entry's files into another folder, which is made where it is not there.

    Returns:
        Where the weights are now.

    Raises:
        SourceError: When something is called so there already.
        SaveError: When the disk refuses.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SaveError(f"{folder} cannot be made ({error.strerror or error})") from error
    places = {path: folder / path.name for path in belonging(entry)}
    _move(places, entry.name)
    return places[entry.path] if entry.path in places else folder / entry.path.parent.name / entry.path.name


def to_trash(entry: Entry) -> str:
    """
    Put an entry's files into its folder's trash, from where :func:`from_trash` has them back.

    Returns:
        What they are called there.

    Raises:
        SaveError: When the disk refuses.
    """
    token = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(4)}"
    place = entry.root / TRASH / token
    files = belonging(entry)
    try:
        place.mkdir(parents=True)
        kept = {
            "id": entry.id,
            "files": {path.name: path.relative_to(entry.root).as_posix() for path in files},
        }
        (place / _PLACES).write_text(json.dumps(kept, ensure_ascii=False), encoding="utf-8")
    except OSError as error:
        raise SaveError(f"{entry.name}: there is no place for a trash in {entry.root} ({error})") from error
    try:
        _move({path: place / path.name for path in files}, entry.name)
    except BaseException:
        with suppress(OSError):
            (place / _PLACES).unlink()
            place.rmdir()
        raise
    return token


def from_trash(root: Path, token: str) -> tuple[str, list[Path]]:
    """
    Put what is in the trash where it was.

    Args:
        root: The library's folder.
        token: What :func:`to_trash` gave.

    Returns:
        The id that the entry had, and what is there again.

    Raises:
        SourceError: When it is not in the trash, or something else took its place.
        SaveError: When the disk refuses.
    """
    place = root / TRASH / token
    try:
        if Path(token).name != token:
            raise ValueError(token)  # noqa: TRY301 -- no path is one
        kept = loose_json((place / _PLACES).read_text(encoding="utf-8"))
        places = {place / name: root / where for name, where in kept["files"].items()}
        entry_id = str(kept["id"])
        if any(
            ".." in path.relative_to(root).parts or TRASH in path.relative_to(root).parts
            for path in places.values()
        ):
            raise ValueError(token)  # noqa: TRY301
    except (OSError, ValueError, AttributeError, TypeError, KeyError) as error:
        raise SourceError("this is not in the library's trash any more") from error
    for path in places.values():
        path.parent.mkdir(parents=True, exist_ok=True)
    _move(places, token)
    with suppress(OSError):
        (place / _PLACES).unlink()
        place.rmdir()
    return entry_id, list(places.values())


def _move(places: Mapping[Path, Path], what: str) -> None:
    """Move several files or folders; where one cannot be, those before it are where they were."""
    taken = [new for old, new in places.items() if new != old and _is_taken(old, new)]
    if taken:
        raise SourceError(
            f"{what}: there is something called {taken[0].name} already; choose another name or folder"
        )
    done: list[tuple[Path, Path]] = []
    try:
        for old, new in places.items():
            old.rename(new)
            done.append((old, new))
    except OSError as error:
        for old, new in reversed(done):
            with suppress(OSError):
                new.rename(old)
        raise SaveError(f"{what}: cannot be moved ({error.strerror or error})") from error


def _is_taken(old: Path, new: Path) -> bool:
    try:
        return new.exists() and not new.samefile(old)  # the same file: another case of letters only
    except OSError:
        return False
