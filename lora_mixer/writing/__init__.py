"""
Adapters to files that other programs read: convert, merge, resize and extract files, bake a mix into a model.

Formats are diffusers', Kohya's, ComfyUI's and PEFT's (``FORMATS``). ``LoraMixer.save_lora_weights`` writes what a mixer holds by the same parts.
"""

from __future__ import annotations

from lora_mixer.writing.bake import bake, free_folder
from lora_mixer.writing.export import convert, extract, merge, resize
from lora_mixer.writing.formats.format import OutputFormat
from lora_mixer.writing.formats.table import FORMATS
from lora_mixer.writing.publishing import model_card, push_to_hub
from lora_mixer.writing.report import SaveReport

__all__ = [
    "FORMATS",
    "OutputFormat",
    "SaveReport",
    "bake",
    "convert",
    "extract",
    "free_folder",
    "merge",
    "model_card",
    "push_to_hub",
    "resize",
]
