"""The digest of nothing is not a hash of any file, and equal hashes name no file."""

from __future__ import annotations

import hashlib

import pytest
import torch
from safetensors.torch import save, save_file

from lora_mixer import PictureAdapter, PictureSettings, match_adapters, read_adapter
from lora_mixer.library import Library

NOTHING = hashlib.sha256().hexdigest()
KINDS = ("sha256", "autov1", "autov2", "autov3", "sshs_model_hash", "sshs_legacy_hash")


def pair(width=8, fill=1.0):
    return {"net.lora_A.weight": torch.full((2, width), fill), "net.lora_B.weight": torch.ones(8, 2)}


@pytest.mark.parametrize("width", [8, 1 << 10, 1 << 16, (1 << 17) + 5, 1 << 18])
def test_no_file_has_a_hash_of_a_range_without_bytes(width, tmp_path):
    save_file(pair(width), tmp_path / "x.safetensors", {"ss_epoch": "1"})
    raw = (tmp_path / "x.safetensors").read_bytes()
    found = read_adapter(tmp_path / "x.safetensors").hashes
    assert all(not NOTHING.startswith(digits) for digits in found.values())
    assert ("autov1" in found) == ("sshs_legacy_hash" in found) == (len(raw) > 1 << 20)
    assert found["sha256"] == hashlib.sha256(raw).hexdigest()
    if "autov1" in found:
        assert found["autov1"] == hashlib.sha256(raw[1 << 20 : (1 << 20) + 0x10000]).hexdigest()[:8]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [8, 10, 12, 64])
def test_the_digest_of_nothing_in_a_picture_matches_nothing(kind, length):
    settings = PictureSettings("x", adapters=(PictureAdapter("gone", 1.0, None, {kind: NOTHING[:length]}),))
    known = {"short": {kind: NOTHING[:length]}, "other": {"sha256": NOTHING}}
    (slot,) = match_adapters(settings, known).slots
    assert (slot.match, slot.found_by) == (None, "missing")


def test_a_name_still_decides_beside_a_digest_of_nothing():
    settings = PictureSettings("x", adapters=(PictureAdapter("ink", 1.0, None, {"autov1": NOTHING[:8]}),))
    (slot,) = match_adapters(settings, {"oil": {"autov1": NOTHING[:8]}, "ink": {"sha256": "a" * 64}}).slots
    assert (slot.match, slot.found_by) == ("ink", "name")


@pytest.mark.parametrize("kind", KINDS)
def test_equal_hashes_are_ambiguous(kind):
    digits = "0123456789ab"
    settings = PictureSettings("x", adapters=(PictureAdapter("elsewhere", 1.0, None, {kind: digits}),))
    (slot,) = match_adapters(settings, {"one": {kind: digits}, "two": {kind: digits}, "three": {}}).slots
    assert (slot.match, slot.found_by, slot.candidates) == (None, "ambiguous", ("one", "two"))


def test_of_files_with_equal_hashes_the_one_of_the_pictures_name_is_meant():
    settings = PictureSettings("x", adapters=(PictureAdapter("two", 1.0, None, {"sha256": "a" * 64}),))
    (slot,) = match_adapters(settings, {"one": {"sha256": "a" * 64}, "two": {"sha256": "a" * 64}}).slots
    assert (slot.match, slot.found_by) == ("two", "hash")


def test_more_digits_in_common_decide_between_hashes_that_begin_alike():
    settings = PictureSettings(
        "x", adapters=(PictureAdapter("gone", 1.0, None, {"sha256": "12345678" + "a" * 56}),)
    )
    (slot,) = match_adapters(
        settings, {"short": {"autov1": "12345678"}, "long": {"sha256": "12345678" + "a" * 56}}
    ).slots
    assert (slot.match, slot.found_by) == ("long", "hash")


def test_a_library_finds_no_file_by_the_digest_of_nothing(tmp_path):
    (tmp_path / "loras").mkdir()
    for number in range(2):  # older ai-toolkit wrote it into every header
        (tmp_path / "loras" / f"{number}.safetensors").write_bytes(
            save(pair(fill=float(number)), {"sshs_model_hash": NOTHING})
        )
    library = Library(tmp_path / "loras", index=tmp_path / "i.sqlite")
    library.refresh()
    for entry in library.find("0") + library.find("1"):
        library.hashes(entry.id)
    assert library.by_hash(NOTHING) == library.by_hash(NOTHING[:8]) == ()
