"""
How pictures were made: written into PNG, JPEG and WebP, and read back from them and from other programs' pictures.

Settings go out as the text that other programs read and as an exact block; they come in from eight dialects, and the
adapters that they name are found among those that are here.
"""

from __future__ import annotations

from lora_mixer.recall.dialects import DIALECTS
from lora_mixer.recall.matching import Recall, Slot, match_adapters
from lora_mixer.recall.reading import read_picture
from lora_mixer.recall.saving import FORMATS, picture_text, save_picture
from lora_mixer.recall.settings import PictureSettings, RecalledAdapter

__all__ = [
    "DIALECTS",
    "FORMATS",
    "PictureSettings",
    "Recall",
    "RecalledAdapter",
    "Slot",
    "match_adapters",
    "picture_text",
    "read_picture",
    "save_picture",
]
