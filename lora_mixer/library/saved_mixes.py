"""Saved mixes: a book of named mixes in one file, whole at every moment, with a way back."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from lora_mixer.errors import MixError, SaveError
from lora_mixer.mixes import Mix
from lora_mixer.parsing.files import at_home
from lora_mixer.parsing.json_text import read_json
from lora_mixer.parsing.values import as_list, as_table, clean_text
from lora_mixer.picture_metadata.portable import masks_of, portable, read_mix, read_mix_text
from lora_mixer.problem import Problem

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

_FORMAT = 1
_STEPS_BACK = 50
_NAME_AT_MOST = 200
_WAIT_S = 30


class SavedMixes:
    """
    Named mixes in a JSON file.

    Every change is written to the disk before the call returns, under a lock that other threads and processes share,
    and into a new file that takes the place of the old one: whoever is killed leaves the old book or the new one.

    Args:
        path: The file; it need not be there yet.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> book = SavedMixes(Path(tempfile.mkdtemp()) / "mixes.json")
        >>> book.save("evening", "ink:0.8, oil:0.2")
        >>> book.list(), book.load("evening").to_text()
        (('evening',), 'ink:0.8, oil:0.2')
        >>> book.delete("evening")
        >>> book.undo()
        'deletion of "evening"'
        >>> book.list()
        ('evening',)
        >>> book.rename("evening", "night")
        >>> text = book.export_text("night")
        >>> text, book.import_text(text, "shared"), book.list()
        ('ink:0.8, oil:0.2', 'shared', ('night', 'shared'))
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Take the file's place; nothing is read yet."""
        self.path = at_home(path).absolute()
        self._lock = FileLock(f"{self.path}.lock", timeout=_WAIT_S)

    def list(self) -> tuple[str, ...]:
        """Return the names, in the order in which they were first saved."""
        return tuple(self._read()["mixes"])

    def load(self, name: str) -> Mix:
        """
        Return a mix.

        Args:
            name: The mix's name.

        Raises:
            MixError: There is none of this name, or it cannot be read.
        """
        return _mix_of(self._entry(self._read(), name), name)

    def save(self, name: str, mix: object) -> None:
        """
        Keep a mix; one of the same name is replaced, and can be had back with :meth:`undo`.

        Args:
            name: What to call it.
            mix: In any form that ``Mix.of`` reads; pictures of masks are kept with it.

        Raises:
            MixError: The mix makes no sense, or the name is none.
            SaveError: The disk refuses.
        """
        value = Mix.of(mix)
        entry: dict[str, Any] = {"mix": portable(value).to_dict()}
        if masks := masks_of(value):
            entry["masks"] = masks
        name = _checked(name)
        with self._changing() as book:
            what = "replacement" if name in book["mixes"] else "saving"
            _remember(book, f'{what} of "{name}"', name)
            book["mixes"][name] = entry

    def delete(self, name: str) -> None:
        """
        Take a mix out.

        Args:
            name: The mix's name.

        Raises:
            MixError: There is none of this name.
        """
        with self._changing() as book:
            self._entry(book, name)
            _remember(book, f'deletion of "{name}"', name)
            del book["mixes"][name]

    def rename(self, old: str, new: str) -> None:
        """
        Give a mix another name; it stays in its place.

        Args:
            old: The mix's name.
            new: Another, which no mix has.

        Raises:
            MixError: There is none of the old name, or one of the new name.
        """
        new = _checked(new)
        with self._changing() as book:
            self._entry(book, old)
            if new == old:
                return
            if new in book["mixes"]:
                raise MixError(
                    f'There is a mix "{new}" already; delete it first, or take another name.', adapter=new
                )
            _remember(book, f'renaming of "{old}" to "{new}"', old, new)
            book["mixes"] = {new if name == old else name: entry for name, entry in book["mixes"].items()}

    def undo(self) -> str:
        """
        Take the last change back; the 50 before it can be taken back after it.

        Returns:
            What was taken back.

        Raises:
            MixError: There is nothing to take back.
        """
        with self._changing() as book:
            if not book["history"]:
                raise MixError("There is no change of the saved mixes to take back.")
            last = book["history"].pop()
            mixes = {**book["mixes"], **as_table(last["old"])}
            order = [*(name for name in as_list(last.get("order")) if isinstance(name, str)), *mixes]
            book["mixes"] = {name: mixes[name] for name in order if mixes.get(name) is not None}
            return str(last.get("what", ""))

    def export_text(self, name: str) -> str:
        """
        Write a mix as text to be shared: one line, or JSON where pictures of masks go with it.

        Args:
            name: The mix's name.

        Returns:
            The text, which :meth:`import_text` reads.

        Raises:
            MixError: There is none of this name.
        """
        entry = self._entry(self._read(), name)
        if entry.get("masks"):
            return json.dumps({"name": name, **entry}, ensure_ascii=False)
        return _mix_of(entry, name).to_text()

    def import_text(self, text: str, name: str | None = None) -> str:
        """
        Keep a mix that somebody shared: it may name no files of this machine.

        Args:
            text: What :meth:`export_text` wrote, or a mix as one line, JSON or YAML.
            name: What to call it; what the text says, or ``imported``, numbered where that is taken.

        Returns:
            The name that it got.

        Raises:
            MixError: The text is not a mix, or something had to be left out of it.
        """
        told, mix = _shared(text)
        wanted = _checked(name or told or "imported")
        with self._changing() as book:
            free_name, number = wanted, 1
            while free_name in book["mixes"]:
                number += 1
                free_name = f"{wanted} {number}"
            _remember(book, f'import of "{free_name}"', free_name)
            entry: dict[str, Any] = {"mix": portable(mix).to_dict()}
            if masks := masks_of(mix):
                entry["masks"] = masks
            book["mixes"][free_name] = entry
        return free_name

    def _entry(self, book: dict[str, Any], name: str) -> dict[str, Any]:
        entry: dict[str, Any] | None = book["mixes"].get(name)
        if entry is None:
            raise MixError(
                f'There is no saved mix "{name}"; there are {", ".join(book["mixes"]) or "none"}.',
                adapter=name,
            )
        return entry

    def _read(self) -> dict[str, Any]:
        try:
            text = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return {"format": _FORMAT, "mixes": {}, "history": []}
        except (OSError, UnicodeDecodeError) as error:
            raise MixError(f"the saved mixes cannot be read ({error})", file=str(self.path)) from error
        try:
            book = read_json(text)
        except ValueError as error:
            raise MixError(
                f"expected a book of mixes, got text that is not JSON ({error})", file=str(self.path)
            ) from error
        if as_table(book).get("format") != _FORMAT or not isinstance(book.get("mixes"), dict):
            raise MixError(
                f"expected a book of mixes of format {_FORMAT}; move the file away to begin a new one",
                file=str(self.path),
            )
        history = book.get("history")
        book["mixes"] = {name: as_table(entry) for name, entry in book["mixes"].items()}
        book["history"] = (
            [each for each in history if "old" in as_table(each)] if isinstance(history, list) else []
        )
        whole: dict[str, Any] = book
        return whole

    @contextmanager
    def _changing(self) -> Iterator[dict[str, Any]]:
        from lora_mixer.atomic import check_path, write_files

        check_path(self.path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._lock:
                book = self._read()
                before = json.dumps(book)
                yield book
                text = json.dumps(book, ensure_ascii=True, indent=1)
                if json.dumps(book) != before:
                    write_files({self.path: lambda stream: _write(stream, text)})
        except Timeout as error:
            raise SaveError(
                f"another process has held the saved mixes for {_WAIT_S} s", file=str(self.path)
            ) from error
        except OSError as error:
            raise SaveError(
                f"the saved mixes cannot be written ({error.strerror or error})", file=str(self.path)
            ) from error


def _write(stream: IO[bytes], text: str) -> None:
    stream.write(text.encode("ascii"))


def _remember(book: dict[str, Any], what: str, *names: str) -> None:
    """Keep what some names stand for, and the order of all, before a change."""
    old = {name: book["mixes"].get(name) for name in names}
    step = {"what": what, "old": old, "order": list(book["mixes"])}
    book["history"] = [*book["history"], step][-_STEPS_BACK:]


def _mix_of(entry: dict[str, Any], name: str) -> Mix:
    notes: list[str] = []
    mix = read_mix(entry.get("mix"), entry.get("masks"), notes)
    if mix is None:
        raise MixError(
            f'The saved mix "{name}" cannot be read: {"; ".join(notes) or "it is not a mix"}.',
            adapter=name,
            problems=tuple(Problem("", note) for note in notes),
        )
    return mix


def _shared(text: str) -> tuple[str | None, Mix]:
    notes: list[str] = []
    told: str | None = None
    mix: Mix | None = None
    if text.lstrip().startswith("{"):
        try:
            table = as_table(read_json(text.strip()))
        except ValueError:
            table = {}
        if isinstance(table.get("mix"), dict) and set(table) <= {"name", "mix", "masks"}:
            told = table["name"] if isinstance(table.get("name"), str) else None
            mix = read_mix(table["mix"], table.get("masks"), notes)
    if mix is None and not notes:
        mix = read_mix_text(text, {}, notes)
    if mix is None or notes:
        raise MixError(
            f"This text is not a mix that can be taken: {'; '.join(notes) or 'it is empty'}.",
            problems=tuple(Problem("", note) for note in notes),
        )
    return told, mix


def _checked(name: str) -> str:
    given: object = name
    text = clean_text(given).strip() if isinstance(given, str) else ""
    if not text or len(text) > _NAME_AT_MOST:
        raise MixError(
            f"expected a name of 1 to {_NAME_AT_MOST} letters for the mix, got {name!r:.80}.", argument="name"
        )
    return text
