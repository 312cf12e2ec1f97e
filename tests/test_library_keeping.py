"""What a person says of adapters and does with their files: kept with the content, all or nothing, and had back."""

from __future__ import annotations

import errno
import json
import os
import sqlite3

import pytest
from PIL import Image

from lora_mixer import demo_adapters
from lora_mixer.errors import SaveError, SourceError
from lora_mixer.library import Library, _describing
from lora_mixer.library.changing import TRASH
from tests.loras import write_lora


@pytest.fixture
def folder(tmp_path):
    top = tmp_path / "loras"
    for name in ("ink", "styles/oil", "styles/old/etching", "people/fox"):
        write_lora(top / f"{name}.safetensors", seed=len(name))
    Image.new("RGB", (40, 30), (200, 0, 0)).save(top / "styles" / "oil.preview.png")
    (top / "styles" / "oil.json").write_text(
        json.dumps({"activation text": "oil paint", "notes": "use with care"})
    )
    return top


@pytest.fixture
def library(folder, tmp_path):
    made = Library(folder, index=tmp_path / "index.sqlite")
    made.refresh()
    return made


def one(library, name):
    (entry,) = library.find(name)
    return entry


def names(page):
    return [entry.name for entry in page.entries]


def test_marks_are_found_by_and_stay_with_the_content(library, folder, tmp_path):
    library.set_default(one(library, "oil").id, favourite=True, labels=["Künstler", "warm"], explicit=True)
    assert names(library.search(favourite=True)) == ["oil"]
    assert names(library.search(label="Künstler")) == ["oil"]
    assert names(library.search(label="Künst")) == []
    assert names(library.search("künstler")) == ["oil"]
    assert library.facets()["label"] == {"Künstler": 1, "warm": 1}

    (folder / "styles" / "oil.safetensors").rename(folder / "renamed.safetensors")
    (tmp_path / "index.sqlite").unlink()
    again = Library(folder, index=tmp_path / "index.sqlite")
    again.refresh()
    entry = one(again, "renamed")
    assert (entry.favourite, entry.labels, entry.explicit) == (True, ("Künstler", "warm"), True)
    again.set_default(entry.id, favourite=False, labels=[], explicit=None)
    entry = again.get(entry.id)
    assert (entry.favourite, entry.labels, entry.explicit) == (False, (), False)


@pytest.mark.parametrize(
    ("ending", "table", "explicit"),
    [
        (".civitai.info", {"model": {"nsfw": True}}, True),
        (".civitai.info", {"model": {"nsfw": False}}, False),
        (".metadata.json", {"preview_nsfw_level": 8}, True),
        (".metadata.json", {"preview_nsfw_level": 2}, False),
        (".metadata.json", {"civitai": {"model": {"nsfw": True}}}, True),
        (".cm-info.json", {"Nsfw": True}, True),
        (".cm-info.json", {"Nsfw": "yes"}, False),
    ],
)
def test_what_managers_say_of_a_preview_is_read_and_the_user_has_the_last_word(
    library, folder, ending, table, explicit
):
    (folder / f"ink{ending}").write_text(json.dumps(table))
    library.refresh()
    entry = one(library, "ink")
    assert entry.explicit is explicit
    assert library.set_default(entry.id, explicit=not explicit).explicit is not explicit
    assert library.set_default(entry.id, explicit=None).explicit is explicit


def test_notes_are_searched_those_of_the_file_and_the_users_own(library):
    assert names(library.search("care")) == ["oil"]
    library.set_default(one(library, "fox").id, notes="Schön bei Nacht")
    assert names(library.search("SCHÖN nacht")) == ["fox"]


@pytest.mark.parametrize(
    ("typed", "read", "found"),
    [
        ("etchng", "etching", ["etching"]),
        ("Ethcing", "etching", ["etching"]),
        ("oil pantt", "oil paint", ["oil"]),
        ("oil", "", ["oil"]),
        ("xylophone", "", []),
        ("oil xylophone", "", []),
    ],
)
def test_typos_are_forgiven_and_said(library, typed, read, found):
    page = library.search(typed)
    assert names(page) == found
    assert page.read_as == read


def test_only_what_fits_is_found_and_the_mixs_own_come_first(library, folder):
    write_lora(folder / "large.safetensors", base="SDXL")
    (folder / "broken.safetensors").write_bytes(b"\xff" * 64)
    library.refresh()
    base = one(library, "ink").base
    assert base != one(library, "large").base
    assert names(library.search(fits=base)) == ["etching", "fox", "ink", "oil"]
    assert all(library.compatible(entry, base).fits for entry in library.search(fits=base).entries)
    ids = [one(library, name).id for name in ("oil", "ink")]
    assert names(library.search(fits=base, first=ids)) == ["ink", "oil", "etching", "fox"]
    assert names(library.search(fits=base, first=ids, descending=True)) == ["oil", "ink", "fox", "etching"]


def test_folders_are_counted_by_place(library, folder):
    assert library.tree() == {folder: {"": 1, "people": 1, "styles": 1, "styles/old": 1}}
    assert names(library.search(root=folder, folder="styles")) == ["etching", "oil"]
    with pytest.raises(SourceError, match="none of the library's folders"):
        library.search(root=folder.parent)


def test_a_preview_of_ones_own_is_kept_beside_the_index_and_taken_back(library, folder, tmp_path):
    entry = one(library, "ink")
    before = sorted(folder.rglob("*"))
    Image.new("RGB", (300, 200), (0, 0, 250)).save(tmp_path / "made.png")
    kept = library.set_preview(entry.id, tmp_path / "made.png")
    assert sorted(folder.rglob("*")) == before
    with Image.open(library.thumbnail(kept.id, 64)) as small:
        assert small.convert("RGB").getpixel((5, 5))[2] > 200
    assert library.set_preview(entry.id, None).preview is None
    assert library.thumbnail(entry.id) is None
    (tmp_path / "none.png").write_bytes(b"x")
    with pytest.raises(SourceError, match=r"none\.png: is not a picture that can be read"):
        library.set_preview(entry.id, tmp_path / "none.png")


def test_a_file_is_renamed_and_moved_with_what_lies_beside_it(library, folder):
    entry = one(library, "oil")
    library.set_default(entry.id, weight=0.4, favourite=True)
    renamed = library.rename(entry.id, "gouache: wet")
    assert (renamed.id, renamed.name, renamed.weight, renamed.favourite) == (
        entry.id,
        "gouache_ wet",
        0.4,
        True,
    )
    assert sorted(path.name for path in (folder / "styles").iterdir() if path.is_file()) == [
        "gouache_ wet.json", "gouache_ wet.preview.png", "gouache_ wet.safetensors",
    ]  # fmt: skip
    assert one(library, "oil").id == entry.id  # found by the name that mixes and pictures of before have
    moved = library.move(entry.id, "new/wet")
    assert (moved.id, moved.folder, moved.preview) == (
        entry.id,
        "new/wet",
        folder / "new" / "wet" / "gouache_ wet.preview.png",
    )
    assert library.move(entry.id, "").folder == ""


@pytest.mark.parametrize("where", ["../outside", "a/../../b", ".hidden", "/etc", "a/.b", "con"])
def test_nothing_is_moved_out_of_the_library(library, folder, where):
    entry = one(library, "ink")
    before = sorted(folder.rglob("*"))
    if where == "/etc":
        assert (
            library.move(entry.id, where).path == folder / "etc" / "ink.safetensors"
        )  # a folder of that name in it
        return
    with pytest.raises(SourceError):
        library.move(entry.id, where)
    assert sorted(path for path in folder.rglob("*") if path.is_file()) == [
        path for path in before if path.is_file()
    ]


def test_names_that_are_taken_are_refused_and_nothing_is_half_moved(library, folder, monkeypatch):
    write_lora(folder / "styles" / "ink.safetensors", seed=9)
    library.refresh()
    oil = one(library, "oil")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(SourceError, match=r"ink\.safetensors already"):
        library.rename(oil.id, "ink")
    from pathlib import Path

    rename = Path.rename

    def refuse(self, target):
        if self.suffix == ".png" and "gouache" in str(target):
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(SaveError, match="No space"):
        library.rename(oil.id, "gouache")
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_peft_folder_goes_as_one(tmp_path):
    import shutil

    top = tmp_path / "loras"
    shutil.copytree(demo_adapters()["neon"].path, top / "neon")
    library = Library(top, index=tmp_path / "index.sqlite")
    library.refresh()
    renamed = library.rename(one(library, "neon").id, "bright")
    assert renamed.path == top / "bright" / "adapter_model.safetensors"
    assert (top / "bright" / "adapter_config.json").is_file()
    assert library.move(renamed.id, "lights").path == top / "lights" / "bright" / "adapter_model.safetensors"
    token = library.trash(one(library, "bright").id)
    assert not list(top.rglob("bright/*.safetensors")) or (top / TRASH).exists()
    assert library.find("bright") == ()
    (back,) = library.restore(token)
    assert back.path == top / "lights" / "bright" / "adapter_model.safetensors"


def test_the_trash_gives_all_back(library, folder):
    oil = library.rename(library.set_default(one(library, "oil").id, notes="mine").id, "gouache")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    token = library.trash(oil.id)
    assert library.find("gouache") == ()
    assert library.refresh().offline == 0
    assert not [path for path in folder.rglob("gouache*") if TRASH not in path.parts]
    (back,) = library.restore(token)
    assert (back.id, back.name, back.notes) == (oil.id, "gouache", "mine")
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    for wrong in (token, "0-../../etc", "7-x", "x", "0-"):
        with pytest.raises(SourceError, match="not in the library's trash"):
            library.restore(wrong)


def test_what_took_the_place_meanwhile_is_not_replaced(library, folder):
    token = library.trash(one(library, "ink").id)
    write_lora(folder / "ink.safetensors", seed=77)
    held = (folder / "ink.safetensors").read_bytes()
    with pytest.raises(SourceError, match="already"):
        library.restore(token)
    assert (folder / "ink.safetensors").read_bytes() == held


def test_duplicates_are_told_by_their_hashes(library, folder):
    (folder / "copy.safetensors").write_bytes((folder / "ink.safetensors").read_bytes())
    near = bytearray((folder / "people" / "fox.safetensors").read_bytes())
    near[-1] ^= 1  # the same header, other weights
    (folder / "near.safetensors").write_bytes(bytes(near))
    library.refresh()
    assert [sorted(entry.name for entry in group) for group in library.duplicates()] == [["copy", "ink"]]


def test_what_people_said_before_there_were_marks_is_kept(folder, tmp_path):
    with sqlite3.connect(tmp_path / "index.user.sqlite") as old:
        old.executescript(
            """
            CREATE TABLE said (content TEXT PRIMARY KEY, path TEXT NOT NULL, weight REAL, notes TEXT, words TEXT,
                uses INTEGER NOT NULL DEFAULT 0);
            CREATE INDEX said_by_path ON said (path);
            PRAGMA user_version = 1; PRAGMA application_id = 1282364001;
            """
        )
        old.execute(
            "INSERT INTO said VALUES ('x', ?, 0.3, 'old words', NULL, 4)", (str(folder / "ink.safetensors"),)
        )
    old.close()
    library = Library(folder, index=tmp_path / "index.sqlite")
    library.refresh()
    entry = one(library, "ink")
    assert (entry.weight, entry.notes, entry.uses, entry.favourite) == (0.3, "old words", 4, False)
    assert library.set_default(entry.id, favourite=True).notes == "old words"
    assert library.notes == ()


def _failing(monkeypatch: pytest.MonkeyPatch, place: str, error: Exception) -> None:
    """Have one of the two looks into a file fail."""

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(_describing, place, fail)


ERRORS = (
    MemoryError("no more"), OSError(errno.EMFILE, "Too many open files"), OSError(errno.EIO, "Input/output error"),
    SourceError("cannot be read"), RuntimeError("a fault of a reader"),
)  # fmt: skip


@pytest.mark.parametrize("error", ERRORS, ids=repr)
@pytest.mark.parametrize("place", ["content_key", "read_adapter"])
def test_what_kept_a_file_from_being_read_once_does_not_keep_it_for_good(
    library, folder, tmp_path, place, error
):
    """A file that is new, one that has changed, one that was moved by others."""
    ink = one(library, "ink")
    library.set_default(ink.id, labels=["mine"], favourite=True)
    write_lora(folder / "new.safetensors", base="SDXL", rank=3)
    os.utime(folder / "styles" / "oil.safetensors", ns=(5, 5))
    (folder / "ink.safetensors").rename(folder / "people" / "pen.safetensors")
    fresh = Library(folder, index=tmp_path / "fresh.sqlite")
    fresh.refresh()
    wanted = {e.name: (e.base, e.ranks, e.offline, e.problem) for e in fresh.search().entries}

    with pytest.MonkeyPatch.context() as patch:
        _failing(patch, place, error)
        assert library.refresh().unreadable == 3
    told = one(library, "new").problem
    assert "cannot be read" in told

    assert library.refresh().unreadable == sum(bool(problem) for *_, problem in wanted.values())
    assert {e.name: (e.base, e.ranks, e.offline, e.problem) for e in library.search().entries} == wanted
    pen = library.get(ink.id)
    assert (pen.name, pen.labels, pen.favourite) == ("pen", ("mine",), True)
    assert library.refresh().changed == 0


@pytest.mark.parametrize("error", ERRORS, ids=repr)
@pytest.mark.parametrize("place", ["content_key", "read_adapter"])
@pytest.mark.parametrize("call", ["rename", "move", "restore"])
def test_a_file_that_cannot_be_read_in_its_new_place_stays_where_it_was(
    library, folder, call, place, error, monkeypatch
):
    ink = one(library, "ink")
    library.set_default(ink.id, labels=["mine"])
    token = library.trash(ink.id) if call == "restore" else ""
    before = sorted(folder.rglob("*")), library.search().entries

    calls = {
        "rename": lambda: library.rename(ink.id, "pen"),
        "move": lambda: library.move(ink.id, "people"),
        "restore": lambda: library.restore(token),
    }

    with monkeypatch.context() as patch:
        _failing(patch, place, error)
        with pytest.raises(SourceError if isinstance(error, OSError) else type(error)):
            calls[call]()

    library.refresh()
    assert (sorted(folder.rglob("*")), library.search().entries) == before
    if call == "restore":
        assert library.restore(token)[0].labels == ("mine",)


def like(file, by, place):
    """Write a file that differs in its numbers alone: what trainers that write no metadata make of other pictures."""
    from safetensors.torch import load_file, save_file

    place.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: tensor * by for key, tensor in load_file(file).items()}, place)
    return place


@pytest.mark.parametrize("anew", [False, True])
@pytest.mark.parametrize("named", ["a", "z"])
def test_what_one_was_called_is_no_name_of_another_that_says_nothing_of_itself(tmp_path, named, anew):
    folder, first = tmp_path / "loras", tmp_path / "first.safetensors"
    write_lora(first)
    one_file = like(first, 1.0, folder / "m.safetensors")
    like(first, 2.0, folder / f"{named}.safetensors")
    library = Library(folder, index=tmp_path / "index.sqlite")
    library.refresh()
    library.rename(one(library, "m").id, "n")
    library.set_default(one(library, named).id, notes="said of the other one later")
    like(first, 3.0, folder / f"{named}{named}.safetensors")
    library.refresh()
    if anew:
        (tmp_path / "index.sqlite").unlink()
        library = Library(folder, index=tmp_path / "index.sqlite")
        library.refresh()
    assert names(library.search()) == sorted([named, named * 2, "n"])
    assert [entry.name for entry in library.find("m")] == ["n"]
    library.rename(one(library, "n").id, "m")
    assert one_file.is_file()
    assert [entry.name for entry in library.find("n")] == ["m"]


@pytest.mark.parametrize(("which", "folder_to"), [("b", "0"), ("b", ""), ("a", "z"), ("a", "b/c")])
def test_a_name_that_several_have_is_the_first_ones_wherever_they_move(tmp_path, which, folder_to):
    top = tmp_path / "loras"
    for number, name in enumerate(("a", "b")):
        write_lora(top / name / "ink.safetensors", seed=number)
    library = Library(top, index=tmp_path / "index.sqlite")
    library.refresh()
    before = [entry.id for entry in library.find("ink")]
    assert [library.get(each).folder for each in before] == ["a", "b"]
    moved = next(each for each in before if library.get(each).folder == which)
    library.move(moved, folder_to)
    assert [entry.id for entry in library.find("ink")] == before


def test_what_comes_back_from_the_trash_takes_no_name_from_who_has_it_by_then(tmp_path):
    top = tmp_path / "loras"
    write_lora(top / "ink.safetensors", seed=1)
    library = Library(top, index=tmp_path / "index.sqlite")
    library.refresh()
    token = library.trash(one(library, "ink").id)
    write_lora(tmp_path / "other.safetensors", seed=2)
    other = library.add(tmp_path / "other.safetensors", "ink")
    library.move(other.id, "sub")
    (back,) = library.restore(token)
    assert [entry.id for entry in library.find("ink")] == [other.id, back.id]
