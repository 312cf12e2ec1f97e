"""Files that are whole or not there: written beside their place under another name, then moved over."""

from __future__ import annotations

import os
import secrets
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

from lora_mixer.errors import SaveError
from lora_mixer.interrupts import at_once

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

__all__ = ["write_files"]


def write_files(
    writers: Mapping[Path, Callable[[IO[bytes]], None]],
    *,
    check: Callable[[Mapping[Path, Path]], None] | None = None,
) -> tuple[Path, ...]:
    """
    Write several files; until all are complete, none of the old ones is touched.

    Args:
        writers: For each path the function that writes its content to a stream. Folders are made.
        check: Looks at the complete files before any is moved over: for each path, where its content lies until then.
            What it raises ends the writing.

    Returns:
        The paths.

    Raises:
        SaveError: When the disk, a folder or a permission is in the way; what was there before is still there.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> path = Path(tempfile.mkdtemp()) / "a.txt"
        >>> write_files({path: lambda stream: stream.write(b"x") and None}) == (path,)
        True
    """
    for path in writers:
        check_path(path)
    with _staging() as staged:
        try:
            for path, write in writers.items():
                place = path.resolve()  # a link is followed, not replaced
                place.parent.mkdir(parents=True, exist_ok=True)
                spare = place.with_name(f".{place.name}.{secrets.token_hex(4)}.tmp")
                staged[spare] = place
                with spare.open("xb") as stream:
                    write(stream)
                    stream.flush()
                    os.fsync(stream.fileno())
            if check is not None:
                check(dict(zip(writers, staged, strict=True)))
            _swap(staged)
        except OSError as error:
            # the caller knows no spare file
            file = error.filename and str(staged.get(Path(error.filename), error.filename))
            raise SaveError(
                f"cannot be written: {error.strerror or error}", file=file or ", ".join(map(str, writers))
            ) from error
    return tuple(writers)


def check_path(path: Path) -> None:
    """
    Refuse what no file can be called.

    Raises:
        SaveError: When there is a zero byte in it.
    """
    if "\0" in str(path):
        raise SaveError("no file can be called so: there is a zero byte in it", file=str(path))


def _swap(staged: Mapping[Path, Path]) -> None:
    """Move complete files over the old ones: where one cannot be moved, those before it are what they were."""
    kept: list[tuple[Path, Path]] = []

    def work() -> None:
        for spare, place in staged.items():
            old = spare.with_name(f"{spare.name}.old")
            kept.append((place, old))
            if len(staged) > 1 and place.exists():
                _second_name(place, old)
            spare.replace(place)

    def undo() -> None:
        for number, (place, old) in enumerate(kept):
            with suppress(OSError):
                if old.exists():
                    old.replace(place)
                elif number < len(kept) - 1:  # the last one was not moved
                    place.unlink(missing_ok=True)
        forget()

    def forget() -> None:
        for _, old in kept:
            with suppress(OSError):
                old.unlink(missing_ok=True)

    at_once(work, undo)
    forget()


def _second_name(place: Path, old: Path) -> None:
    try:
        os.link(place, old)
    except OSError:  # no links on this disk
        place.rename(old)


@contextmanager
def _staging() -> Iterator[dict[Path, Path]]:
    staged: dict[Path, Path] = {}
    try:
        yield staged
    finally:
        for spare in staged:
            with suppress(OSError):
                spare.unlink(missing_ok=True)
