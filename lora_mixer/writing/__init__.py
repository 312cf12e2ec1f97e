"""Adapters to files that other programs read: Kohya's, PEFT's and diffusers' formats, one adapter or a mix."""

from __future__ import annotations

from lora_mixer.writing.bake import bake
from lora_mixer.writing.compose import as_loaded, mixed
from lora_mixer.writing.formats import FORMATS, write
from lora_mixer.writing.layers import NewLayer, Part, Place
from lora_mixer.writing.names import Names
from lora_mixer.writing.report import SaveReport

__all__ = [
    "FORMATS",
    "Names",
    "NewLayer",
    "Part",
    "Place",
    "SaveReport",
    "as_loaded",
    "bake",
    "mixed",
    "write",
]
