"""A library of adapters opens at once and loses nothing."""

from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing, suppress
from pathlib import Path

import pytest
from PIL import Image

from lora_mixer import read_adapter
from lora_mixer.errors import SourceError, SourceNotFoundError
from lora_mixer.library import Library
from tests.libraries import library_folder, names, never, one, small_library  # noqa: F401 -- two are fixtures
from tests.loras import write_lora

ROOT = Path(__file__).resolve().parent.parent


class TestScanning:
    def test_an_entry_says_what_the_file_is(self, library, folder):
        entry = one(library, "ink")
        info = read_adapter(folder / "ink.safetensors")

        assert (entry.base, entry.format, entry.algorithms, entry.ranks) == (
            "SD 1.x",
            "kohya",
            ("lora",),
            (4,),
        )
        assert (entry.title, entry.tags[:2]) == ("Ink wash", ("cat", "brush"))
        assert entry.path == folder / "ink.safetensors"
        assert entry.bytes == entry.path.stat().st_size
        assert entry.mtime == pytest.approx(entry.path.stat().st_mtime)
        assert not entry.offline
        assert info.trigger_words == entry.trigger_words
        assert one(library, "ink drawing").trigger_words == ("inkdrw", "lines")
        assert one(library, "watercolor").folder == "styles"

    def test_a_file_that_cannot_be_read_is_an_entry_with_the_reason(self, library):
        entry = one(library, "broken")

        assert "not a safetensors file" in entry.problem
        assert entry.base == "unknown"

    def test_a_refresh_counts_what_it_did(self, folder, tmp_path):
        library = Library(folder, index=tmp_path / "index.sqlite")

        first = library.refresh()
        second = library.refresh()

        assert (first.added, first.unreadable, first.total) == (5, 1, 5)
        assert (second.added, second.changed, second.unchanged) == (0, 0, 5)

    def test_the_next_time_no_file_is_opened(self, folder, library, monkeypatch, tmp_path):
        monkeypatch.setattr("lora_mixer.library._scanning.describe_file", never)

        again = Library(folder, index=tmp_path / "index.sqlite")
        again.refresh()

        assert again.search().total == 5

    def test_a_changed_file_is_read_again_and_the_others_are_not(self, folder, library, monkeypatch):
        write_lora(folder / "ink.safetensors", base="SDXL", rank=32)
        os.utime(folder / "ink.safetensors", ns=(1, 1))

        found = library.refresh()

        assert (found.changed, found.unchanged) == (1, 4)
        assert (one(library, "ink").base, one(library, "ink").ranks) == ("SDXL", (32,))

    def test_a_new_preview_or_user_file_is_noticed(self, folder, library):
        Image.new("RGB", (8, 8)).save(folder / "ink.preview.png")
        (folder / "ink.json").write_text(
            json.dumps(
                {
                    "activation text": "inky, wash",
                    "preferred weight": 0.7,
                    "notes": "soft",
                    "negative text": "photo",
                }
            )
        )

        assert library.refresh().changed == 1
        entry = one(library, "ink")
        assert entry.preview == folder / "ink.preview.png"
        assert (entry.trigger_words, entry.weight, entry.notes, entry.negative_text) == (
            ("inky", "wash"), 0.7, "soft", "photo",
        )  # fmt: skip

    @pytest.mark.parametrize(
        "content", [b"[" * 100_000, b"\xff\xfe", b"[]", b'{"preferred weight": "x", "notes": [1]}']
    )
    def test_odd_user_files_are_no_harm(self, folder, library, content):
        (folder / "ink.json").write_bytes(content)

        library.refresh()

        assert (one(library, "ink").problem, one(library, "ink").weight) == ("", None)

    def test_progress_goes_from_the_known_to_all_and_may_stop_the_scan(self, folder, tmp_path):
        library = Library(folder, index=tmp_path / "index.sqlite")
        seen = []

        library.refresh(lambda done, total, name: seen.append((done, total, name)))

        assert [(done, total) for done, total, _ in seen] == [(number, 5) for number in range(6)]
        assert {name for _, _, name in seen} == {"", "ink", "ink drawing", "watercolor", "drinking", "broken"}
        for number in range(100):
            write_lora(folder / f"more {number}.safetensors")

        def stop(done, _total, _name):
            if done == 80:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            library.refresh(stop)
        assert library.search().total == 55  # whole batches stay
        assert library.refresh().added == 50

    def test_hidden_files_model_files_and_others_are_left_out(self, folder, library):
        write_lora(folder / ".hidden.safetensors")
        write_lora(folder / ".cache" / "x.safetensors")
        write_lora(folder / "model-00001-of-00002.safetensors")
        (folder / "x.pt").write_bytes(b"x")

        assert library.refresh().added == 0

    def test_a_peft_folder_is_one_adapter_under_its_own_name(self, shared_data, tmp_path):
        library = Library(shared_data / "generated" / "peft_dirs", index=tmp_path / "index.sqlite")
        library.refresh()

        entries = [
            e for e in library.search(page_size=100).entries if e.path.name == "adapter_model.safetensors"
        ]
        assert len(entries) > 10
        assert {entry.name for entry in entries} == {entry.path.parent.name for entry in entries}
        assert not any(entry.problem for entry in entries)


class TestNothingIsLost:
    def test_while_a_folder_is_away_its_entries_stay_and_come_back_unread(
        self, folder, library, tmp_path, monkeypatch
    ):
        ids = {entry.name: entry.id for entry in library.search().entries}
        library.set_default(ids["ink"], weight=0.6)
        folder.rename(tmp_path / "away")

        gone = library.refresh()

        assert (gone.offline, gone.total) == (5, 0)
        assert "cannot be listed" in gone.notes[0]
        assert all(entry.offline for entry in library.search().entries)
        assert one(library, "ink").weight == 0.6
        with pytest.raises(SourceNotFoundError, match="is its disk away"):
            library.source(ids["ink"])
        (tmp_path / "away").rename(folder)
        monkeypatch.setattr("lora_mixer.library._scanning.describe_file", never)
        back = library.refresh()
        assert (back.offline, back.unchanged) == (0, 5)
        assert {entry.name: entry.id for entry in library.search(offline=False).entries} == ids

    def test_an_empty_mount_point_is_a_disk_that_is_away(self, folder, library, tmp_path):
        folder.rename(tmp_path / "away")
        folder.mkdir()

        assert library.refresh().offline == 5
        assert library.search().total == 5

    def test_a_moved_file_is_the_same_entry_with_what_the_user_said(self, folder, library):
        entry = one(library, "ink")
        library.set_default(entry.id, weight=0.4, notes="mine", triggers=["inky"])
        library.hashes(entry.id)
        (folder / "new").mkdir()
        (folder / "ink.safetensors").rename(folder / "new" / "inky.safetensors")

        found = library.refresh()

        assert (found.moved, found.added, found.offline) == (1, 0, 0)
        moved = library.get(entry.id)
        assert (moved.name, moved.folder, moved.weight, moved.notes) == ("inky", "new", 0.4, "mine")
        assert "sha256" in moved.hashes
        assert library.search().total == 5

    def test_a_copy_is_an_entry_of_its_own_and_shares_what_the_user_said(self, folder, library):
        entry = one(library, "ink")
        library.set_default(entry.id, weight=0.4)
        shutil.copy(folder / "ink.safetensors", folder / "copy.safetensors")

        assert library.refresh().added == 1
        copy = one(library, "copy")
        assert copy.id != entry.id
        assert copy.weight == 0.4
        library.set_default(copy.id, weight=0.9)
        assert library.get(entry.id).weight == 0.9

    def test_another_file_in_the_same_place_keeps_the_users_words_and_loses_the_hashes(self, folder, library):
        entry = one(library, "ink")
        library.set_default(entry.id, triggers=["inky"])
        before = library.hashes(entry.id)
        write_lora(folder / "ink.safetensors", rank=12)
        library.refresh()

        again = library.get(entry.id)
        assert again.trigger_words == ("inky",)
        assert again.hashes == {}
        assert library.hashes(entry.id)["sha256"] != before["sha256"]

    def test_a_deleted_file_can_be_forgotten_and_one_that_is_there_cannot(self, folder, library):
        entry = one(library, "ink")
        with pytest.raises(SourceError, match="is there"):
            library.forget(entry.id)
        entry.path.unlink()
        library.refresh()

        library.forget(entry.id)

        with pytest.raises(SourceNotFoundError):
            library.get(entry.id)

    @pytest.mark.parametrize("damage", [b"this is not a database", None], ids=["overwritten", "torn"])
    def test_a_damaged_index_is_made_anew_with_a_note_and_the_users_words_stay(
        self, folder, library, tmp_path, damage
    ):
        entry = one(library, "ink")
        library.set_default(entry.id, weight=0.6)
        index = tmp_path / "index.sqlite"
        whole = index.read_bytes()
        for ending in ("-wal", "-shm"):
            index.with_name(index.name + ending).unlink(missing_ok=True)
        index.write_bytes(damage if damage is not None else whole[:4096] + b"\xaa" * (len(whole) - 4096))

        again = Library(folder, index=index)
        again.refresh()

        assert any("was damaged" in note for note in again.notes)
        assert again.search().total == 5
        assert one(again, "ink").weight == 0.6
        assert one(again, "ink").id == entry.id
        assert list(tmp_path.glob("index.sqlite.damaged-*"))

    @pytest.mark.parametrize("ending", ["sqlite", "user.sqlite"])
    def test_whatever_bytes_of_a_database_are_damaged_it_is_used_or_set_aside(
        self, folder, library, tmp_path, ending
    ):
        """Texts that are none; names of tables in SQLite's own messages; places in the middle of pages."""
        library.set_default(one(library, "ink").id, labels=["mine"])
        place = tmp_path / f"index.{ending}"
        with closing(sqlite3.connect(place)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        whole = place.read_bytes()
        for seed in range(12):
            dice, raw = random.Random(seed), bytearray(whole)
            for _ in range(dice.choice((1, 20, 400, 3000))):
                raw[dice.randrange(100, len(raw))] = dice.randrange(256)
            if seed % 4 == 0:
                raw = bytearray(
                    whole.replace(b"mine", b"\xff\xfe\xfd\xfc").replace(b"brush", b"\xff\xfe\xfd\xfc\xfb")
                )
            for part in tmp_path.glob("index.*sqlite*-*"):
                part.unlink()
            place.write_bytes(raw)
            # SQLite's codes of errors are not told before
            with suppress(*(() if sys.version_info >= (3, 11) else (SourceError,))):
                again = Library(folder, index=tmp_path / "index.sqlite")
                again.refresh()
            for entry in again.search().entries:  # a byte of a name is no damage that anybody can see
                assert again.set_default(entry.id, labels=["again"]).labels == ("again",)
            if ending != "sqlite":
                assert len(again.search(offline=False).entries) == 5

    def test_an_index_damaged_while_it_is_open_is_made_anew(self, library, tmp_path):
        index = tmp_path / "index.sqlite"
        for ending in ("-wal", "-shm"):
            index.with_name(index.name + ending).unlink(missing_ok=True)
        index.write_bytes(b"no database" * 100)

        assert library.search().total == 0
        assert library.refresh().added == 5
        assert library.search().total == 5

    def test_an_index_of_another_version_is_made_anew(self, folder, library, tmp_path):
        with closing(sqlite3.connect(tmp_path / "index.sqlite")) as connection:
            connection.execute("PRAGMA user_version = 99")

        again = Library(folder, index=tmp_path / "index.sqlite")

        assert again.refresh().added == 5
        assert "version 99" in again.notes[0]

    def test_a_locked_index_is_told(self, library, tmp_path, monkeypatch):
        monkeypatch.setattr("lora_mixer.library._database._WAIT_S", 0.01)
        with closing(sqlite3.connect(tmp_path / "index.sqlite", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(SourceError, match="database is locked"):
                library.hashes(one(library, "ink").id)
        assert library.search().total == 5

    def test_a_place_where_nothing_can_be_written_is_told(self, folder, tmp_path):
        (tmp_path / "file").write_text("x")

        with pytest.raises(SourceError, match="cannot be opened there"):
            Library(folder, index=tmp_path / "file" / "index.sqlite")


class TestManyAtOnce:
    def test_threads_scan_and_search_at_once(self, folder, tmp_path):
        for number in range(60):
            write_lora(folder / f"more {number}.safetensors", seed=number)
        libraries = [Library(folder, index=tmp_path / "index.sqlite") for _ in range(3)]
        problems = []

        def work(library, number):
            try:
                library.refresh()
                library.used(one(library, "ink").id)
                library.set_default(one(library, f"more {number}").id, weight=number)
            except BaseException as error:  # noqa: BLE001
                problems.append(error)

        threads = [threading.Thread(target=work, args=(libraries[n % 3], n)) for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert problems == []
        library = libraries[0]
        assert library.search().total == 65
        assert len({entry.id for entry in library.search(page_size=100).entries}) == 65
        assert one(library, "ink").uses == 6
        assert [one(library, f"more {n}").weight for n in range(6)] == [0, 1, 2, 3, 4, 5]

    def test_processes_scan_at_once(self, folder, tmp_path):
        for number in range(40):
            write_lora(folder / f"more {number}.safetensors", seed=number)
        script = (
            "import sys\nfrom lora_mixer.library import Library\n"
            "library = Library(sys.argv[1], index=sys.argv[2])\nlibrary.refresh()\n"
            "library.used(library.find('ink')[0].id)\nprint(library.search().total)"
        )
        command = [sys.executable, "-c", script, str(folder), str(tmp_path / "index.sqlite")]

        running = [
            subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            for _ in range(2)
        ]
        results = [process.communicate() for process in running]

        assert results == [("45\n", ""), ("45\n", "")]
        assert one(Library(folder, index=tmp_path / "index.sqlite"), "ink").uses == 2

    def test_libraries_of_other_folders_share_an_index(self, folder, tmp_path):
        write_lora(tmp_path / "others" / "x.safetensors")
        index = tmp_path / "index.sqlite"
        one_library, other = Library(folder, index=index), Library(tmp_path / "others", index=index)
        one_library.refresh()
        other.refresh()

        assert (one_library.search().total, other.search().total) == (5, 1)
        with pytest.raises(SourceNotFoundError):
            one_library.get(other.search().entries[0].id)
