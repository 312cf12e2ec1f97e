"""
One SQLite file that many threads and processes use at once, and that is set aside and made anew when it is damaged.

Each piece of work has its own connection, so nothing is shared between threads and nothing is left open.
"""

from __future__ import annotations

import re
import sqlite3
import threading
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lora_mixer.errors import SourceError
from lora_mixer.parsing.sqlite_errors import SQLITE_ERRORS
from lora_mixer.problem import Remedy

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

T = TypeVar("T")

_NO_SENSE = 1  # SQLITE_ERROR, which sqlite3 names from Python 3.11 on
_APPLICATION = 0x4C6F5261
"""What SQLite files of a library say of themselves ("LoRa")."""
_WAIT_S = 60.0
"""How long one writer waits for another."""


class _OtherVersionError(Exception):
    """A file of this package, of a version that this one does not read, holds what nothing can find again."""


class Database:
    """A file with a schema. One of another program is never written; what people said is never dropped."""

    def __init__(
        self,
        path: Path,
        schema: str,
        version: int,
        notes: list[str],
        *,
        irreplaceable: bool = False,
        upgrades: Mapping[int, str] | None = None,
    ) -> None:
        """
        Open the file, or make it.

        Args:
            path: Where it lies. Folders are made.
            schema: What to run on a new file.
            version: The schema's version; a file of another one is made anew.
            notes: Where it is told that a file was damaged, or of another version.
            irreplaceable: Whether a file of another version is set aside under another name, since nothing can find
                again what it holds.
            upgrades: By version, what makes a file of it one of the next version; it then keeps what it holds.

        Raises:
            SourceError: The place cannot be written, or the file there is another program's.
        """
        self.path = path
        self.renewals = 0
        """How often a damaged file was made anew."""
        self._schema = schema
        self._version = version
        self._irreplaceable = irreplaceable
        self._upgrades = dict(upgrades or {})
        self._tables = frozenset(re.findall(r"CREATE TABLE (\w+)", schema))
        self._notes = notes
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.read(lambda _: None)
        except (OSError, ValueError) as error:  # a disk that refuses, a name that no file can have
            why = getattr(error, "strerror", None) or error
            raise SourceError(
                f"the library's index cannot be opened there ({why})", file=str(path)
            ) from error

    def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """
        Do some work with a connection; on a damaged file, make it anew and do the work again.

        Args:
            work: What to do; it may run twice.

        Raises:
            SourceError: The file is locked, the disk is full, or the like.
        """
        for at in range(3):
            try:
                with closing(self._opened()) as connection:
                    return work(connection)
            except SQLITE_ERRORS as error:
                if not _is_damage(error):
                    raise SourceError(
                        f"the library's index cannot be used ({error})", file=str(self.path)
                    ) from error
                self._renew(f"was damaged ({error})", "damaged", seen_twice=at > 0)
            except _OtherVersionError as error:
                self._renew(str(error), "other-version", seen_twice=at > 0)
        raise SourceError("is damaged again and again; is the disk all right?", file=str(self.path))

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
            connection.text_factory = _text
            connection.create_function("casefold", 1, _casefold, deterministic=True)
            if (_pragma(connection, "application_id"), _pragma(connection, "user_version")) != self._own:
                self._prepare(connection)
            connection.execute("PRAGMA synchronous = NORMAL")
        except BaseException:
            connection.close()
            raise
        return connection

    @property
    def _own(self) -> tuple[int, int]:
        return _APPLICATION, self._version

    def _prepare(self, connection: sqlite3.Connection) -> None:
        self._refuse_foreign(connection)
        # This one statement does not wait for another process that is about it.
        with suppress(sqlite3.OperationalError):
            connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("BEGIN IMMEDIATE")
        try:
            tables = self._refuse_foreign(connection)  # another process may have been first
            version = _pragma(connection, "user_version")
            while version in self._upgrades and tables:
                for statement in self._upgrades[version].split(";"):
                    connection.execute(statement)
                version += 1
                connection.execute(f"PRAGMA user_version = {version}")
            if version != self._version:
                if version and tables and self._irreplaceable:
                    raise _OtherVersionError(f"is of version {version}, this is {self._version}")  # noqa: TRY301
                if version:
                    self._notes.append(
                        f"{self.path} is of version {version}, this is {self._version}: made anew"
                    )
                for name in tables:
                    connection.execute(f'DROP TABLE "{name}"')
                for statement in self._schema.split(";"):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {self._version}")
            connection.execute(f"PRAGMA application_id = {_APPLICATION}")
        except BaseException:
            connection.rollback()
            raise
        connection.commit()

    def _refuse_foreign(self, connection: sqlite3.Connection) -> list[str]:
        """
        List the tables of a file that is this package's, marked or from before there was a mark.

        Raises:
            SourceError: When it is another program's.
        """
        rows = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        tables = [name for (name,) in rows if not name.startswith("sqlite_")]
        mark = _pragma(connection, "application_id")
        if mark == _APPLICATION or (mark == 0 and self._tables.issuperset(tables)):
            return tables
        shown = ", ".join(tables[:3]) or "none"
        raise SourceError(
            f"a SQLite file of another program (application_id {mark:#x}, tables {shown:.200}), which is left "
            "as it is",
            file=str(self.path),
            remedy=Remedy(
                "give the library's index another place with index=",
                "give the library's index another place with --index",
                "start the page with another --index",
            ),
        )

    def _renew(self, why: str, state: str, *, seen_twice: bool) -> None:
        """Set a file aside, unless another thread or process has just done so; a check does not find all that work does."""
        with self._lock:
            if not seen_twice and self._is_sound():
                return
            aside = f"{self.path}.{state}-{time.time_ns():x}"
            try:
                for ending in ("", "-wal", "-shm"):
                    part = Path(f"{self.path}{ending}")
                    if part.exists():
                        part.replace(f"{aside}{ending}")
            except OSError as refusal:
                raise SourceError(
                    f"{why} and cannot be set aside ({refusal})", file=str(self.path)
                ) from refusal
            self.renewals += 1
            self._notes.append(f"{self.path} {why}; it was set aside as {Path(aside).name} and made anew")

    def _is_sound(self) -> bool:
        try:
            with closing(sqlite3.connect(self.path, timeout=_WAIT_S)) as connection:
                row: Any = connection.execute("PRAGMA quick_check(1)").fetchone()
                readable = (0, self._version, *self._upgrades)
                known = not self._irreplaceable or _pragma(connection, "user_version") in readable
                for table in self._tables if known else ():  # a check looks at no text
                    for _ in connection.execute(f'SELECT * FROM "{table}"'):
                        pass
                return bool(row[0] == "ok") and known
        except SQLITE_ERRORS:
            return False


def _casefold(text: str | None) -> str:
    return (text or "").casefold()


def _text(raw: bytes) -> str:
    """Decode a text; SQLite's own error for one that is no text is of the same class as that for a file that is locked."""
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise sqlite3.DatabaseError("a text in it is none") from error


def _is_damage(error: Exception) -> bool:
    """
    Tell damage from what may happen to a sound file: locked, full, read-only.

    A statement of ours that makes no sense to SQLite (its code 1) is damage, too: the tables in the file are not those that it says.
    """
    return (
        type(error) in (sqlite3.DatabaseError, UnicodeDecodeError)
        or getattr(error, "sqlite_errorcode", None) == _NO_SENSE
    )


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    row: Any = connection.execute(f"PRAGMA {name}").fetchone()
    return int(row[0])
