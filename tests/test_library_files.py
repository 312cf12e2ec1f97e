"""The library's SQLite files: another program's is never touched, and what people said is never dropped."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file

from lora_mixer import Library, SourceError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "adapters"
    place.mkdir()
    pair = {"lora_unet_a.lora_down.weight": torch.ones(2, 4), "lora_unet_a.lora_up.weight": torch.ones(4, 2)}
    save_file(pair, place / "one.safetensors")
    return place


def change(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path)) as base:
        for statement in statements:
            base.execute(statement)
        base.commit()


def pragma(path: Path, name: str) -> int:
    with closing(sqlite3.connect(path)) as base:
        return int(base.execute(f"PRAGMA {name}").fetchone()[0])


@pytest.mark.parametrize("ending", ["sqlite", "user.sqlite"])
@pytest.mark.parametrize(
    "marks",
    [
        (),
        ("PRAGMA user_version = 1",),
        ("PRAGMA user_version = 9", "PRAGMA application_id = 77"),
        ("CREATE TABLE files (id TEXT)", "CREATE TABLE said (content TEXT)"),
    ],
)
def test_a_file_of_another_program_is_refused_and_stays_byte_for_byte(
    folder: Path, tmp_path: Path, ending: str, marks: tuple[str, ...]
) -> None:
    place = tmp_path / f"index.{ending}"
    change(place, "CREATE TABLE photos (name TEXT)", "INSERT INTO photos VALUES ('holiday')", *marks)
    before = place.read_bytes()

    with pytest.raises(SourceError, match=r"a SQLite file of another program .*photos"):
        Library(folder, index=tmp_path / "index.sqlite").refresh()

    assert place.read_bytes() == before


def test_files_say_that_they_are_a_librarys_and_those_from_before_are_taken_over(
    folder: Path, tmp_path: Path
) -> None:
    library = Library(folder, index=tmp_path / "index.sqlite")
    library.refresh()
    (entry,) = library.find("one")
    library.set_default(entry.id, weight=0.4, notes="mine")
    files = [tmp_path / "index.sqlite", tmp_path / "index.user.sqlite"]
    assert [pragma(file, "application_id") for file in files] == [0x4C6F5261] * 2
    for file in files:
        change(file, "PRAGMA application_id = 0")

    again = Library(folder, index=tmp_path / "index.sqlite")

    assert again.find("one")[0].notes == "mine"
    assert [pragma(file, "application_id") for file in files] == [0x4C6F5261] * 2
    assert not list(tmp_path.glob("*.other-version-*"))


@pytest.mark.parametrize("version", [3, 99])
@pytest.mark.parametrize("marked", [True, False])
def test_what_people_said_in_a_file_of_another_version_is_set_aside_whole(
    folder: Path, tmp_path: Path, version: int, marked: bool
) -> None:
    library = Library(folder, index=tmp_path / "index.sqlite")
    library.refresh()
    library.set_default(library.find("one")[0].id, notes="years of work")
    user = tmp_path / "index.user.sqlite"
    change(user, f"PRAGMA user_version = {version}", *([] if marked else ["PRAGMA application_id = 0"]))

    again = Library(folder, index=tmp_path / "index.sqlite")
    again.refresh()

    (aside,) = tmp_path.glob("index.user.sqlite.other-version-*")
    with closing(sqlite3.connect(aside)) as base:
        assert base.execute("SELECT notes FROM said").fetchall() == [("years of work",)]
    assert pragma(user, "user_version") == 2
    assert any(aside.name in note for note in again.notes)


def test_an_index_of_another_version_is_made_anew_since_scans_find_all_of_it(
    folder: Path, tmp_path: Path
) -> None:
    Library(folder, index=tmp_path / "index.sqlite").refresh()
    change(tmp_path / "index.sqlite", "PRAGMA user_version = 5")

    again = Library(folder, index=tmp_path / "index.sqlite")

    assert again.refresh().added == 1
    assert any("is of version 5" in note for note in again.notes)
