"""Saved mixes survive: kills, other processes, odd names, damaged files, and changes of mind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lora_mixer.errors import MixError, SaveError
from lora_mixer.library import SavedMixes
from lora_mixer.mixes import Mask, Mix

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def book(tmp_path):
    return SavedMixes(tmp_path / "deep" / "mixes.json")


def saved(book):
    return {name: book.load(name).to_text() for name in book.list()}


def test_mixes_come_back_equal_in_another_book(book):
    mixes = {
        "evening": Mix.of("ink:0.8,te=0.2,schedule=linear(0, 1), oil:-0.5,lbw=OUTALL"),
        "城 🏰": Mix.of({"adapters": {"a": {"unet": {"down": 0.5}}, "b": 1}, "method": "switch(2)"}),
        "empty": Mix(),
    }
    for name, mix in mixes.items():
        book.save(name, mix)

    again = SavedMixes(book.path)

    assert again.list() == tuple(mixes)
    assert {name: again.load(name) for name in again.list()} == mixes


def test_a_book_that_is_not_there_is_empty(book):
    assert book.list() == ()
    assert not book.path.exists()
    with pytest.raises(MixError, match='no saved mix "x"; there are none'):
        book.load("x")


def test_every_change_can_be_taken_back_in_turn(book):
    book.save("a", "x:1")
    book.save("b", "y:1")
    book.save("a", "x:0.5")
    book.rename("b", "c")
    book.delete("a")

    seen = [(book.undo(), saved(book)) for _ in range(5)]

    assert seen == [
        ('deletion of "a"', {"a": "x:0.5", "c": "y:1"}),
        ('renaming of "b" to "c"', {"a": "x:0.5", "b": "y:1"}),
        ('replacement of "a"', {"a": "x:1", "b": "y:1"}),
        ('saving of "b"', {"a": "x:1"}),
        ('saving of "a"', {}),
    ]
    with pytest.raises(MixError, match="no change"):
        book.undo()


def test_the_way_back_survives_a_restart(book):
    book.save("a", "x:1")
    book.delete("a")

    assert SavedMixes(book.path).undo() == 'deletion of "a"'
    assert saved(SavedMixes(book.path)) == {"a": "x:1"}


def test_renaming_keeps_the_place_and_takes_no_others_name(book):
    for name in "abc":
        book.save(name, f"{name}:1")

    book.rename("b", "z")

    assert book.list() == ("a", "z", "c")
    with pytest.raises(MixError, match='a mix "c" already'):
        book.rename("a", "c")
    with pytest.raises(MixError, match="no saved mix"):
        book.rename("b", "y")
    assert book.list() == ("a", "z", "c")


@pytest.mark.parametrize("name", ["", "  ", "x" * 201, None, 3])
def test_names_that_are_none_are_refused(book, name):
    with pytest.raises(MixError, match="expected a name"):
        book.save(name, "a:1")


def test_a_mix_that_is_none_changes_nothing(book):
    book.save("a", "x:1")

    with pytest.raises(MixError):
        book.save("a", "x:nan")
    assert saved(book) == {"a": "x:1"}


def test_masks_are_kept_with_their_pictures(book, tmp_path):
    half = np.zeros((4, 8), dtype=np.uint8)
    half[:, :4] = 255
    Image.fromarray(half).save(tmp_path / "half.png")
    book.save("a", {"x": {"weight": 1, "mask": str(tmp_path / "half.png")}})
    (tmp_path / "half.png").unlink()

    assert np.array_equal(book.load("a")["x"].mask.load() * 255, half)
    name = book.import_text(book.export_text("a"), "again")
    assert np.array_equal(book.load(name)["x"].mask.load() * 255, half)


def test_mixes_go_out_and_come_in_as_text(book):
    book.save("a", "ink:0.8,te=0.2 | switch(2)")

    text = book.export_text("a")

    assert text == "ink:0.8,te=0.2 | switch(tau=2)"
    assert [book.import_text(text) for _ in range(2)] == ["imported", "imported 2"]
    assert book.import_text('{"ink": 0.5}', "json") == "json"
    assert book.import_text("ink: 0.5\noil: 1\n", "yaml") == "yaml"
    assert book.load("imported") == book.load("a")
    assert book.load("yaml") == Mix.of("ink:0.5, oil:1")


def test_a_shared_mix_names_no_file_of_this_machine(book, tmp_path):
    Image.new("L", (4, 4)).save(tmp_path / "private.png")
    path = tmp_path / "private.png"
    for text in (
        f"a:1,mask={path}",
        json.dumps({"a": {"weight": 1, "mask": str(path)}}),
        json.dumps({"a": {"weight": 1, "mask": {"path": str(path)}}}),
        f"a:\n  mask: {path}\n",
        json.dumps({"name": "x", "mix": {"a": {"weight": 1, "mask": {"path": str(path)}}}}),
        json.dumps({"adapters": [["a", {"weight": 1, "mask": str(path)}]]}),
        json.dumps([["a", {"weight": 1, "mask": str(path)}]]),
    ):
        with pytest.raises(MixError, match="names a file"):
            book.import_text(text)
    assert book.list() == ()


@pytest.mark.parametrize(
    "text", ["", "{", "a:nan", "[" * 100_000, "a:1, a:2", '{"a": {"blocks": {"re:(?=x)": 1}}}']
)
def test_text_that_is_no_mix_is_refused(book, text):
    if not text:
        assert book.load(book.import_text(text)) == Mix()
        return
    with pytest.raises(MixError):
        book.import_text(text)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff\xfe", b'{"format": 9, "mixes": {}}', b'{"format": 1, "mixes": []}']
)
def test_a_damaged_book_is_told_and_left_alone(book, content):
    book.path.parent.mkdir()
    book.path.write_bytes(content)

    for call in (book.list, lambda: book.save("a", "x:1"), book.undo):
        with pytest.raises(MixError, match=r"mixes\.json"):
            call()
    assert book.path.read_bytes() == content


def test_an_entry_that_somebody_broke_is_told_and_the_others_are_fine(book):
    book.save("a", "x:1")
    book.save("b", "y:1")
    table = json.loads(book.path.read_text())
    table["mixes"]["a"] = {"mix": {"x": "much"}}
    book.path.write_text(json.dumps(table))

    with pytest.raises(MixError, match='saved mix "a" cannot be read'):
        book.load("a")
    assert book.load("b") == Mix.of("y:1")


def test_a_full_disk_leaves_the_old_book(book, monkeypatch):
    book.save("a", "x:1")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lora_mixer.atomic.os.fsync", full)
    with pytest.raises(SaveError, match="No space left"):
        book.save("b", "y:1")

    assert saved(book) == {"a": "x:1"}
    assert {path.name for path in book.path.parent.iterdir()} <= {"mixes.json", "mixes.json.lock"}


def test_threads_lose_nothing_of_each_other(book):
    def work(number):
        for turn in range(5):
            SavedMixes(book.path).save(f"{number} {turn}", f"x:{number}.{turn}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(book.list()) == 20
    assert book.load("3 4") == Mix.of("x:3.4")


def test_whoever_is_killed_leaves_a_whole_book_with_all_that_was_said_to_be_saved(book):
    script = (
        "import itertools, sys\nfrom lora_mixer.library.saved_mixes import SavedMixes\nbook = SavedMixes(sys.argv[1])\n"
        "for number in itertools.count():\n    book.save(f'mix {number}', 'x:0.5')\n    print(number, flush=True)"
    )
    command = [sys.executable, "-c", script, str(book.path)]
    told = -1
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            told = int(line)
            if told == 12:
                os.kill(process.pid, signal.SIGKILL)

    names = book.list()
    assert names[: told + 1] == tuple(f"mix {number}" for number in range(told + 1))
    assert len(names) <= told + 2
    book.save("after", "y:1")
    assert book.load("after") == Mix.of("y:1")


def test_masks_do_not_pile_up_in_the_way_back(book):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)
    book.save("a", {"x": {"weight": 1, "mask": Mask.of(noise)}})
    size = book.path.stat().st_size

    for number in range(60):
        book.save("b", f"x:{number}")

    assert book.path.stat().st_size < size + 60 * 400
