"""
How pictures were made: written into PNG, JPEG and WebP, and read back from them and from other programs' pictures.

Settings go out as the text that other programs read and as an exact block; they come in from eight dialects, and the
adapters that they name are found among those that are here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader  # type: ignore[import-untyped]

if TYPE_CHECKING:
    from lora_mixer.picture_metadata.dialects import DIALECTS
    from lora_mixer.picture_metadata.matching import AdapterMatch, AdapterMatches, match_adapters
    from lora_mixer.picture_metadata.reading import read_picture
    from lora_mixer.picture_metadata.recalled import Recalled, recalled_request
    from lora_mixer.picture_metadata.saving import FORMATS, infotext, save_picture
    from lora_mixer.picture_metadata.settings import PictureAdapter, PictureSettings

# the help of commands needs none of it, and mixes and dialects take longer to import than the help to print
__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "dialects": ["DIALECTS"],
        "matching": ["AdapterMatch", "AdapterMatches", "match_adapters"],
        "reading": ["read_picture"],
        "recalled": ["Recalled", "recalled_request"],
        "saving": ["FORMATS", "infotext", "save_picture"],
        "settings": ["PictureAdapter", "PictureSettings"],
    },
)

__all__ = [
    "DIALECTS",
    "FORMATS",
    "AdapterMatch",
    "AdapterMatches",
    "PictureAdapter",
    "PictureSettings",
    "Recalled",
    "infotext",
    "match_adapters",
    "read_picture",
    "recalled_request",
    "save_picture",
]
