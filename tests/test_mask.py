"""Masks: known by content, from every kind of picture, with soft edges."""

from __future__ import annotations

import pickle
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image

from lora_mixer.errors import MixError
from lora_mixer.mixes import Mask, Mix

if TYPE_CHECKING:
    from pathlib import Path

LEFT = np.zeros((6, 10), dtype=np.uint8)
LEFT[:, :5] = 255
LEFT[0, 0] = 128


@pytest.fixture
def png(tmp_path: Path) -> str:
    """A picture on disk."""
    path = str(tmp_path / "left.png")
    Image.fromarray(LEFT).save(path)
    return path


def test_the_same_picture_is_the_same_mask_from_every_source(png: str) -> None:
    """A file, PIL in grey and in colour, bytes, floats, tensors of any layout."""
    share = LEFT / 255
    masks = [
        Mask.of(source)
        for source in (
            png,
            Image.fromarray(LEFT),
            Image.fromarray(LEFT).convert("RGB"),
            LEFT,
            share,
            share.astype(np.float32),
            torch.from_numpy(share),
            torch.from_numpy(LEFT)[None, None],
            torch.from_numpy(LEFT)[..., None],
            {"path": png},
        )
    ]

    assert len(set(masks)) == 1
    assert {mask.load().shape for mask in masks} == {(6, 10)}
    assert all(np.abs(mask.load() - share).max() < 1e-7 for mask in masks)


def test_booleans_are_black_and_white() -> None:
    """As a comparison of arrays gives them."""
    assert Mask.of(LEFT > 200).load()[3, [0, 9]].tolist() == [1.0, 0.0]


def test_one_pixel_makes_another_mask() -> None:
    """By content, to the grey value; and by shape."""
    other = LEFT.copy()
    other[5, 9] = 1

    assert Mask.of(LEFT) != Mask.of(other)
    assert Mask.of(np.ones((2, 8))) != Mask.of(np.ones((4, 4)))
    assert Mask.of(LEFT) != Mask.of(LEFT, feather=1)


def test_feather_softens_edges_and_keeps_the_rest() -> None:
    """Monotone across the edge, half at its middle, untouched far away."""
    step = np.zeros((4, 40))
    step[:, :20] = 1

    row = Mask.of(step, feather=2).load()[2]

    assert row[0] == row[10] == 1.0
    assert row[39] == 0.0
    assert all(left >= right for left, right in pairwise(row))
    assert row[19] + row[20] == pytest.approx(1.0, abs=1e-6)
    assert 0.55 < row[19] < 0.65


def test_a_written_mask_finds_its_picture_again(png: str) -> None:
    """By path, and checked by digest."""
    mix = Mix.of({"a": {"mask": png}})

    again = Mix.from_json(mix.to_json())

    assert again == mix
    assert again["a"].mask is not None
    assert (again["a"].mask.load() == Mask.of(LEFT).load()).all()


def test_a_picture_that_has_changed_is_noticed(png: str) -> None:
    """The mask is the picture, not the path."""
    written = Mask.of(png).to_spec()
    Image.fromarray(255 - LEFT).save(png)

    with pytest.raises(MixError, match="is not the one this mask was made of"):
        Mask.of(written).load()


def test_a_picture_in_memory_is_not_written_but_travels() -> None:
    """Its digest is written; a pickle has all."""
    mask = Mask.of(LEFT, feather=1.5)

    assert mask.to_spec() == {"digest": mask.digest, "feather": 1.5}
    with pytest.raises(MixError, match="only the digest"):
        Mask.of(mask.to_spec()).load()
    assert (pickle.loads(pickle.dumps(mask)).load() == mask.load()).all()


def test_one_line_says_a_mask(png: str) -> None:
    """With a feather beside it."""
    mask = Mix.of(f'a:0.5,mask="{png}",feather=3')["a"].mask

    assert mask == Mask.of(LEFT, feather=3)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("nowhere.png", 'there is no picture "nowhere.png"'),
        (np.zeros((3, 4, 5)), "(height, width), got shape (3, 4, 5)"),
        (np.zeros(4), "(height, width), got shape (4,)"),
        (np.zeros((0, 4)), "(height, width)"),
        (np.array([[0.5, 2.0]]), "values from 0 to 1 (or bytes), got 0.5 to 2"),
        (np.array([[np.nan, 0.5]]), "values from 0 to 1"),
        (np.array([["x", "y"]]), "a picture or numbers"),
        (None, "a picture or numbers"),
        (3, "got 3"),
        ({"path": 3}, 'expected a "path" or a "digest"'),
        ({}, 'expected a "path" or a "digest"'),
        ({"digest": "xyz"}, "64 hexadecimal digits"),
        ({"digest": "0" * 64, "fether": 1}, 'Did you mean "feather"'),
        ({"digest": "0" * 64, "feather": -1}, "from 0 to 16384"),
        ({"digest": "0" * 64, "feather": 1e9}, "from 0 to 16384"),
    ],
)
def test_what_is_no_mask_is_refused_with_a_reason(source: object, said: str) -> None:
    """Always our error."""
    with pytest.raises(MixError) as caught:
        Mask.of(source)

    assert said in str(caught.value)


def test_a_file_that_is_no_picture_is_refused(tmp_path: Path) -> None:
    """And named."""
    path = tmp_path / "x.png"
    path.write_bytes(b"no picture")

    with pytest.raises(MixError, match=r"x\.png\" is not a picture"):
        Mask.of(path)


def test_where_masks_are_given_no_path_is_opened(tmp_path):
    half = np.zeros((4, 8), dtype=np.float32)
    half[:, :4] = 1
    Image.fromarray((half * 255).astype(np.uint8)).save(tmp_path / "half.png")
    mask = Mask.of(half)
    known = {mask.digest: half}

    for text in (f"a:1,mask={mask.digest}", '{"a": {"mask": {"digest": "' + mask.digest + '"}}}'):
        found = Mix.of(text, masks=known)["a"].mask
        assert found == mask
        assert found.load().tolist() == half.tolist()
    soft = Mix.of({"a": {"mask": {"digest": mask.digest, "feather": 2}}}, masks=known)
    assert soft["a"].mask == Mask.of(half, 2)
    for asked in (
        str(tmp_path / "half.png"),
        {"path": str(tmp_path / "half.png")},
        {"path": str(tmp_path / "half.png"), "digest": mask.digest},
        {"digest": "0" * 64},
        7,
    ):
        with pytest.raises(MixError, match="not opened by path"):
            Mix.of({"a": {"mask": asked}}, masks=known)
