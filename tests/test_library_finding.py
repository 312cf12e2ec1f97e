"""What a library is asked for: by words, hashes and pictures, and nothing outside of its folders."""

from __future__ import annotations

import os
import shutil
import socket

import pytest
from PIL import Image

from lora_mixer import read_adapter
from lora_mixer.errors import FormatError, LoraMixerError, SourceError, SourceNotFoundError
from lora_mixer.library import Library
from lora_mixer.picture_metadata import PictureAdapter, PictureSettings, match_adapters
from tests.libraries import library_folder, names, never, one, small_library  # noqa: F401 -- two are fixtures
from tests.loras import write_lora


class TestSearching:
    def test_exact_names_first_then_beginnings_then_the_rest(self, library):
        assert names(library.search("ink")) == ["ink", "ink drawing", "drinking"]
        assert names(library.search("INK")) == ["ink", "ink drawing", "drinking"]

    @pytest.mark.parametrize(
        ("text", "found"),
        [
            ("wash", ["ink"]), ("inkdrw", ["ink drawing"]), ("brush", ["ink"]), ("styles", ["drinking", "watercolor"]),
            ("lines ink", ["ink drawing"]), ("color water", ["watercolor"]), ("nothing", []), ("%", []), ("' OR 1=1 --", []),
        ],
    )  # fmt: skip
    def test_all_words_count_in_titles_triggers_tags_and_folders(self, library, text, found):
        assert names(library.search(text)) == found

    def test_the_users_own_words_are_found(self, library):
        library.set_default(one(library, "watercolor").id, triggers=["Aquarell", "grün"])

        assert names(library.search("aquarell")) == names(library.search("grün")) == ["watercolor"]

    def test_filters(self, library):
        assert names(library.search(base="SDXL")) == ["watercolor"]
        assert names(library.search(algorithm="lora", base="SD 1.x")) == ["ink", "ink drawing"]
        assert names(library.search(algorithm="lor")) == []
        assert names(library.search(folder="styles")) == ["drinking", "watercolor"]
        assert names(library.search(folder="styles/old")) == ["drinking"]
        assert names(library.search(folder="style")) == []

    def test_sorts(self, library):
        library.used(one(library, "watercolor").id)
        os.utime(one(library, "drinking").path, (2e9, 2e9))
        library.refresh()

        assert names(library.search())[:2] == ["broken", "drinking"]
        assert names(library.search(sort="rank", descending=True))[:3] == ["ink drawing", "watercolor", "ink"]
        assert names(library.search(sort="uses", descending=True))[0] == "watercolor"
        assert names(library.search(sort="date", descending=True))[0] == "drinking"
        assert names(library.search(sort="size"))[0] == "broken"
        with pytest.raises(SourceError, match="sort must be one of"):
            library.search(sort="id; DROP TABLE files")

    def test_pages(self, library):
        pages = [library.search(page=number, page_size=2) for number in range(4)]

        assert [len(page.entries) for page in pages] == [2, 2, 1, 1]
        assert (pages[0].total, pages[0].pages, pages[3].page) == (5, 3, 2)
        assert sorted(name for page in pages[:3] for name in names(page)) == names(library.search())
        with pytest.raises(SourceError):
            library.search(page_size=0)

    def test_facets_count_for_filters(self, library):
        facets = library.facets()

        assert facets["base"] == {"SD 1.x": 2, "SD 2.x": 1, "SDXL": 1, "unknown": 1}
        assert facets["algorithm"] == {"lora": 4}
        assert facets["folder"] == {"": 3, "styles": 1, "styles/old": 1}


class TestHashes:
    def test_they_are_those_of_the_file_and_computed_once(self, library, monkeypatch):
        entry = one(library, "ink")
        assert entry.hashes == {}

        found = library.hashes(entry.id)

        assert found == dict(read_adapter(entry.path).hashes)
        monkeypatch.setattr("lora_mixer.library.library.read_adapter", never)
        assert library.hashes(entry.id) == found
        assert library.get(entry.id).hashes == found

    @pytest.mark.parametrize(
        ("kind", "length"), [("sha256", 64), ("sha256", 10), ("sha256", 8), ("autov3", 12)]
    )
    def test_entries_are_found_by_any_of_them(self, library, kind, length):
        entry = one(library, "ink")
        digits = library.hashes(entry.id)[kind][:length]

        assert library.by_hash(digits.upper()) == (library.get(entry.id),)
        assert library.by_hash("0" * 12) == library.by_hash("x") == library.by_hash("") == ()

    def test_what_the_header_says_of_itself_is_found_without_reading_the_file(self, folder, library):
        write_lora(folder / "declared.safetensors", sshs_model_hash="ab" * 32)
        library.refresh()

        assert library.by_hash("ab" * 6)[0].name == "declared"
        assert one(library, "declared").hashes == {"declared": "ab" * 32}
        library.hashes(one(library, "declared").id)  # which are others: headers are copied, and lie
        assert library.by_hash("ab" * 6) == ()

    def test_a_pictures_adapters_are_matched_in_the_library(self, library):
        digits = library.hashes(one(library, "ink").id)["autov3"]
        settings = PictureSettings("x", adapters=(
            PictureAdapter("other name", 0.3, None, {"autov3": digits}), PictureAdapter("Watercolor"), PictureAdapter("gone"),
        ))  # fmt: skip

        found = match_adapters(settings, library.known())

        assert [slot.match for slot in found.slots] == ["ink", "watercolor", None]


class TestSafety:
    def test_links_that_lead_out_are_not_followed(self, folder, library, tmp_path):
        secret = write_lora(tmp_path / "secret" / "private.safetensors")
        (folder / "link.safetensors").symlink_to(secret)
        (folder / "linked folder").symlink_to(tmp_path / "secret")
        (folder / "inside.safetensors").symlink_to(folder / "ink.safetensors")

        library.refresh()

        assert library.find("private") == library.find("link") == ()
        assert library.find("inside")[0].base == "SD 1.x"

    def test_a_file_that_became_a_link_outwards_is_not_given(self, library, tmp_path):
        secret = write_lora(tmp_path / "secret" / "private.safetensors")
        entry = one(library, "ink")
        entry.path.unlink()
        entry.path.symlink_to(secret)

        with pytest.raises(SourceError, match="leads out"):
            library.source(entry.id)

    def test_an_id_is_no_path(self, library):
        for odd in ("../ink", "/etc/passwd", "", "' OR 1=1 --", "\ud800"[:0] + "x" * 10_000):
            with pytest.raises(SourceNotFoundError):
                library.get(odd)
        assert all(
            entry.id.isalnum() and str(entry.path) not in entry.id for entry in library.search().entries
        )

    def test_names_in_no_encoding_are_told_and_the_rest_is_found(self, folder, library):
        odd = os.fsencode(folder) + b"/\xff\xfe.safetensors"
        shutil.copy(folder / "ink.safetensors", odd)

        found = library.refresh()

        assert "no known encoding" in found.notes[0]
        assert library.search().total == 5

    @pytest.mark.parametrize("value", [float("nan"), "x", True, 10**400])
    def test_values_that_are_none_are_refused(self, library, value):
        with pytest.raises(SourceError, match="finite number"):
            library.set_default(one(library, "ink").id, weight=value)

    def test_none_takes_back_what_the_user_said(self, folder, library):
        entry = one(library, "ink drawing")
        library.set_default(entry.id, weight=0, notes="x", triggers=[])
        said = library.get(entry.id)
        assert (said.weight, said.notes, said.trigger_words) == (0.0, "x", ())

        back = library.set_default(entry.id, weight=None, notes=None, triggers=None)

        assert (back.weight, back.notes, back.trigger_words) == (None, "", ("inkdrw", "lines"))


class TestThumbnails:
    def test_they_are_small_written_anew_and_kept(self, folder, library):
        picture = Image.new("RGB", (600, 300), "red")
        picture.save(folder / "ink.png", pnginfo=None)
        (folder / "ink.png").write_bytes((folder / "ink.png").read_bytes() + b"<script>alert(1)</script>")
        library.refresh()
        entry = one(library, "ink")

        path = library.thumbnail(entry.id, 100)

        assert path.parent == library.thumbnails_folder
        with Image.open(path) as image:
            assert (image.format, image.size) == ("WEBP", (100, 50))
        assert b"script" not in path.read_bytes()
        assert library.thumbnail(entry.id, 100) == path
        assert library.thumbnail(one(library, "watercolor").id) is None

    def test_a_new_picture_gives_a_new_one(self, folder, library):
        Image.new("RGB", (9, 9), "red").save(folder / "ink.png")
        library.refresh()
        first = library.thumbnail(one(library, "ink").id)
        Image.new("RGB", (99, 9), "blue").save(folder / "ink.png")
        library.refresh()

        assert library.thumbnail(one(library, "ink").id) != first

    def test_a_picture_that_is_none_or_a_link_outwards_gives_none_and_a_note(self, folder, library, tmp_path):
        (folder / "ink.png").write_bytes(b"<svg onload=alert(1)>")
        Image.new("RGB", (8, 8)).save(tmp_path / "private.png")
        (folder / "watercolor.png").write_bytes(b"x")
        shutil.copy(tmp_path / "private.png", folder / "styles" / "watercolor.png")
        library.refresh()
        (folder / "styles" / "watercolor.png").unlink()
        (folder / "styles" / "watercolor.png").symlink_to(tmp_path / "private.png")

        assert library.thumbnail(one(library, "ink").id) is None
        assert library.thumbnail(one(library, "watercolor").id) is None
        assert "the preview of ink: is not a picture" in library.notes[0]
        assert "leads out" in library.notes[1]

    def test_sizes_are_kept_within_limits(self, folder, library):
        Image.new("RGB", (3000, 3000)).save(folder / "ink.jpg")
        library.refresh()

        with Image.open(library.thumbnail(one(library, "ink").id, 10**9)) as image:
            assert image.size == (1024, 1024)


def test_two_hundred_files_are_read_and_found(tmp_path):
    for number in range(200):
        write_lora(tmp_path / "loras" / f"style {number:03}.safetensors", rank=1 + number % 8, seed=number)
    library = Library(tmp_path / "loras", index=tmp_path / "index.sqlite")

    assert library.refresh().added == 200
    assert library.refresh().unchanged == 200
    assert names(library.search(page=3)) == [f"style {number:03}" for number in range(180, 200)]


def test_folders_inside_others_count_once(folder, tmp_path):
    library = Library([folder / "styles", folder, folder], index=tmp_path / "index.sqlite")

    assert library.folders == (folder,)
    assert library.refresh().added == 5


def test_no_folder_is_an_error(tmp_path):
    with pytest.raises(SourceError, match="at least one folder"):
        Library([], index=tmp_path / "index.sqlite")


def test_by_default_the_index_is_a_cache_and_the_users_words_are_data(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    library = Library(folder)
    library.refresh()
    library.set_default(one(library, "ink").id, weight=0.5)
    shutil.rmtree(tmp_path / "cache")

    again = Library(folder)
    again.refresh()

    assert one(again, "ink").weight == 0.5
    assert (tmp_path / "data" / "lora_mixer" / "library.sqlite").is_file()


def test_all_errors_are_the_packages_own(library):
    for call in (
        lambda: library.search(page=-1),
        lambda: library.info("x"),
        lambda: library.info(one(library, "broken").id),
    ):
        with pytest.raises(LoraMixerError):
            call()
    with pytest.raises(FormatError):
        library.info(one(library, "broken").id)


@pytest.mark.parametrize("kind", ["files", "folders"])
def test_a_library_of_links_to_another_disk_says_why_it_is_empty(kind, tmp_path):
    (tmp_path / "loras").mkdir()
    for name in ("a", "b"):
        path = write_lora(tmp_path / "disk" / name / f"{name}.safetensors")
        target = path if kind == "files" else path.parent
        (tmp_path / "loras" / target.name).symlink_to(target)
    library = Library(tmp_path / "loras", index=tmp_path / "i.sqlite")

    (problem,) = library.refresh().notes

    assert library.find("a") == ()
    assert "2 links lead to files or folders outside" in problem
    assert str(tmp_path / "disk") in problem


def test_links_inside_a_library_are_no_problem(tmp_path):
    path = write_lora(tmp_path / "loras" / "a.safetensors")
    (path.parent / "b.safetensors").symlink_to(path)
    assert not Library(path.parent, index=tmp_path / "i.sqlite").refresh().notes


def test_what_is_named_as_an_adapter_or_a_folder_and_is_none_is_told(tmp_path, monkeypatch):
    path = write_lora(tmp_path / "loras" / "a.safetensors")
    loras = path.parent
    for name in ("styles", "v1.5", ".hidden"):
        (loras / name).symlink_to(tmp_path / "unmounted" / name, target_is_directory=True)
    (loras / "circle").symlink_to(loras / "circle")
    (loras / "again").symlink_to(loras)  # what is in it is there already
    (loras / "notes.md").symlink_to(loras / "none.md")
    os.mkfifo(loras / "pipe.safetensors")
    os.mkfifo(loras / "pipe")
    with socket.socket(socket.AF_UNIX) as one:
        monkeypatch.chdir(loras)
        one.bind("s.safetensors")  # the whole path may be too long for a socket
        deep = loras.joinpath(*["d"] * 40)
        deep.mkdir(parents=True)
        library = Library(loras, index=tmp_path / "i.sqlite")
        told = sorted(library.refresh().notes)

    assert [text.split(": ", 1)[1].split(",")[0].split(" (")[0] for text in told] == [
        "1 folders lie more than 32 levels deep and are left out",
        "2 entries are named as adapters and are no files",
        "3 links to folders lead nowhere and are left out",
    ]
    assert str(loras / "circle") in told[2]
    assert str(loras / "pipe.safetensors") in told[1]
    assert [entry.path for entry in library.search().entries] == [path]


def test_links_to_adapters_that_lead_nowhere_or_in_a_circle_are_told(tmp_path):
    path = write_lora(tmp_path / "loras" / "a.safetensors")
    for name, target in (
        ("gone", "other.safetensors"),
        ("round", "round.safetensors"),
        ("words", "none.txt"),
    ):
        path.with_name(f"{name}.safetensors").symlink_to(path.with_name(target))
    path.with_name("readme.txt").symlink_to(path.with_name("nothing.txt"))  # no adapter
    library = Library(path.parent, index=tmp_path / "i.sqlite")

    (problem,) = library.refresh().notes

    assert f"3 links to adapters lead nowhere and are left out, such as {path.with_name('gone')}" in problem
    assert [entry.path for entry in library.search().entries] == [path]
