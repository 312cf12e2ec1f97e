"""What a library lets one look at: searches, entries, hashes, small pictures; nothing here changes a file."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING

from lora_mixer import hashes as file_hashes
from lora_mixer.errors import SourceError, SourceNotFoundError
from lora_mixer.inspection import read_adapter
from lora_mixer.library import _schema, thumbnails
from lora_mixer.library._searching import PAGE_AT_MOST, query
from lora_mixer.library._walking import within
from lora_mixer.library.compatibility import Compatibility, compatible
from lora_mixer.library.entry import Entry, Page
from lora_mixer.recall.values import as_hash

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Mapping
    from pathlib import Path

    from lora_mixer.adapter import AdapterInfo
    from lora_mixer.library._database import Database


class Looking:
    """The read-only half of :class:`Library`."""

    _roots: tuple[Path, ...]
    _notes: list[str]
    _index: Database
    _thumbnails: Path

    @property
    def folders(self) -> tuple[Path, ...]:
        """The folders, without those inside others."""
        return self._roots

    @property
    def notes(self) -> tuple[str, ...]:
        """What went wrong and was put right: a damaged index, previews that cannot be shown."""
        return tuple(self._notes)

    @property
    def thumbnails_folder(self) -> Path:
        """Where :meth:`thumbnail` keeps its pictures: the one folder of a library that may be served."""
        return self._thumbnails

    def search(
        self,
        text: str = "",
        *,
        base: str | None = None,
        algorithm: str | None = None,
        folder: str | None = None,
        offline: bool | None = None,
        sort: str = "name",
        descending: bool = False,
        page: int = 0,
        page_size: int = 60,
    ) -> Page:
        """
        Find entries.

        Args:
            text: Words that must all be in names, titles, trigger words, tags, file names or folders; an entry of
                exactly this name comes first.
            base: Only of this base family.
            algorithm: Only with this algorithm.
            folder: Only in this folder below a library's folder, and below it.
            offline: Only those that are away, or only those that are there.
            sort: ``name``, ``date``, ``size``, ``rank`` or ``uses``.
            descending: The greatest first.
            page: Which page, from 0; one past the end is the last.
            page_size: How many entries a page has, at most 1000.

        Returns:
            The page.

        Raises:
            SourceError: There is no such order, or the numbers make no sense.
        """
        if not 1 <= page_size <= PAGE_AT_MOST or page < 0:
            raise SourceError(
                f"page must be 0 or more and page_size from 1 to {PAGE_AT_MOST}, got {page}, {page_size}"
            )
        found = query(
            self._roots,
            text,
            base=base,
            algorithm=algorithm,
            folder=folder,
            offline=offline,
            sort=sort,
            descending=descending,
        )

        def work(connection: sqlite3.Connection) -> Page:
            total = int(
                connection.execute(
                    f"SELECT COUNT(*) FROM files WHERE {found.where}", found.values
                ).fetchone()[0]
            )
            pages = max(-(-total // page_size), 1)
            number = min(page, pages - 1)
            rows = connection.execute(
                f"SELECT * FROM files WHERE {found.where} ORDER BY {found.order} LIMIT ? OFFSET ?",
                (*found.values, *found.order_values, page_size, number * page_size),
            ).fetchall()
            return Page(_entries(connection, rows), total, number, pages)

        return self._index.read(work)

    def get(self, id: str) -> Entry:  # noqa: A002 -- what it is called everywhere
        """
        Give one entry.

        Raises:
            SourceNotFoundError: There is none of this id in these folders.
        """
        found = self._where("id = ?", id)
        if not found:
            raise SourceNotFoundError(f"the library has no adapter {id[:40]!r}; search for it again")
        return found[0]

    def find(self, name: str) -> tuple[Entry, ...]:
        """Give the entries of a name, but for case; those that are there first."""
        return self._where("name = ? COLLATE NOCASE", name)

    def by_hash(self, digits: str) -> tuple[Entry, ...]:
        """
        Give the entries that have a hash, of any kind; of those whose hashes are known.

        Args:
            digits: 8 hexadecimal digits or more; the beginning of a longer hash will do.
        """
        wanted = as_hash(digits)
        if wanted is None:
            return ()
        return self._where(
            "(id IN (SELECT id FROM hashes WHERE digits >= ? AND digits < ? OR digits IN (?, ?, ?))"
            " OR substr(declared, 1, ?) = ?)",
            *(wanted, wanted + "g", wanted[:8], wanted[:10], wanted[:12]),
            *(len(wanted), wanted),
        )

    def facets(self) -> dict[str, dict[str, int]]:
        """Count the entries by base, algorithm and folder, for filters."""
        places = ", ".join("?" * len(self._roots))
        rows = self._index.read(
            lambda connection: connection.execute(
                f"SELECT base, algorithms, folder FROM files WHERE root IN ({places})",
                [*map(str, self._roots)],
            ).fetchall()
        )
        counts = {
            "base": Counter(row["base"] for row in rows),
            "algorithm": Counter(name for row in rows for name in json.loads(row["algorithms"])),
            "folder": Counter(row["folder"] for row in rows),
        }
        return {kind: dict(sorted(counter.items())) for kind, counter in counts.items()}

    def known(self) -> dict[str, dict[str, str]]:
        """Give the hashes known so far by name, as :func:`match_adapters` takes them; twins have their folder in the name."""
        entries = [entry for entry in self._where("1") if not entry.problem]
        count: dict[str, int] = {}
        for entry in entries:
            count[entry.name] = count.get(entry.name, 0) + 1
        return {
            entry.name if count[entry.name] == 1 else f"{entry.path.parent}/{entry.name}": dict(entry.hashes)
            for entry in entries
        }

    def source(self, id: str) -> Path:  # noqa: A002
        """
        Give the file of an entry, for loading, after a look that it is still in its folder.

        Raises:
            SourceNotFoundError: It is not there now.
            SourceError: A link leads out of the folder.
        """
        entry = self.get(id)
        if not entry.path.is_file():
            raise SourceNotFoundError(f"{entry.name}: {entry.path} is not there now; is its disk away?")
        if not within(entry.path, entry.root):
            raise SourceError(f"{entry.name}: a link leads out of the library's folder {entry.root}")
        return entry.path

    def info(self, id: str) -> AdapterInfo:  # noqa: A002
        """Read the full description of an entry, with its metadata; raises as :meth:`source` and ``read_adapter``."""
        return read_adapter(self.source(id))

    def hashes(self, id: str) -> Mapping[str, str]:  # noqa: A002
        """
        Give the hashes of an entry, by kind; computed at the first call, which reads the whole file, and remembered.

        Raises:
            SourceError: As :meth:`source`.
        """
        entry = self.get(id)
        known = {kind: digits for kind, digits in entry.hashes.items() if kind != "declared"}
        if known:
            return known
        found = {
            kind: digits
            for kind, digits in read_adapter(self.source(id)).hashes.items()
            if kind in file_hashes.NAMES
        }
        self._index.write(
            lambda connection: connection.executemany(
                "INSERT OR REPLACE INTO hashes (id, kind, digits) VALUES (?, ?, ?)",
                [(entry.id, kind, digits) for kind, digits in found.items()],
            )
        )
        return found

    def thumbnail(self, id: str, size: int = 256) -> Path | None:  # noqa: A002
        """
        Give a small picture of an entry, written anew into :attr:`thumbnails_folder`.

        Returns:
            A WebP file; None where there is no preview, or none that can be shown (``notes`` says why).
        """
        entry = self.get(id)
        try:
            return thumbnails.thumbnail(entry, self._thumbnails, size)
        except thumbnails.PreviewError as error:
            note = f"the preview of {entry.name} {error}"
            if note not in self._notes and len(self._notes) < 1000:
                self._notes.append(note)
            return None

    def compatible(self, entry: Entry, base: str) -> Compatibility:
        """Tell whether an entry is for a base, as :func:`base_family` names it, and why not; see :func:`compatible`."""
        return compatible(entry, base)

    def _where(self, clause: str, *values: object) -> tuple[Entry, ...]:
        places = ", ".join("?" * len(self._roots))

        def work(connection: sqlite3.Connection) -> tuple[Entry, ...]:
            rows = connection.execute(
                f"SELECT * FROM files WHERE root IN ({places}) AND {clause} ORDER BY offline, name COLLATE NOCASE, path",
                (*map(str, self._roots), *values),
            ).fetchall()
            return _entries(connection, rows)

        return self._index.read(work)


def _entries(connection: sqlite3.Connection, rows: list[sqlite3.Row]) -> tuple[Entry, ...]:
    known = _schema.hashes_of(connection, [row["id"] for row in rows])
    return tuple(_schema.entry_of(row, known[row["id"]]) for row in rows)
