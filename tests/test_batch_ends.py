"""How a batch ends on a full or read-only disk and on manifests that are damaged, of both kinds: exit codes and last lines."""

from __future__ import annotations

import errno
import itertools
import json
import os
import re
import sqlite3
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from lora_mixer import atomic
from lora_mixer.batches import manifest
from lora_mixer.cli._app import app
from tests.batch_plans import hashes, plan_for

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

KINDS = ("jsonl", "sqlite")


def half(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-10] if path.suffix == ".jsonl" else data[: len(data) * 2 // 3])


def records(path: Path, change: Callable[[int, str, int], Any]) -> None:
    """Change the records of a manifest, of either kind."""
    if path.suffix == ".jsonl":
        lines = path.read_text().splitlines()
        last = len(lines) - 1
        path.write_text("".join(f"{change(n, line, last)}\n" for n, line in enumerate(lines)))
        return
    base = sqlite3.connect(path)
    with base:
        rows = base.execute("SELECT idx, record FROM pictures").fetchall()
        for number, (index, text) in enumerate(rows):
            base.execute(
                "UPDATE pictures SET record = ? WHERE idx = ?", (change(number, text, len(rows) - 1), index)
            )
    base.close()


def fields(text: str, **changed: Any) -> str:
    return json.dumps({**json.loads(text), **changed})


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def both(code: int, line: str) -> dict[str, tuple[int, str]]:
    return dict.fromkeys(KINDS, (code, line))


GOES_ON = (0, r"^\d made, \d kept, 0 failed, 0 left: ")
FOREIGN = (
    2,
    r"^error: .* is there and is not a manifest of lora_mixer; give this plan another output\.manifest",
)
UNKNOWN = (2, r"^error: .*: \d files in it .* would be lost: .*--out and --replace\W*$")

DAMAGE: dict[str, tuple[Callable[[Path], Any], dict[str, tuple[int, str]]]] = {
    "cut": (half, {"jsonl": GOES_ON, "sqlite": FOREIGN}),
    "empty": (lambda path: path.write_bytes(b""), both(*UNKNOWN)),
    "noise": (lambda path: path.write_bytes(bytes(range(256)) * 20), both(*FOREIGN)),
    "text": (lambda path: path.write_text("hello\n"), both(*FOREIGN)),
    "the last record no JSON": (
        lambda path: records(path, lambda n, t, last: "no json" if n == last else t),
        {"jsonl": GOES_ON, "sqlite": UNKNOWN},  # lines say before that the picture was begun: it is made again
    ),
    "no fields": (lambda path: records(path, lambda *_: "{}"), {"jsonl": FOREIGN, "sqlite": UNKNOWN}),
    "deep": (lambda path: records(path, lambda *_: "[" * 50_000), {"jsonl": FOREIGN, "sqlite": UNKNOWN}),
    "other types": (lambda path: records(path, lambda n, t, _: fields(t, digest=7, key=7)), both(*UNKNOWN)),
    "paths outside": (
        lambda path: records(path, lambda n, t, _: fields(t, file="../../x.png")),
        {"jsonl": UNKNOWN, "sqlite": GOES_ON},  # a database knows files by its own column
    ),
    "huge numbers": (lambda path: records(path, lambda n, t, _: fields(t, index=10**30)), both(*GOES_ON)),
    "a pipe": (fifo, both(2, r"^error: .*: the manifest is a FIFO; expected a regular file$")),
    "a folder": (folder, both(2, r"^error: .*: the manifest is a folder; expected a regular file$")),
    "gone": (lambda path: path.unlink(), both(*UNKNOWN)),
}  # fmt: skip
"""By what was done to the manifest of a finished run: exit code and last line of the same command, by the manifest's kind."""


def run(plan: Path) -> tuple[int, str, str]:
    """Run the command; give its exit code, its last line, and all that it said."""
    done = CliRunner().invoke(app, ["batch", str(plan)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    said = done.stdout if done.exit_code == 0 else done.stderr
    return done.exit_code, said.strip().splitlines()[-1], done.output


@pytest.fixture
def plan(model_folder: Path, tmp_path: Path, kind: str) -> Path:
    place = tmp_path / "plan.json"
    output = {"manifest": str(tmp_path / f"m.{kind}")}
    place.write_text(json.dumps(plan_for(model_folder, tmp_path / "out", [{"repeat": 3}], output=output)))
    return place


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_manifest_ends_in_one_sentence_and_costs_no_picture(
    plan: Path, tmp_path: Path, what: str, kind: str
) -> None:
    assert run(plan)[0] == 0
    before = hashes(tmp_path / "out")
    damage, ends = DAMAGE[what]
    damage(tmp_path / f"m.{kind}")

    code, line, said = run(plan)

    assert code == ends[kind][0], said
    assert re.search(ends[kind][1], line), line
    assert "Traceback" not in said
    assert len(said) < 5_000
    assert hashes(tmp_path / "out") == before


DISKS = {
    "full": (errno.ENOSPC, "No space left on device"),
    "read-only": (errno.EROFS, "Read-only file system"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("disk", DISKS)
@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_disk_that_refuses_pictures_ends_the_run_and_the_next_one_goes_on(
    plan: Path, tmp_path: Path, disk: str, at: int, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    number, words = DISKS[disk]
    writes = itertools.count()

    def fsync(_: int) -> None:
        if next(writes) >= at:
            raise OSError(number, words)

    with monkeypatch.context() as patch:
        patch.setattr(atomic, "os", SimpleNamespace(fsync=fsync))
        code, line, said = run(plan)
    assert code == 2, said
    assert re.search(rf"^error: .*{words}.*goes on from here", line), line
    assert "Traceback" not in said
    assert len(hashes(tmp_path / "out")) == at
    assert not list(tmp_path.rglob("*.tmp"))

    code, line, said = run(plan)
    assert (code, line.partition(":")[0]) == (0, f"{3 - at} made, {at} kept, 0 failed, 0 left"), said


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("disk", DISKS)
def test_a_disk_that_refuses_the_manifest_ends_the_run_and_the_next_one_goes_on(
    plan: Path, tmp_path: Path, disk: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    number, words = DISKS[disk]
    own = {"jsonl": manifest._Lines, "sqlite": manifest._Table}[kind]
    whole, writes = own.add, itertools.count()

    def add(self: Any, *arguments: Any, **named: Any) -> Any:
        if next(writes) >= 3:
            with monkeypatch.context() as patch:
                if kind == "jsonl":
                    patch.setattr(self, "_stream", Full(self._stream, OSError(number, words)))
                else:
                    patch.setattr(self, "_base", Full(self._base, sqlite3.OperationalError(words)))
                return whole(self, *arguments, **named)
        return whole(self, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(own, "add", add)
        code, line, said = run(plan)
    assert code == 2, said
    assert line.startswith("error: ")
    assert words in line
    assert "Traceback" not in said
    code, line, said = run(plan)
    assert (code, line.rpartition(" kept")[2].partition(":")[0]) == (0, ", 0 failed, 0 left"), said
    assert len(hashes(tmp_path / "out")) == 3


class Full:
    """A stream or a database whose disk refuses every write."""

    def __init__(self, inner: Any, error: Exception) -> None:
        self._inner, self._error = inner, error

    def __getattr__(self, name: str) -> Any:
        if name in ("write", "execute", "truncate"):
            raise self._error
        return getattr(self._inner, name)

    def __enter__(self) -> Any:
        return self._inner.__enter__()

    def __exit__(self, *error: object) -> Any:
        return self._inner.__exit__(*error)
