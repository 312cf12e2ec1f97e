"""A small library for tests, and what they ask of it."""

from __future__ import annotations

import pytest

from lora_mixer.library import Library
from tests.loras import tag_frequency, write_lora


@pytest.fixture(name="folder")
def library_folder(tmp_path):
    """Five adapters in two folders, one of them broken."""
    place = tmp_path / "loras"
    write_lora(
        place / "ink.safetensors",
        rank=4,
        **{"modelspec.title": "Ink wash", "ss_tag_frequency": tag_frequency(brush=5, cat=9)},
    )
    write_lora(place / "ink drawing.safetensors", rank=16, **{"modelspec.trigger_phrase": "inkdrw, lines"})
    write_lora(place / "styles" / "watercolor.safetensors", base="SDXL", rank=8)
    write_lora(place / "styles" / "old" / "drinking.safetensors", base="SD 2.x", rank=2)
    (place / "broken.safetensors").write_bytes(b"\xff" * 64)
    return place


@pytest.fixture(name="library")
def small_library(folder, tmp_path):
    found = Library(folder, index=tmp_path / "index.sqlite")
    found.refresh()
    return found


def names(page):
    return [entry.name for entry in page.entries]


def one(library, name):
    (entry,) = library.find(name)
    return entry


def never(*_):
    raise AssertionError("a file was read")
