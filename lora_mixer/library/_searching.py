"""Searches in the index: words anywhere in names, titles, trigger words, tags and folders; exact names first."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lora_mixer.errors import SourceError
from lora_mixer.library._schema import OWN_TEXT

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path


@dataclass(frozen=True)
class SortOrder:
    """
    An order of entries.

    Attributes:
        name: What ``Library.search(sort=...)`` calls it.
        title: What people call it.
        column: What the index sorts by.
        greatest_first: What people call it with the greatest first; empty where nobody asks for that.

    Example:
        >>> SORTS["date"].title, SORTS["date"].greatest_first
        ('Date', 'Newest')
    """

    name: str
    title: str
    column: str
    greatest_first: str = ""


SORTS: dict[str, SortOrder] = {
    row.name: row
    for row in (
        SortOrder("name", "Name", "name COLLATE NOCASE"),
        SortOrder("date", "Date", "mtime_ns", "Newest"),
        SortOrder("size", "Size", "size", "Largest"),
        SortOrder("rank", "Rank", "rank"),
        SortOrder("uses", "Uses", "uses", "Most used"),
        SortOrder("base", "Base", "base COLLATE NOCASE"),
        SortOrder("folder", "Folder", "folder COLLATE NOCASE"),
        SortOrder("favourite", "Favourites", "favourite"),
    )
}
"""What entries can be sorted by."""
PAGE_AT_MOST = 1000
_WORDS_AT_MOST = 20
_LONGEST, _ALIKE = 40, 0.72


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
    bases: Sequence[str] | None,
    algorithm: str | None,
    root: str | None,
    folder: str | None,
    label: str | None,
    favourite: bool | None,
    offline: bool | None,
    sort: str,
    descending: bool,
    first: Sequence[str],
) -> Query:
    """
    Build a search; the arguments are those of :meth:`Library.search`.

    Raises:
        SourceError: There is no such order.
    """
    if sort not in SORTS:
        raise SourceError(f"sort must be one of {', '.join(SORTS)}, got {sort!r}", argument="sort")
    clauses = [f"root IN ({', '.join('?' * len(roots))})"]
    values: list[object] = [str(root) for root in roots]
    for word in text.casefold().split()[:_WORDS_AT_MOST]:
        clauses.append(f"(instr(haystack, ?) > 0 OR instr({OWN_TEXT}, ?) > 0)")
        values += [word, word]
    plain: dict[str, Any] = {
        "base = ?": base,
        "root = ?": root,
        "favourite = ?": None if favourite is None else int(favourite),
        "offline = ?": None if offline is None else int(offline),
        "instr(algorithms, ?) > 0": None if algorithm is None else json.dumps(algorithm),
        "instr(labels, ?) > 0": None if label is None else json.dumps(label, ensure_ascii=False),
    }
    for clause, value in plain.items():
        if value is not None:
            clauses.append(clause)
            values.append(value)
    if bases is not None:
        clauses.append(f"base IN ({', '.join('?' * len(bases))}) AND problem = '' AND offline = 0")
        values += bases
    if folder is not None:
        clauses.append("(folder = ? OR substr(folder, 1, ?) = ?)")
        inside = f"{folder.strip('/')}/"
        values += [folder.strip("/"), len(inside), inside] if folder.strip("/") else ["", 0, ""]
    direction = "DESC" if descending else "ASC"
    wanted = text.strip()
    ahead = f"CASE WHEN id IN ({', '.join('?' * len(first))}) THEN 0 ELSE 1 END, " if first else ""
    nearness = "CASE WHEN name = ? COLLATE NOCASE THEN 0 WHEN substr(name, 1, ?) = ? COLLATE NOCASE THEN 1 ELSE 2 END, "
    return Query(
        where=" AND ".join(clauses),
        order=f"{ahead}{nearness if wanted else ''}{SORTS[sort].column} {direction}, name COLLATE NOCASE, path",
        values=tuple(values),
        order_values=(*first, *((wanted, len(wanted), wanted) if wanted else ())),
    )


def near_words(text: str, written: Iterable[str]) -> str:
    """
    Return a search with each word that nothing has replaced by the most like one that something has.

    Args:
        text: The search.
        written: All texts that are searched, casefolded.

    Returns:
        The words, or nothing where one has no like.

    Example:
        >>> near_words("watercolr fox", ["watercolor painting", "foxes"])
        'watercolor fox'
    """
    import difflib

    texts = list(written)
    known: set[str] | None = None
    words = []
    for word in text.casefold().split()[:_WORDS_AT_MOST]:
        if any(word in each for each in texts):
            words.append(word)
            continue
        if known is None:
            known = {each for each in re.split(r"[\W_]+", " ".join(texts)) if 3 <= len(each) <= _LONGEST}
        near = difflib.get_close_matches(word[:_LONGEST], known, 1, _ALIKE)
        if not near:
            return ""
        words += near
    return " ".join(words)
