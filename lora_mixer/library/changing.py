"""Files of a library renamed, moved and put into the trash, with what lies beside them: all of it or nothing, over nothing."""

from __future__ import annotations

import json
import secrets
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from lora_mixer.errors import SaveError, SourceError
from lora_mixer.interrupts import Interruptible, uninterrupted
from lora_mixer.library.adding import safe_name
from lora_mixer.parsing.json_text import loose_json
from lora_mixer.sources import CONFIG_NAME, PICTURES, SAFETENSORS_SUFFIX, TEXTS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lora_mixer.library.entry import Entry

    Undone = Callable[[], object]

T = TypeVar("T")

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


def rename(entry: Entry, name: str, undone: Undone) -> Interruptible[Path]:
    """
    Give an entry's files another name for a block, which is over when the index knows them: else they are where they were.

    Args:
        entry: Whose files.
        name: The new name, without an ending.
        undone: Called when they were put back.

    Returns:
        A context manager that gives where the weights are now.

    Raises:
        SourceError: When something is called so already, or it is not a name.
        SaveError: When the disk refuses.
    """
    stem = safe_name(name)
    if is_folder(entry):
        folder = entry.path.parent
        new = folder.with_name(stem)
        return _moved({folder: new}, entry.name, new / entry.path.name, undone)
    old = entry.path.name[: -len(SAFETENSORS_SUFFIX)]
    places = {path: path.with_name(stem + path.name[len(old) :]) for path in belonging(entry)}
    return _moved(places, entry.name, places[entry.path], undone)


def move(entry: Entry, folder: Path, undone: Undone) -> Interruptible[Path]:
    """
    Put an entry's files into another folder, which is made where it is not there, for a block as of :func:`rename`.

    Args:
        entry: Whose files.
        folder: Where they go.
        undone: Called when they were put back.

    Returns:
        A context manager that gives where the weights are now.

    Raises:
        SourceError: When something is called so there already.
        SaveError: When the disk refuses.
    """
    places = {path: folder / path.name for path in belonging(entry)}
    now = places.get(entry.path, folder / entry.path.parent.name / entry.path.name)

    def begin() -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SaveError(f"cannot be made ({error.strerror or error})", file=str(folder)) from error

    return _moved(places, entry.name, now, undone, begin=begin)


def to_trash(entry: Entry, undone: Undone) -> Interruptible[str]:
    """
    Put an entry's files into its folder's trash, from where :func:`from_trash` has them back, for a block as of :func:`rename`.

    Args:
        entry: Whose files.
        undone: Called when they were put back.

    Returns:
        A context manager that gives what they are called there.

    Raises:
        SaveError: When the disk refuses.
    """
    token = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(4)}"
    place = entry.root / TRASH / token
    files = belonging(entry)

    def begin() -> None:
        try:
            place.mkdir(parents=True)
            kept = {
                "id": entry.id,
                "files": {path.name: path.relative_to(entry.root).as_posix() for path in files},
            }
            (place / _PLACES).write_text(json.dumps(kept, ensure_ascii=False), encoding="utf-8")
        except OSError as error:
            raise SaveError(
                f"there is no place in it for a trash ({error})",
                file=str(entry.root),
                adapter=entry.name,
            ) from error

    def back() -> None:
        _emptied(place)
        undone()

    return _moved({path: place / path.name for path in files}, entry.name, token, back, begin=begin)


def from_trash(root: Path, token: str, undone: Undone) -> Interruptible[tuple[str, list[Path]]]:
    """
    Put what is in the trash where it was, for a block as of :func:`rename`.

    Args:
        root: The library's folder.
        token: What :func:`to_trash` gave.
        undone: Called when it is in the trash again.

    Returns:
        A context manager that gives the id that the entry had, and what is there again.

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

    def begin() -> None:
        try:
            for path in places.values():
                path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SaveError(f"there is no folder to put it back ({error})", file=str(root)) from error

    found = (entry_id, list(places.values()))
    return _moved(places, token, found, undone, begin=begin, done=lambda: _emptied(place))


def _emptied(place: Path) -> None:
    """Take a place in the trash away in which nothing is left; where that fails it stays, and nobody sees it."""
    with suppress(Exception):
        if all(path.name == _PLACES for path in place.iterdir()):
            (place / _PLACES).unlink(missing_ok=True)
            place.rmdir()


def _moved(
    places: Mapping[Path, Path],
    label: str,
    found: T,
    undone: Undone,
    *,
    begin: Callable[[], None] = lambda: None,
    done: Callable[[], None] = lambda: None,
) -> Interruptible[T]:
    """
    Move several files or folders for a block: where one cannot be moved, or the block fails, all are where they were.

    Ctrl-C waits until they are moved, or moved back.
    """
    moved: list[tuple[Path, Path]] = []

    @uninterrupted
    def start() -> T:
        _refuse_taken(places, label)
        try:
            begin()
            for old, new in places.items():
                moved.append((old, new))
                old.rename(new)
        except BaseException as error:
            end(error)
            if isinstance(error, OSError):
                raise SaveError(f"cannot be moved ({error.strerror or error})", file=label) from error
            raise
        return found

    @uninterrupted
    def end(error: BaseException | None) -> None:
        if error is None:
            done()
            return
        for old, new in reversed(moved):
            with suppress(OSError):
                if not old.exists():  # the last one may not have been moved
                    new.rename(old)
        undone()

    return Interruptible(start, end)


def _refuse_taken(places: Mapping[Path, Path], label: str) -> None:
    taken = [new for old, new in places.items() if new != old and _is_taken(old, new)]
    if taken:
        raise SourceError(
            f"there is something called {taken[0].name} already; choose another name or folder", file=label
        )


def _is_taken(old: Path, new: Path) -> bool:
    try:
        return new.exists() and not new.samefile(old)  # the same file: another case of letters only
    except OSError:
        return False
