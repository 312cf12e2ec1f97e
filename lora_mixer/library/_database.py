"""
One SQLite file that many threads and processes use at once, and that is set aside and made anew when it is damaged.

Each piece of work has its own connection, so nothing is shared between threads and nothing is left open.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lora_mixer.errors import SourceError

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

_WAIT_S = 60.0
"""How long one writer waits for another."""


class Database:
    """A file with a schema."""

    def __init__(self, path: Path, schema: str, version: int, notes: list[str]) -> None:
        """
        Open the file, or make it.

        Args:
            path: Where it lies. Folders are made.
            schema: What to run on a new file.
            version: The schema's version; a file of another one is made anew.
            notes: Where it is told that a file was damaged.

        Raises:
            SourceError: The place cannot be written.
        """
        self.path = path
        self.renewals = 0
        """How often a damaged file was made anew."""
        self._schema = schema
        self._version = version
        self._notes = notes
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.read(lambda _: None)
        except OSError as error:
            raise SourceError(f"{path}: the library's index cannot be opened there ({error})") from error

    def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """
        Do some work with a connection; on a damaged file, make it anew and do the work again.

        Args:
            work: What to do; it may run twice.

        Raises:
            SourceError: The file is locked, the disk is full, or the like.
        """
        for _ in range(3):
            try:
                with closing(self._opened()) as connection:
                    return work(connection)
            except sqlite3.DatabaseError as error:
                if not _is_damage(error):
                    raise SourceError(f"{self.path}: the library's index cannot be used ({error})") from error
                self._renew(error)
        raise SourceError(f"{self.path} is damaged again and again; is the disk all right?")

    def write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do some work in a transaction, which is kept if it ends well; else as ``read``."""

        def whole(connection: sqlite3.Connection) -> T:
            connection.execute("BEGIN IMMEDIATE")
            try:
                result = work(connection)
            except BaseException:
                connection.rollback()
                raise
            connection.commit()
            return result

        return self.read(whole)

    def _opened(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=_WAIT_S, isolation_level=None)
        try:
            connection.row_factory = sqlite3.Row
            if _version(connection) != self._version:
                self._prepare(connection)
            connection.execute("PRAGMA synchronous = NORMAL")
        except BaseException:
            connection.close()
            raise
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("BEGIN IMMEDIATE")
        try:
            found = _version(connection)  # another process may have been first
            if found != self._version:
                if found:
                    self._notes.append(
                        f"{self.path} is of version {found}, this is {self._version}: made anew"
                    )
                tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
                for (name,) in tables:
                    connection.execute(f'DROP TABLE "{name}"')
                for statement in self._schema.split(";"):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {self._version}")
        except BaseException:
            connection.rollback()
            raise
        connection.commit()

    def _renew(self, error: Exception) -> None:
        """Set a damaged file aside, unless another thread or process has just done so."""
        with self._lock:
            if self._is_sound():
                return
            aside = f"{self.path}.damaged-{time.time_ns():x}"
            try:
                for ending in ("", "-wal", "-shm"):
                    part = Path(f"{self.path}{ending}")
                    if part.exists():
                        part.replace(f"{aside}{ending}")
            except OSError as refusal:
                raise SourceError(
                    f"{self.path} is damaged ({error}) and cannot be set aside ({refusal})"
                ) from refusal
            self.renewals += 1
            self._notes.append(
                f"{self.path} was damaged ({error}); it was set aside as {Path(aside).name} and made anew"
            )

    def _is_sound(self) -> bool:
        try:
            with closing(sqlite3.connect(self.path, timeout=_WAIT_S)) as connection:
                row: Any = connection.execute("PRAGMA quick_check(1)").fetchone()
                return bool(row[0] == "ok")
        except sqlite3.DatabaseError:
            return False


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    """Tell damage from what may happen to a sound file: locked, full, read-only."""
    return type(error) is sqlite3.DatabaseError


def _version(connection: sqlite3.Connection) -> int:
    row: Any = connection.execute("PRAGMA user_version").fetchone()
    return int(row[0])
