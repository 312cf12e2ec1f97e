"""The adapters that a picture names are found by hash, then by name; what is missing keeps its place."""

from __future__ import annotations

import hashlib

import pytest
import torch
from safetensors.torch import save_file

from lora_mixer import hashes, read_adapter
from lora_mixer.adapter import AdapterInfo
from lora_mixer.hashes import Hashes
from lora_mixer.mixes import KLora, Method, Mix, Switch
from lora_mixer.picture_metadata import PictureAdapter, PictureSettings, match_adapters, matching

INK = {"sha256": "0123456789abcdef" * 4, "autov2": "0123456789", "sshs_model_hash": "fedcba9876543210" * 4,
       "autov3": "fedcba987654", "autov1": "8badf00d"}  # fmt: skip
OIL = {"sha256": "1" * 64, "autov2": "1" * 10, "sshs_model_hash": "2" * 64, "autov3": "2" * 12}


def picture(*adapters):
    return PictureSettings("x", adapters=adapters)


def info(name, source="", metadata=None, hashes=None):
    return AdapterInfo(
        name, source or f"{name}.safetensors", "kohya", "SDXL", ("lora",), (4,), (), ("float16",), 8, {"unet": 1},
        metadata=metadata or {}, hashes=Hashes(lambda: hashes or {}),
    )  # fmt: skip


@pytest.mark.parametrize(
    "digits",
    ["0123456789abcdef" * 4, "0123456789", "0123456789ab", "01234567", "fedcba987654", "FEDCBA9876", "8badf00d",
     "0xfedcba9876543210"],
)  # fmt: skip
def test_a_hash_of_any_kind_and_length_finds_a_file_of_another_name(digits):
    found = match_adapters(
        picture(PictureAdapter("old name", 0.5, None, {"autov2": digits})), {"oil": OIL, "ink": INK}
    )

    (slot,) = found.slots
    assert (slot.match, slot.found_by) == ("ink", "hash")
    assert 'called "ink" here' in slot.note
    assert found.mix == Mix.of("ink:0.5")


def test_the_hash_wins_over_the_name():
    named_ink = PictureAdapter("ink", 1, None, {"autov3": "2" * 12})

    found = match_adapters(picture(named_ink), {"ink": INK, "oil": OIL})

    assert found.slots[0].match == "oil"


def test_of_equal_files_the_one_of_that_name_is_taken():
    found = match_adapters(picture(PictureAdapter("b", 1, None, {"autov3": "2" * 12})), {"a": OIL, "b": OIL})

    assert found.slots[0].match == "b"


def test_a_name_alone_decides_where_there_is_no_hash_and_another_hash_is_told():
    with_other = PictureAdapter("oil", 1, None, {"autov3": "9" * 12})

    found = match_adapters(picture(PictureAdapter("ink"), with_other), {"ink": INK, "oil": OIL})

    assert [(slot.match, slot.found_by) for slot in found.slots] == [("ink", "name"), ("oil", "name")]
    assert found.slots[0].note == ""
    assert "another hash" in found.slots[1].note


def test_hashes_are_not_computed_where_the_picture_has_none():
    def read():
        raise AssertionError("the whole file would be read")

    entry = AdapterInfo(
        "ink",
        "ink.safetensors",
        "kohya",
        "SDXL",
        ("lora",),
        (4,),
        (),
        ("float16",),
        8,
        {"unet": 1},
        hashes=Hashes(read),
    )

    assert match_adapters(picture(PictureAdapter("ink")), {"ink": entry}).slots[0].match == "ink"


def test_blake3_is_nobodys_hash():
    found = match_adapters(
        picture(PictureAdapter("ink", 1, None, {"blake3": "1" * 64})), {"oil": OIL, "ink": INK}
    )

    assert (found.slots[0].match, found.slots[0].note) == ("ink", "")


@pytest.mark.parametrize("written", ["Ink", "styles/ink.safetensors", "INK.safetensors"])
def test_names_may_differ_in_case_folder_and_ending(written):
    assert match_adapters(picture(PictureAdapter(written)), {"ink": {}}).slots[0].match == "ink"


def test_the_trainers_name_for_a_file_is_a_name_for_it():
    known = {"my copy": info("my copy", metadata={"ss_output_name": "ink_v2"}), "oil": info("oil")}

    assert match_adapters(picture(PictureAdapter("ink_v2")), known).slots[0].match == "my copy"


def test_several_of_one_name_are_reported_and_not_guessed():
    known = {"a/ink.safetensors": {}, "b/Ink.safetensors": {}}

    found = match_adapters(picture(PictureAdapter("ink", 0.5)), known)

    (slot,) = found.slots
    assert (slot.match, slot.found_by) == (None, "ambiguous")
    assert slot.candidates == ("a/ink.safetensors", "b/Ink.safetensors")
    assert found.mix == Mix()


def test_missing_ones_keep_their_slots_weights_and_order():
    found = match_adapters(
        picture(PictureAdapter("gone", 0.3), PictureAdapter("ink", 0), PictureAdapter("lost", 0.7)),
        {"oil": OIL, "ink": INK},
    )

    assert [(slot.adapter.name, slot.adapter.weight, slot.match) for slot in found.slots] == [
        ("gone", 0.3, None), ("ink", 0.0, "ink"), ("lost", 0.7, None),
    ]  # fmt: skip
    assert [adapter.name for adapter in found.missing] == ["gone", "lost"]
    assert found.mix.to_dict() == {"ink": 0.0}


def test_what_the_picture_does_not_have_is_cleared():
    found = match_adapters(picture(PictureAdapter("ink")), {"oil": OIL, "ink": INK, "lines": {}})

    assert found.cleared == ("oil", "lines")
    assert match_adapters(picture(), {"oil": OIL}).cleared == ("oil",)


def test_one_file_here_is_not_two_adapters_of_the_picture():
    found = match_adapters(
        picture(PictureAdapter("ink", 0.3), PictureAdapter("copy", 0.4, None, {"autov2": "0123456789"})),
        {"ink": INK},
    )

    assert [slot.match for slot in found.slots] == ["ink", None]
    assert found.mix == Mix.of("ink:0.3")
    assert "taken" in found.slots[1].note


def test_the_whole_mix_comes_back_under_the_names_here():
    mix = Mix.of(
        {
            "adapters": {"a": {"weight": 0.5, "blocks": {"down": 0.5}}, "b": 1},
            "method": 'switch(3, ["b", "a"])',
        }
    )
    settings = PictureSettings("x", mix=mix).with_hashes({"a": {"autov3": "2" * 12}})

    found = match_adapters(settings, {"oil": OIL, "b": {}})

    assert found.mix == Mix.of(
        {
            "adapters": {"oil": {"weight": 0.5, "blocks": {"down": 0.5}}, "b": 1},
            "method": 'switch(3, ["b", "oil"])',
        }
    )


def test_a_method_whose_adapter_is_missing_gives_way_to_the_sum_with_a_note():
    mix = Mix(Mix.of("a, b").adapters, KLora("a", "b"))

    found = match_adapters(PictureSettings("x", mix=mix), {"a": {}})

    assert type(found.mix.method) is Method
    assert "k_lora" in found.notes[0]
    assert found.mix.names == ("a",)


def test_a_method_without_names_stays():
    found = match_adapters(
        PictureSettings("x", mix=Mix(Mix.of("a, b").adapters, Switch(2))), {"A": {}, "b": {}}
    )

    assert found.mix.method == Switch(2)
    assert found.mix.names == ("A", "b")


def sha(number):
    return hashlib.sha256(str(number).encode()).hexdigest()


def test_of_hashes_that_begin_alike_the_longest_decides():
    known = {"short": {"autov1": "01234567"}, "long": {"sha256": "01234567" + "8" * 56}}

    found = match_adapters(picture(PictureAdapter("x", 1, None, {"sha256": "01234567" + "8" * 56})), known)

    assert found.slots[0].match == "long"


def test_hundreds_of_adapters_among_thousands_are_found():
    known = {f"style {number}": {"sha256": sha(number), "autov2": sha(number)[:10]} for number in range(3000)}
    adapters = [PictureAdapter(f"Style {number}.safetensors", 0.5) for number in range(250)]
    adapters += [
        PictureAdapter(f"x {number}", 0.5, None, {"sha256": sha(number)}) for number in range(250, 500)
    ]
    adapters += [
        PictureAdapter(f"lost {number}", 0.5, None, {"sha256": sha(-1 - number)}) for number in range(300)
    ]

    found = match_adapters(picture(*adapters), known)

    assert [slot.match for slot in found.slots[:500]] == [f"style {number}" for number in range(500)]
    assert len(found.missing) == 300


class Files:
    """Files that count how many of their bytes are read for hashes."""

    def __init__(self, folder, count, size=400):
        self.opened, self.read = [], 0
        self.known = {}
        for number in range(count):
            tensors = {
                "lora_unet_x.lora_down.weight": torch.full((size, 4), float(number + 1)),
                "lora_unet_x.lora_up.weight": torch.ones(4, size),
            }
            save_file(tensors, folder / f"style {number}.safetensors")
            self.known[f"style {number}"] = read_adapter(folder / f"style {number}.safetensors")
        self.sha = {
            name: hashlib.sha256((folder / f"{name}.safetensors").read_bytes()).hexdigest()
            for name in self.known
        }

    def watched(self, monkeypatch):
        whole = hashes.compute

        def compute(stream, start):
            self.opened.append(stream)
            found = whole(stream, start)
            self.read += stream.seek(0, 2)
            return found

        monkeypatch.setattr(hashes, "compute", compute)
        return self


def wanted(name, digits):
    return picture(PictureAdapter(name, 0.5, None, {"sha256": digits}))


def test_a_file_of_that_name_is_the_only_one_read(tmp_path, monkeypatch):
    files = Files(tmp_path, 6).watched(monkeypatch)
    found = match_adapters(wanted("style 4", files.sha["style 4"]), files.known)
    assert (found.slots[0].match, found.slots[0].found_by) == ("style 4", "hash")
    assert len(files.opened) == 1


def test_hashes_that_are_known_cost_no_reading(tmp_path, monkeypatch):
    files = Files(tmp_path, 6).watched(monkeypatch)
    known = {**files.known, "table": {"sha256": "8" * 64}}
    assert match_adapters(wanted("renamed", "8" * 64), known).slots[0].match == "table"
    assert files.opened == []


def stating(folder, name, seed, digits):
    """Write a file whose header states a hash, and return its description."""
    path = folder / f"{name}.safetensors"
    pair = {
        "lora_unet_x.lora_down.weight": torch.full((4, 8), float(seed)),
        "lora_unet_x.lora_up.weight": torch.ones(8, 4),
    }
    save_file(pair, path, {"sshs_model_hash": digits})
    return read_adapter(path)


@pytest.mark.parametrize("order", [("liar", "ink", "oil"), ("oil", "ink", "liar"), ("ink", "liar")])
@pytest.mark.parametrize("kind", ["sshs_model_hash", "autov3", "sha256"])
@pytest.mark.parametrize("length", [64, 12, 10, 8])
@pytest.mark.parametrize("is_known", [False, True])
def test_what_a_header_states_is_where_to_look_first_and_no_hash(tmp_path, order, kind, length, is_known):
    """Tools copy headers, and anybody can write one: the file that has the hash is it."""
    stating(tmp_path, "ink", 1, "0" * 64)
    true = read_adapter(tmp_path / "ink.safetensors").hashes
    files = {
        "ink": read_adapter(tmp_path / "ink.safetensors"),
        "oil": stating(tmp_path, "oil", 2, "0" * 64),
        "liar": stating(tmp_path, "liar", 3, true[kind][:length]),
    }
    if is_known:
        files["liar"].hashes["sha256"]  # computed already

    (slot,) = match_adapters(
        wanted("other", true[kind][:length]), {name: files[name] for name in order}
    ).slots

    assert (slot.match, slot.found_by) == ("ink", "hash")


@pytest.mark.parametrize("hashed", [(), ("ink",), ("twin",), ("ink", "twin")])
@pytest.mark.parametrize("order", [("ink", "near", "twin"), ("twin", "near", "ink")])
@pytest.mark.parametrize(("name", "match"), [("other", None), ("ink", "ink"), ("twin", "twin")])
def test_files_of_equal_tensors_are_ambiguous_whoever_has_hashed_them(
    tmp_path, monkeypatch, hashed, order, name, match
):
    """But for their name: only little is read of a file that differs."""
    tensors = {
        "lora_unet_x.lora_down.weight": torch.ones(4, 9000),
        "lora_unet_x.lora_up.weight": torch.ones(8, 4),
    }
    save_file(tensors, tmp_path / "ink.safetensors")
    save_file(tensors, tmp_path / "twin.safetensors", {"ss_output_name": "twin"})
    tensors["lora_unet_x.lora_up.weight"][7, 3] = 2.0
    save_file(tensors, tmp_path / "near.safetensors")
    known = {each: read_adapter(tmp_path / f"{each}.safetensors") for each in order}
    for each in hashed:
        known[each].hashes["sha256"]
    digits = read_adapter(tmp_path / "ink.safetensors").hashes["autov3"]
    files = Files(tmp_path, 0).watched(monkeypatch)

    (slot,) = match_adapters(wanted(name, digits), known).slots

    assert slot.match == match
    assert slot.found_by == ("hash" if match else "ambiguous")
    assert set(slot.candidates) == (set() if match else {"ink", "twin"})
    assert len(files.opened) <= 2 - len(hashed) + (name == "other" and not hashed)


def test_a_file_that_says_the_truth_is_the_only_one_read(tmp_path, monkeypatch):
    known = {name: stating(tmp_path, name, seed, "0" * 64) for seed, name in enumerate("abc")}
    true = stating(tmp_path, "d", 9, "0" * 64).hashes["sshs_model_hash"]  # of the tensors alone
    known["d"] = stating(tmp_path, "d", 9, true)
    files = Files(tmp_path, 0).watched(monkeypatch)

    (slot,) = match_adapters(wanted("other", true), known).slots

    assert (slot.match, slot.found_by, len(files.opened)) == ("d", "hash", 1)


def test_a_file_that_cannot_be_read_is_taken_at_its_word_and_that_is_said():
    stated = info("stated", metadata={"sshs_model_hash": "7" * 64})
    in_library = {"declared": "7" * 64}

    for known in ({"oil": OIL, "stated": stated}, {"oil": OIL, "stated": in_library}):
        (slot,) = match_adapters(wanted("other", "7" * 64), known).slots
        assert (slot.match, slot.found_by) == ("stated", "header")
        assert "was not read" in slot.note
    refuted = in_library | {"sha256": "8" * 64}
    assert match_adapters(wanted("other", "7" * 64), {"stated": refuted}).slots[0].match is None


def test_an_unknown_hash_reads_no_more_than_the_bound_and_says_so(tmp_path, monkeypatch):
    files = Files(tmp_path, 8).watched(monkeypatch)
    size = files.known["style 0"].bytes
    found = match_adapters(wanted("nowhere", "9" * 64), files.known, read_at_most=3 * size)
    assert found.slots[0].match is None
    assert len(files.opened) == 3
    assert files.read < 3 * (size + 1000)
    assert "hashes of 5 adapters" in found.notes[0]
    before = len(files.opened)
    assert match_adapters(wanted("nowhere", "9" * 64), files.known, read_at_most=0).slots[0].match is None
    assert len(files.opened) == before


def test_reading_ends_with_the_file_that_is_it(tmp_path, monkeypatch):
    files = Files(tmp_path, 6).watched(monkeypatch)
    found = match_adapters(wanted("renamed", files.sha["style 2"]), files.known)
    assert (found.slots[0].match, found.notes) == ("style 2", ())
    assert len(files.opened) == 3


def test_hundreds_of_unknown_hashes_read_each_file_once(tmp_path, monkeypatch):
    files = Files(tmp_path, 4).watched(monkeypatch)
    adapters = [PictureAdapter(f"x {n}", 0.5, None, {"sha256": sha(-n)}) for n in range(200)]
    match_adapters(picture(*adapters), files.known)
    assert len(files.opened) == 4


def test_a_file_that_has_gone_keeps_nobody_else_from_being_found(tmp_path):
    files = Files(tmp_path, 3)
    (tmp_path / "style 0.safetensors").unlink()
    found = match_adapters(wanted("renamed", files.sha["style 1"]), files.known)
    assert found.slots[0].match == "style 1"
    assert "style 0: unreadable" in found.notes[0]


@pytest.mark.parametrize("kind", ["autov2", "declared"])
def test_a_thousand_unknown_hashes_look_at_what_is_here_once_and_not_a_thousand_times(kind, monkeypatch):
    """One picture may name as many as its text holds: pictures come from strangers."""
    looks, looked = [], matching._Here.known_hashes
    monkeypatch.setattr(
        matching._Here, "known_hashes", lambda here, name: looks.append(name) or looked(here, name)
    )
    known = {f"here {number}": {kind: f"{number:012x}"} for number in range(200)}
    unknown = [
        PictureAdapter(f"away {number}", hashes={"autov2": f"{number + 999:010x}"}) for number in range(1000)
    ]
    found = match_adapters(PictureSettings(adapters=tuple(unknown)), known)
    assert len(found.missing) == 1000
    assert len(looks) <= 2 * len(known)
