"""The tables: what scans find, which can be found again; and what the user said, which cannot and lies in a file of its own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_mixer.library.entry import Entry
from lora_mixer.parsing.json_text import loose_json

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Mapping

INDEX_VERSION = 2
INDEX = """
CREATE TABLE files (
    id TEXT PRIMARY KEY, root TEXT NOT NULL, path TEXT NOT NULL UNIQUE, folder TEXT NOT NULL,
    size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, beside TEXT NOT NULL, preview TEXT NOT NULL,
    name TEXT NOT NULL, base TEXT NOT NULL, format TEXT NOT NULL, algorithms TEXT NOT NULL, ranks TEXT NOT NULL,
    rank INTEGER NOT NULL, title TEXT NOT NULL, words TEXT NOT NULL, tags TEXT NOT NULL, notes TEXT NOT NULL,
    weight REAL, negative_text TEXT NOT NULL, declared TEXT, content TEXT NOT NULL, problem TEXT NOT NULL,
    haystack TEXT NOT NULL, offline INTEGER NOT NULL DEFAULT 0,
    explicit INTEGER NOT NULL DEFAULT 0,
    own_weight REAL, own_notes TEXT, own_words TEXT, uses INTEGER NOT NULL DEFAULT 0,
    favourite INTEGER NOT NULL DEFAULT 0, labels TEXT, own_explicit INTEGER, own_preview TEXT, former TEXT
);
CREATE INDEX files_by_root ON files (root);
CREATE INDEX files_by_content ON files (content);
CREATE TABLE hashes (id TEXT NOT NULL, kind TEXT NOT NULL, digits TEXT NOT NULL, PRIMARY KEY (id, kind));
CREATE INDEX hashes_by_digits ON hashes (digits)
"""

USER_VERSION = 2
USER = """
CREATE TABLE said (
    content TEXT PRIMARY KEY, path TEXT NOT NULL, weight REAL, notes TEXT, words TEXT, uses INTEGER NOT NULL DEFAULT 0,
    favourite INTEGER NOT NULL DEFAULT 0, labels TEXT, explicit INTEGER, preview TEXT, former TEXT
);
CREATE INDEX said_by_path ON said (path)
"""

USER_UPGRADES = {
    1: """
ALTER TABLE said ADD COLUMN favourite INTEGER NOT NULL DEFAULT 0;
ALTER TABLE said ADD COLUMN labels TEXT;
ALTER TABLE said ADD COLUMN explicit INTEGER;
ALTER TABLE said ADD COLUMN preview TEXT;
ALTER TABLE said ADD COLUMN former TEXT
"""
}
"""What makes a file of an older version one of the next."""

SCANNED = (
    *(
        "root",
        "path",
        "folder",
        "size",
        "mtime_ns",
        "beside",
        "preview",
        "name",
        "base",
        "format",
        "algorithms",
    ),
    *("ranks", "rank", "title", "words", "tags", "notes", "weight", "negative_text", "declared", "content"),
    *("problem", "haystack", "explicit"),
)
"""Columns that a scan fills."""
SAID = {
    "own_weight": "weight",
    "own_notes": "notes",
    "own_words": "words",
    "uses": "uses",
    "favourite": "favourite",
    "labels": "labels",
    "own_explicit": "explicit",
    "own_preview": "preview",
    "former": "former",
}
"""Columns that repeat what the user said, so that searches see it."""
OWN_TEXT = (
    "casefold(coalesce(own_words, '') || ' ' || coalesce(own_notes, '') || ' ' || coalesce(labels, ''))"
)
"""What the user wrote, for searches."""


def entry_of(row: sqlite3.Row, hashes: Mapping[str, str], previews: Path) -> Entry:
    """Make an entry of a row of ``files``, the hashes that belong to it, and the folder of the user's own previews."""
    own_words = row["own_words"]
    beside = Path(row["path"]).with_name(row["preview"]) if row["preview"] else None
    return Entry(
        id=row["id"],
        name=row["name"],
        path=Path(row["path"]),
        root=Path(row["root"]),
        folder=row["folder"],
        base=row["base"],
        format=row["format"],
        algorithms=tuple(loose_json(row["algorithms"])),
        ranks=tuple(loose_json(row["ranks"])),
        bytes=row["size"],
        mtime=row["mtime_ns"] / 1e9,
        title=row["title"],
        trigger_words=tuple(loose_json(row["words"] if own_words is None else own_words)),
        tags=tuple(loose_json(row["tags"])),
        notes=row["notes"] if row["own_notes"] is None else row["own_notes"],
        weight=row["weight"] if row["own_weight"] is None else row["own_weight"],
        negative_text=row["negative_text"],
        preview=previews / row["own_preview"] if row["own_preview"] else beside,
        hashes={**({"declared": row["declared"]} if row["declared"] else {}), **hashes},
        uses=row["uses"],
        offline=bool(row["offline"]),
        problem=row["problem"],
        favourite=bool(row["favourite"]),
        labels=tuple(loose_json(row["labels"] or "[]")),
        explicit=bool(row["explicit"] if row["own_explicit"] is None else row["own_explicit"]),
    )


def hashes_of(connection: sqlite3.Connection, ids: list[str]) -> dict[str, dict[str, str]]:
    """Return the known hashes of some entries, by kind, by id."""
    digits: dict[str, dict[str, str]] = {each: {} for each in ids}
    for start in range(0, len(ids), 500):  # SQLite counts the places for values
        part = ids[start : start + 500]
        places = ", ".join("?" * len(part))
        rows: Any = connection.execute(f"SELECT id, kind, digits FROM hashes WHERE id IN ({places})", part)
        for row in rows:
            digits[row["id"]][row["kind"]] = row["digits"]
    return digits
