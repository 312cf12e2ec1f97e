"""
Folders into the index: what is as it was costs a look at the folder, what is new or changed is read, nothing is deleted.

A file that is gone may be on a disk that is away, so its entry stays, marked offline. One that shows up elsewhere with
the same content is the same entry in another place.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lora_mixer.library._describing import describe_file
from lora_mixer.library._schema import SAID, SCANNED
from lora_mixer.library._walking import WalkedFile, walk
from lora_mixer.library.entry import Refreshed

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from lora_mixer.library._database import Database

    Progress = Callable[[int, int, str], object]

_SAME = "id, path, content, size, mtime_ns"
_BATCH = 50  # so much is lost at most when the process is killed, and others can write in between


@dataclass
class _ScanPlan:
    """What a look at the folders says is to be done."""

    todo: list[tuple[str, WalkedFile]] = field(default_factory=list)
    back: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    unchanged: int = 0
    known: set[str] = field(default_factory=set)
    missing: dict[str, list[sqlite3.Row]] = field(default_factory=dict)
    """Entries whose files were not in their places when a file of that content first came up."""
    problems: list[str] = field(default_factory=list)
    failures: dict[str, Exception] = field(default_factory=dict)


def refresh(
    index: Database, user: Database, roots: Sequence[Path], progress: Progress | None
) -> tuple[Refreshed, Mapping[str, Exception]]:
    """
    Bring the index up to date.

    Args:
        index: What scans find.
        user: What the user said.
        roots: The folders.
        progress: Called with how many files are done, how many there are, and the name of the one in hand.

    Returns:
        What it did, and by path why files could not be read where that does not lie in their content.
    """
    plan = _plan(index, roots)
    total = len(plan.todo) + plan.unchanged
    done, counts = plan.unchanged, Counter[str]()
    if progress is not None:
        progress(done, total, "")
    for start in range(0, len(plan.todo), _BATCH):
        rows = []
        for root, file in plan.todo[start : start + _BATCH]:
            described = describe_file(file)
            rows.append({"root": root, **described.row})
            if described.failure is not None:
                plan.failures[file.path] = described.failure
            done += 1
            if progress is not None:
                progress(done, total, rows[-1]["name"])
        counts.update(index.write(lambda connection, rows=rows: _put_all(connection, user, rows, plan)))  # type: ignore[misc]
        counts["unreadable"] += sum(bool(row["problem"]) for row in rows)
    offline = index.write(lambda connection: _mark(connection, plan, roots))
    found = Refreshed(
        added=counts["added"],
        changed=counts["changed"],
        moved=counts["moved"],
        unchanged=plan.unchanged,
        offline=offline,
        unreadable=counts["unreadable"],
        notes=tuple(plan.problems),
    )
    return found, plan.failures


def _plan(index: Database, roots: Sequence[Path]) -> _ScanPlan:
    plan = _ScanPlan()
    for root in roots:
        rows = index.read(
            lambda connection, root=root: {  # type: ignore[misc]
                row["path"]: row
                for row in connection.execute(
                    "SELECT path, size, mtime_ns, beside, preview, offline FROM files WHERE root = ?",
                    (str(root),),
                )
            }
        )
        plan.known |= set(rows)
        for file in walk(root, plan.problems):
            row = rows.pop(file.path, None)
            if not _is_text(file.path):
                plan.problems.append(f"{file.path!r}: the name is in no known encoding; rename the file")
            elif row is None or tuple(row)[1:5] != (file.size, file.mtime_ns, file.beside, file.preview):
                plan.todo.append((str(root), file))
            else:
                plan.unchanged += 1
                if row["offline"]:
                    plan.back.append(file.path)
        plan.gone += rows
    plan.todo.sort(
        key=lambda each: each[1].path
    )  # who comes first has a right to a name: not as a disk lists them
    return plan


def _is_text(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _put_all(
    connection: sqlite3.Connection, user: Database, rows: list[dict[str, Any]], plan: _ScanPlan
) -> list[str]:
    """Write rows with what the user said; read while nobody else writes the index, so that nothing old replaces newer."""
    said = user.read(lambda other: [_said(other, row) for row in rows])
    return [_put(connection, row, words, plan) for row, words in zip(rows, said, strict=True)]


def _said(connection: sqlite3.Connection, row: dict[str, Any]) -> dict[str, Any]:
    """Return what the user said of a file: of this content, or else of what lay in this place before."""
    for column in ("content", "path"):
        known = connection.execute(f"SELECT * FROM said WHERE {column} = ?", (row[column],)).fetchone()
        if known is not None:
            said = {name: known[column] for name, column in SAID.items()}
            if known["path"] != row["path"] and os.path.lexists(known["path"]):
                del said["former"]  # who was called so is there: no other takes these names over
            return said
    return {}


def _put(connection: sqlite3.Connection, row: dict[str, Any], said: dict[str, Any], plan: _ScanPlan) -> str:
    """Write one row, and say whether the file was added, changed or moved."""
    values = {column: row[column] for column in SCANNED} | {"offline": 0} | said
    old = connection.execute(f"SELECT {_SAME} FROM files WHERE path = ?", (row["path"],)).fetchone()
    kind = "changed" if row["path"] in plan.known else "added"
    if (old is None or not old["content"]) and (moved := _moved(connection, row, plan.missing)):
        if old is not None:  # what was there could not be read when it was found in this place
            for table in ("files", "hashes"):
                connection.execute(f"DELETE FROM {table} WHERE id = ?", (old["id"],))
        old, kind = moved, "moved"
    if old is not None:
        if any(old[column] != row[column] for column in ("content", "size", "mtime_ns")):
            connection.execute("DELETE FROM hashes WHERE id = ?", (old["id"],))
        sets = ", ".join(f"{column} = :{column}" for column in values)
        connection.execute(f"UPDATE files SET {sets} WHERE id = :id", {**values, "id": old["id"]})
        return kind
    values["id"] = _new_id(connection, row["path"])
    columns = ", ".join(values)
    places = ", ".join(f":{column}" for column in values)
    connection.execute(f"INSERT INTO files ({columns}) VALUES ({places})", values)
    return kind


def _moved(
    connection: sqlite3.Connection, row: dict[str, Any], missing: dict[str, list[sqlite3.Row]]
) -> sqlite3.Row | None:
    """Find the entry that this file had in another place, where it is no more."""
    if not row["content"]:
        return None
    content = row["content"]
    if content not in missing:  # once: of thousands of equal files, those that this scan adds are there
        rows = connection.execute(f"SELECT {_SAME} FROM files WHERE content = ?", (content,)).fetchall()
        missing[content] = [each for each in reversed(rows) if not os.path.lexists(each["path"])]
    return missing[content].pop() if missing[content] else None


def _new_id(connection: sqlite3.Connection, path: str) -> str:
    """Return letters that are the same when the index is made anew, unless a moved file has them."""
    wanted = hashlib.sha256(path.encode()).hexdigest()[:16]
    taken = connection.execute("SELECT 1 FROM files WHERE id = ?", (wanted,)).fetchone()
    return wanted if taken is None else secrets.token_hex(8)


def _mark(connection: sqlite3.Connection, plan: _ScanPlan, roots: Sequence[Path]) -> int:
    """Say which files are there, and count those that are not; of what could never be read there is nothing to be kept."""
    connection.executemany("UPDATE files SET offline = 0 WHERE path = ?", [(path,) for path in plan.back])
    unread = "SELECT id FROM files WHERE path = ? AND content = ''"
    for table in ("hashes", "files"):
        connection.executemany(f"DELETE FROM {table} WHERE id IN ({unread})", [(path,) for path in plan.gone])
    connection.executemany("UPDATE files SET offline = 1 WHERE path = ?", [(path,) for path in plan.gone])
    places = ", ".join("?" * len(roots))
    counted = connection.execute(
        f"SELECT COUNT(*) FROM files WHERE offline = 1 AND root IN ({places})",
        [str(root) for root in roots],
    ).fetchone()
    return int(counted[0])
