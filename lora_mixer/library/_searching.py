"""Searches in the index: words anywhere in names, titles, trigger words, tags and folders; exact names first."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lora_mixer.errors import SourceError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

SORTS = {
    "name": "name COLLATE NOCASE",
    "date": "mtime_ns",
    "size": "size",
    "rank": "rank",
    "uses": "uses",
}
"""What entries can be sorted by."""
PAGE_AT_MOST = 1000
_WORDS_AT_MOST = 20


@dataclass(frozen=True)
class Query:
    """A part of an SQL statement, and its values."""

    where: str
    order: str
    values: tuple[object, ...]
    order_values: tuple[object, ...]


def storable(value: Any) -> Any:
    """Return a value as SQLite takes it: texts without half pairs of surrogates, which no file's row has."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def query(
    roots: Sequence[Path],
    text: str,
    *,
    base: str | None,
    algorithm: str | None,
    folder: str | None,
    offline: bool | None,
    sort: str,
    descending: bool,
) -> Query:
    """
    Build a search; the arguments are those of :meth:`Library.search`.

    Raises:
        SourceError: There is no such order.
    """
    if sort not in SORTS:
        raise SourceError(f"sort must be one of {', '.join(SORTS)}, got {sort!r}")
    clauses = [f"root IN ({', '.join('?' * len(roots))})"]
    values: list[object] = [str(root) for root in roots]
    for word in text.casefold().split()[:_WORDS_AT_MOST]:
        clauses.append("(instr(haystack, ?) > 0 OR instr(lower(own_words), ?) > 0)")
        values += [word, word]
    if base is not None:
        clauses.append("base = ?")
        values.append(base)
    if algorithm is not None:
        clauses.append("instr(algorithms, ?) > 0")
        values.append(json.dumps(algorithm))
    if folder is not None:
        clauses.append("(folder = ? OR substr(folder, 1, ?) = ?)")
        inside = f"{folder.strip('/')}/"
        values += [folder.strip("/"), len(inside), inside] if folder.strip("/") else ["", 0, ""]
    if offline is not None:
        clauses.append("offline = ?")
        values.append(int(offline))
    direction = "DESC" if descending else "ASC"
    wanted = text.strip()
    nearness = "CASE WHEN name = ? COLLATE NOCASE THEN 0 WHEN substr(name, 1, ?) = ? COLLATE NOCASE THEN 1 ELSE 2 END, "
    return Query(
        where=" AND ".join(clauses),
        order=f"{nearness if wanted else ''}{SORTS[sort]} {direction}, name COLLATE NOCASE, path",
        values=tuple(values),
        order_values=(wanted, len(wanted), wanted) if wanted else (),
    )
