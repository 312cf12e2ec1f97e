"""
What was made: one record per picture, in JSONL or SQLite, that survives whatever ends the run.

A record is written after its picture's file is in place. Whatever happens between the two costs that picture alone: it is
made again, to the same bytes.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

from lora_mixer.batches.locks import take_lock
from lora_mixer.errors import SaveError
from lora_mixer.parsing.files import refuse_irregular
from lora_mixer.parsing.json_text import json_or_none
from lora_mixer.parsing.sqlite_errors import SQLITE_ERRORS

if TYPE_CHECKING:
    from collections.abc import Iterator


Record = dict[str, Any]
_SYNC_SECONDS = 2.0
_FIRST = b'{"file": '
"""How each line begins, also one that was torn."""
_LINE_BYTES_AT_MOST = 16 << 20
_COLUMNS = ("file", "idx", "status", "record")
BEGUN, SHEET = "begun", "sheet"
INNER = (BEGUN, SHEET)
"""Statuses of records that are not pictures: what is being made, and contact sheets."""
MANIFEST_SUFFIXES = (".jsonl", ".sqlite")


class Manifest(Protocol):
    """What both forms can do."""

    def records(self) -> dict[str, Record]:
        """Return the last record of each picture, by its file."""

    def add(self, record: Record, *, at_once: bool = False) -> None:
        """Add a record; ``at_once`` sees to it that no loss of power takes it back."""

    def close(self) -> None:
        """Write all and let others in."""


def open_manifest(path: Path) -> Manifest:
    """
    Open a manifest, and make it where there is none; one run at a time.

    Args:
        path: Ends with ``.jsonl`` or ``.sqlite``.

    Raises:
        SaveError: When it cannot be written, another run has it open, or it is something else.
    """
    if path.suffix not in MANIFEST_SUFFIXES:
        raise SaveError(
            f"a manifest ends with {' or '.join(MANIFEST_SUFFIXES)}, got {path.suffix!r}", file=str(path)
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _refuse_irregular(path)
    except OSError as error:
        raise SaveError(f"cannot write to it: {error.strerror or error}", file=str(path)) from error
    lock = take_lock(path.with_name(f".{path.name}.lock"), path)
    try:
        _refuse_foreign(path)
        return _Lines(path, lock) if path.suffix == ".jsonl" else _Table(path, lock)
    except BaseException:
        lock.release()
        raise


def read_manifest(path: str | Path) -> list[Record]:
    """
    Read the records of a manifest: the last of each picture, in the order of the plan.

    Args:
        path: The file.

    Returns:
        Its records, as they were written.

    Raises:
        SaveError: When it cannot be read.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> path = Path(tempfile.mkdtemp()) / "manifest.jsonl"
        >>> manifest = open_manifest(path)
        >>> manifest.add({"file": "a.png", "index": 0, "status": "done"})
        >>> manifest.close()
        >>> [record["file"] for record in read_manifest(path)]
        ['a.png']
    """
    place = Path(path)
    try:
        _refuse_irregular(place)
        if place.suffix == ".jsonl":
            with place.open("rb") as stream:
                records = _last_of_each(_whole_lines(stream))
        else:
            with closing(sqlite3.connect(f"{place.absolute().as_uri()}?mode=ro", uri=True)) as base:
                records = _rows(base)
    except (OSError, *SQLITE_ERRORS) as error:
        raise SaveError(f"the manifest cannot be read: {error}", file=str(path)) from error
    pictures = [record for record in records.values() if record.get("status") not in INNER]
    return sorted(pictures, key=lambda record: _number(record.get("index")))


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0


def _refuse_irregular(path: Path) -> None:
    """A FIFO would be waited for, a device read without end."""
    try:
        refuse_irregular(path.stat().st_mode)
    except FileNotFoundError:
        return
    except ValueError as error:
        raise SaveError(f"the manifest {error}", file=str(path)) from error


def _refuse_foreign(path: Path) -> None:
    """
    See that a file that is there was written as a manifest, before anything is added to it or cut off from it.

    Raises:
        SaveError: When it is something else.
    """
    if not path.exists() or path.stat().st_size == 0:
        return
    if path.suffix == ".jsonl":
        with path.open("rb") as stream:
            first = stream.readline(_LINE_BYTES_AT_MOST)
        is_own = first.startswith(_FIRST) if not first.endswith(b"\n") else "file" in (_record(first) or {})
    else:
        is_own = _is_own_table(path)
    if not is_own:
        raise SaveError(
            "is there and is not a manifest of lora_mixer; give this plan another output.manifest, so that it stays "
            "as it is",
            file=str(path),
        )


def _is_own_table(path: Path) -> bool:
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as base:
            tables = {name for (name,) in base.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            columns = [row[1] for row in base.execute("PRAGMA table_info(pictures)")]
    except SQLITE_ERRORS:
        return False
    return tables <= {"pictures"} and columns in ([], list(_COLUMNS))


def _last_of_each(records: Iterator[Record]) -> dict[str, Record]:
    return {record["file"]: record for record in records if isinstance(record.get("file"), str)}


def _whole_lines(stream: IO[bytes]) -> Iterator[Record]:
    for line in stream:
        if not line.endswith(b"\n"):
            return  # torn by whatever ended the run before
        record = _record(line)
        if record is not None:
            yield record


def _record(text: str | bytes) -> Record | None:
    """Read one record; None for what is none, such as JSON that is nested without end."""
    record = json_or_none(text)
    return record if isinstance(record, dict) else None


class _Lines:
    """One line of JSON per record, appended."""

    def __init__(self, path: Path, lock: Any) -> None:
        self._path, self._lock = path, lock
        self._synced = time.monotonic()
        try:
            self._stream = path.open("a+b", buffering=0)
            self._cut_torn_line()
        except OSError as error:
            raise SaveError(f"cannot be written: {error.strerror or error}", file=str(path)) from error

    def _cut_torn_line(self) -> None:
        size = end = self._stream.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - 65536)
            self._stream.seek(start)
            place = self._stream.read(end - start).rfind(b"\n")
            if place >= 0:
                end = start + place + 1
                break
            end = start
        if end != size:
            self._stream.truncate(end)

    def records(self) -> dict[str, Record]:
        with self._path.open("rb") as stream:
            return _last_of_each(_whole_lines(stream))

    def add(self, record: Record, *, at_once: bool = False) -> None:
        line = json.dumps(record, ensure_ascii=True, sort_keys=False).encode() + b"\n"
        before = self._stream.seek(0, os.SEEK_END)
        try:
            if self._stream.write(line) != len(line):
                raise OSError(28, "No space left on device")  # noqa: TRY301 -- a short write is a full disk
            if at_once or time.monotonic() - self._synced > _SYNC_SECONDS:
                os.fsync(self._stream.fileno())
                self._synced = time.monotonic()
        except OSError as error:
            with suppress(OSError):  # else the next run cuts the torn line off
                self._stream.truncate(before)
            raise SaveError(f"cannot be written: {error.strerror or error}", file=str(self._path)) from error

    def close(self) -> None:
        try:
            os.fsync(self._stream.fileno())
        except OSError as error:
            raise SaveError(f"cannot be written: {error.strerror or error}", file=str(self._path)) from error
        finally:
            self._stream.close()
            self._lock.release()


class _Table:
    """A row per picture, with the whole record as JSON."""

    def __init__(self, path: Path, lock: Any) -> None:
        self._path, self._lock = path, lock
        try:
            self._base = sqlite3.connect(path, check_same_thread=False)
            self._base.execute("PRAGMA journal_mode=WAL")
            self._base.execute("PRAGMA synchronous=NORMAL")
            self._base.execute(
                "CREATE TABLE IF NOT EXISTS pictures (file TEXT PRIMARY KEY, idx INTEGER, status TEXT, record TEXT)"
            )
        except SQLITE_ERRORS as error:
            raise SaveError(f"cannot be written: {error}", file=str(path)) from error

    def records(self) -> dict[str, Record]:
        try:
            return _rows(self._base)
        except SQLITE_ERRORS as error:
            raise SaveError(f"the manifest cannot be read: {error}", file=str(self._path)) from error

    def add(self, record: Record, *, at_once: bool = False) -> None:
        del at_once  # WAL and synchronous=NORMAL: a loss of power may cost the last records, never the file
        row = (record.get("file"), record.get("index"), record.get("status"), json.dumps(record))
        try:
            with self._base:
                self._base.execute("INSERT OR REPLACE INTO pictures VALUES (?, ?, ?, ?)", row)
        except SQLITE_ERRORS as error:
            raise SaveError(f"cannot be written: {error}", file=str(self._path)) from error

    def close(self) -> None:
        self._base.close()
        self._lock.release()


def _rows(base: sqlite3.Connection) -> dict[str, Record]:
    rows = base.execute("SELECT file, record FROM pictures")
    return {str(file): record for file, text in rows if (record := _record(_text(text))) is not None}


def _text(value: object) -> str | bytes:
    return value if isinstance(value, str | bytes) else ""
