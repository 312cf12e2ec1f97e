"""Pictures keep how they were made: other programs read the text, and this package reads back all of it."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image

from lora_mixer.errors import PictureMetadataError, SaveError
from lora_mixer.mixes import Mask, Mix
from lora_mixer.picture_metadata import (
    FORMATS,
    PictureAdapter,
    PictureSettings,
    infotext,
    read_picture,
    save_picture,
)
from tests.pictures import exif
from tests.test_mix import mixes

PICTURE = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
HASHES = {
    "ink": {"sha256": "a" * 64, "sshs_model_hash": "b" * 64, "autov3": "b" * 12},
    "oil": {"autov2": "c" * 10},
}
FULL = PictureSettings(
    'a "castle", 城 🏰\nover: two lines', "rain\nNegative prompt: snow", 2**63, 20, 7.5, 64, 96, sampler="euler",
    model="demo, v1", model_hash="0123456789", mix="ink:0.8,te=0.2,schedule=linear(0, 1), oil:-0.5,lbw=OUTALL", version="0.1.0",
    extra={"scheduler": "karras"},
)  # fmt: skip

suffixes = pytest.mark.parametrize("suffix", FORMATS)


@suffixes
def test_everything_comes_back(tmp_path, suffix):
    path = save_picture(PICTURE, tmp_path / f"new/x{suffix}", FULL, hashes=HASHES)

    again = read_picture(path)
    assert again == replace(FULL.with_hashes(HASHES), dialect="lora_mixer")
    assert again.mix.fingerprint == FULL.mix.fingerprint
    assert again.mix.names == FULL.mix.names
    assert again.notes == ()


def test_the_size_is_the_pictures_where_none_is_said(tmp_path):
    path = save_picture(PICTURE, tmp_path / "x.png", PictureSettings("a"))

    assert (read_picture(path).width, read_picture(path).height) == (4, 4)


@hypothesis_settings(max_examples=60)
@given(mixes, st.sampled_from(sorted(FORMATS)))
def test_any_mix_comes_back_equal(tmp_path_factory, mix, suffix):
    path = save_picture(PICTURE, tmp_path_factory.mktemp("x") / f"x{suffix}", PictureSettings("a", mix=mix))

    again = read_picture(path)
    assert again.mix == mix
    assert again.mix.names == mix.names
    assert again.notes == ()


@pytest.mark.parametrize(
    "mix",
    [
        "a:0.5,schedule=window(0.2, 0.8), b:te=0@0,1@0.5",
        {"a": {"unet": {"down": 0.5, "up": {"block_0": [0.1, 0.5, 0.9]}}, "te": 0}},
        {"a": {"blocks": {"patterns": {"*": 0, "re:.*attn[12].*": 0.25}}}, "b": {"blocks": "b-lora:style"}},
        'a:0, b:1 | switch(tau=3, adapters=["b", "a"])',
        'a, b | k_lora(content="a", style="b")',
        [("adapters", 0.5)],
        {},
    ],
    ids=["schedules", "blocks", "patterns", "switch", "k-lora", "odd name", "empty"],
)  # fmt: skip
def test_every_form_of_mix_comes_back_equal(tmp_path, mix):
    path = save_picture(PICTURE, tmp_path / "x.jpg", PictureSettings("a", mix=Mix.of(mix)))

    assert read_picture(path).mix == Mix.of(mix)


def test_the_text_is_what_other_programs_read():
    text = infotext(FULL, HASHES)

    assert text == (
        'a "castle", 城 🏰\nover: two lines <lora:ink:0.2:0.8:schedule=linear(0, 1)> <lora:oil:-0.5:lbw=OUTALL>\n'
        "Negative prompt: rain\nNegative prompt: snow\n"
        "Steps: 20, Sampler: euler, CFG scale: 7.5, Seed: 9223372036854775808, Size: 64x96, Model hash: 0123456789, "
        f'Model: "demo, v1", Lora hashes: "ink: {"b" * 12}, oil: {"c" * 10}", Version: lora-mixer 0.1.0'
    )


def test_what_tags_cannot_say_stands_behind_as_a_mix():
    mix = Mix.of({"adapters": {"a:b": 0.5, "c": {"unet": {"down": 0.5}}}, "method": "switch(2)"})

    text = infotext(PictureSettings("x", mix=mix))

    first, last = text.split("\n")
    assert first == "x <lora:a_b:0.5> <lora:c:1>"
    key, _, value = last.rpartition(", Version: ")[0].partition(": ")
    assert key == "LoRA mix"
    assert Mix.of(json.loads(value)) == mix


def test_pngs_and_exif_have_the_same_text_in_the_places_that_others_look_in(tmp_path):
    png, jpg, webp = (save_picture(PICTURE, tmp_path / f"x.{end}", FULL) for end in ("png", "jpg", "webp"))

    with Image.open(png) as image:
        assert image.text["parameters"] == infotext(FULL)
    for path in (jpg, webp):
        with Image.open(path) as image:
            comment = image.getexif().get_ifd(0x8769)[0x9286]
        assert comment == b"UNICODE\0" + infotext(FULL).encode("utf-16-be")


@suffixes
def test_the_same_input_gives_the_same_bytes(tmp_path, suffix):
    one, other = (save_picture(PICTURE, tmp_path / f"{name}{suffix}", FULL) for name in "ab")

    assert one.read_bytes() == other.read_bytes()


def test_png_and_lossless_webp_keep_every_pixel(tmp_path):
    for path in (
        save_picture(PICTURE, tmp_path / "x.png", FULL),
        save_picture(PICTURE, tmp_path / "x.webp", FULL, quality=100),
    ):
        with Image.open(path) as image:
            assert np.array_equal(np.asarray(image.convert("RGB")), np.asarray(PICTURE))


def test_a_pictures_earlier_texts_do_not_come_along(tmp_path):
    stale = PICTURE.copy()
    stale.info = {"parameters": "old", "exif": exif(b"old"), "comment": b"old"}

    for suffix in FORMATS:
        path = save_picture(stale, tmp_path / f"x{suffix}", PictureSettings("new"))
        assert read_picture(path).prompt == "new"
        assert b"old" not in path.read_bytes()


def test_masks_travel_inside_and_paths_do_not(tmp_path):
    half = np.zeros((8, 8), dtype=np.uint8)
    half[:, :4] = 255
    Image.fromarray(half).save(tmp_path / "secret-place.png")
    soft = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    mix = Mix.of({
        "a": {"weight": 1, "mask": {"path": str(tmp_path / "secret-place.png"), "feather": 2}},
        "b": {"weight": 1, "mask": Mask.of(soft)},
    })  # fmt: skip

    for suffix in (".png", ".jpg"):
        path = save_picture(PICTURE, tmp_path / f"x{suffix}", PictureSettings("x", mix=mix))
        (tmp_path / "secret-place.png").unlink(missing_ok=True)
        again = read_picture(path).mix
        assert again == mix
        assert again["a"].mask.path is None
        assert np.array_equal(again["a"].mask.load(), Mask.of(half, 2).load())
        assert np.abs(again["b"].mask.load() - soft).max() < 1e-5
        assert b"secret-place" not in path.read_bytes().replace(b"\0", b"")


def test_masks_too_large_for_a_jpeg_are_left_out_with_a_note(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (512, 512), dtype=np.uint8)
    mix = Mix.of({"a": {"weight": 1, "mask": Mask.of(noise)}})

    png = read_picture(save_picture(PICTURE, tmp_path / "x.png", PictureSettings("x", mix=mix)))
    jpg = read_picture(save_picture(PICTURE, tmp_path / "x.jpg", PictureSettings("x", mix=mix)))

    assert np.array_equal(png.mix["a"].mask.load() * 255, noise)
    assert jpg.mix == mix
    assert "the mask is not in the picture" in jpg.notes[0]


def test_settings_too_long_for_a_jpeg_are_refused_and_nothing_is_written(tmp_path):
    long = PictureSettings("word " * 20_000)

    with pytest.raises(SaveError, match=r"a JPEG has room for 65000; save it as \.png or \.webp"):
        save_picture(PICTURE, tmp_path / "x.jpg", long)
    assert list(tmp_path.iterdir()) == []
    assert read_picture(save_picture(PICTURE, tmp_path / "x.webp", long)).prompt == long.prompt


def test_a_failed_write_leaves_the_old_picture_and_no_rest(tmp_path, monkeypatch):
    path = save_picture(PICTURE, tmp_path / "x.png", PictureSettings("old"))

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(SaveError, match="No space left"):
        save_picture(PICTURE, path, PictureSettings("new"))

    assert read_picture(path).prompt == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["x.png"]


@pytest.mark.parametrize("name", ["x.gif", "x", "x.png.txt"])
def test_other_endings_are_refused(tmp_path, name):
    with pytest.raises(SaveError, match=r"expected a name that ends with \.png"):
        save_picture(PICTURE, tmp_path / name, FULL)


@pytest.mark.parametrize("quality", [0, 101, 50.5])
def test_other_qualities_are_refused(tmp_path, quality):
    with pytest.raises(SaveError, match="quality must be a whole number"):
        save_picture(PICTURE, tmp_path / "x.jpg", FULL, quality=quality)


def test_settings_that_cannot_be_are_refused_all_at_once():
    with pytest.raises(PictureMetadataError) as caught:
        PictureSettings(3, seed=0.5, steps=-1, width=True, guidance_scale=float("nan"))  # type: ignore[arg-type]

    for name in ("prompt", "seed", "steps", "width", "guidance_scale"):
        assert f"{name}: expected" in str(caught.value)


def test_foreign_settings_can_be_saved_again_with_their_missing_adapters(tmp_path):
    adapters = (PictureAdapter("gone", 0.0, 0.5, {"autov2": "0123456789"}), PictureAdapter("here", 0.25))
    settings = PictureSettings("x", seed=1, adapters=adapters, width=4, height=4)

    again = read_picture(save_picture(PICTURE, tmp_path / "x.png", settings))

    assert again.adapters == adapters


def test_the_text_alone_is_enough_for_the_weights(tmp_path):
    """Some sites keep the one chunk that they know."""
    picture = PICTURE.copy()
    picture.info["parameters"] = infotext(replace(FULL, negative_prompt="rain"), HASHES)

    again = read_picture(picture)

    assert again.dialect == "a1111"
    assert again.prompt == FULL.prompt
    assert (again.seed, again.steps, again.width, again.height, again.model) == (
        2**63,
        20,
        64,
        96,
        "demo, v1",
    )
    assert {each.name: each.adapter_mix() for each in again.adapters} == dict(FULL.mix.adapters)


def test_a_mix_that_somebody_changed_is_noted(tmp_path):
    path = save_picture(PICTURE, tmp_path / "x.png", PictureSettings("x", mix="a:0.5"))
    with Image.open(path) as image:
        image.load()
        block = json.loads(image.text["lora_mixer"])
    picture = PICTURE.copy()
    picture.info["lora_mixer"] = json.dumps({**block, "mix": {"a": 0.75}})

    again = read_picture(picture)

    assert again.mix["a"].weight == 0.75
    assert "fingerprint" in again.notes[0]


def test_a_block_of_a_later_format_is_noted():
    picture = PICTURE.copy()
    picture.info |= {"lora_mixer": '{"format": 2}', "parameters": "x\nSteps: 1, Seed: 1, Size: 4x4"}

    again = read_picture(picture)

    assert again.dialect == "a1111"
    assert 'has format "2", this version reads 1' in again.notes[0]


def test_a_mask_that_is_not_the_one_named_is_not_taken():
    black = io.BytesIO()
    Image.new("L", (4, 4)).save(black, "PNG")
    mask = Mask.of(np.full((4, 4), 255, dtype=np.uint8))
    picture = PICTURE.copy()
    picture.info["lora_mixer"] = json.dumps({
        "format": 1,
        "mix": {"a": {"weight": 1, "mask": {"digest": mask.digest}}},
        "masks": {mask.digest: base64.b64encode(black.getvalue()).decode()},
    })  # fmt: skip

    again = read_picture(picture)

    assert again.mix["a"].mask.picture is None
    assert "not in the picture" in again.notes[0]
