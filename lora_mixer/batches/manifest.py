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
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

from filelock import FileLock, Timeout

from lora_mixer.errors import SaveError

if TYPE_CHECKING:
    from collections.abc import Iterator

Record = dict[str, Any]
_SYNC_SECONDS = 2.0
SUFFIXES = (".jsonl", ".sqlite")


class Manifest(Protocol):
    """What both forms can do."""

    def records(self) -> dict[str, Record]:
        """Give the last record of each picture, by its file."""

    def add(self, record: Record) -> None:
        """Add a record."""

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
    if path.suffix not in SUFFIXES:
        raise SaveError(f"{path}: a manifest ends with {' or '.join(SUFFIXES)}, got {path.suffix!r}")
    lock = FileLock(str(path.with_name(f".{path.name}.lock")))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise SaveError(
            f"{path} is in use by another run; wait for it, or give this plan another folder"
        ) from error
    except OSError as error:
        raise SaveError(f"cannot write {path}: {error.strerror or error}") from error
    try:
        return _Lines(path, lock) if path.suffix == ".jsonl" else _Table(path, lock)
    except BaseException:
        lock.release()
        raise


def read_manifest(path: str | Path) -> list[Record]:
    """
    Read the records of a manifest: the last of each picture, in the order of the plan.

    Args:
        path: The file.

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
        if place.suffix == ".jsonl":
            with place.open("rb") as stream:
                found = _last_of_each(_whole_lines(stream))
        else:
            with sqlite3.connect(f"{place.absolute().as_uri()}?mode=ro", uri=True) as base:
                found = _rows(base)
            base.close()
    except (OSError, sqlite3.Error) as error:
        raise SaveError(f"the manifest {path} cannot be read: {error}") from error
    return sorted(found.values(), key=lambda record: record.get("index", 0))


def _last_of_each(records: Iterator[Record]) -> dict[str, Record]:
    return {record["file"]: record for record in records if isinstance(record.get("file"), str)}


def _whole_lines(stream: IO[bytes]) -> Iterator[Record]:
    for line in stream:
        if not line.endswith(b"\n"):
            return  # torn by whatever ended the run before
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            yield record


class _Lines:
    """One line of JSON per record, appended."""

    def __init__(self, path: Path, lock: Any) -> None:
        self._path, self._lock = path, lock
        self._synced = time.monotonic()
        try:
            self._stream = path.open("a+b", buffering=0)
            self._cut_torn_line()
        except OSError as error:
            raise SaveError(f"cannot write {path}: {error.strerror or error}") from error

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

    def add(self, record: Record) -> None:
        line = json.dumps(record, ensure_ascii=True, sort_keys=False).encode() + b"\n"
        before = self._stream.seek(0, os.SEEK_END)
        try:
            if self._stream.write(line) != len(line):
                raise OSError(28, "No space left on device")  # noqa: TRY301 -- a short write is a full disk
            if time.monotonic() - self._synced > _SYNC_SECONDS:
                os.fsync(self._stream.fileno())
                self._synced = time.monotonic()
        except OSError as error:
            self._stream.truncate(before)
            raise SaveError(f"cannot write {self._path}: {error.strerror or error}") from error

    def close(self) -> None:
        try:
            os.fsync(self._stream.fileno())
        except OSError as error:
            raise SaveError(f"cannot write {self._path}: {error.strerror or error}") from error
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
        except sqlite3.Error as error:
            raise SaveError(f"cannot write {path}: {error}") from error

    def records(self) -> dict[str, Record]:
        return _rows(self._base)

    def add(self, record: Record) -> None:
        row = (record.get("file"), record.get("index"), record.get("status"), json.dumps(record))
        try:
            with self._base:
                self._base.execute("INSERT OR REPLACE INTO pictures VALUES (?, ?, ?, ?)", row)
        except sqlite3.Error as error:
            raise SaveError(f"cannot write {self._path}: {error}") from error

    def close(self) -> None:
        self._base.close()
        self._lock.release()


def _rows(base: sqlite3.Connection) -> dict[str, Record]:
    return {file: json.loads(text) for file, text in base.execute("SELECT file, record FROM pictures")}
