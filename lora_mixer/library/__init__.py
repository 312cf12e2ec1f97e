"""
Adapters and mixes that people keep: folders as an indexed library, and a book of saved mixes.

Everything here is plain Python for whoever has many adapters: the web page, batches and scripts.
"""

from __future__ import annotations

from lora_mixer.library._searching import SORTS, SortOrder
from lora_mixer.library.adding import safe_name
from lora_mixer.library.compatibility import Compatibility, Fit, base_family, compatible
from lora_mixer.library.entry import Entry, Page, Refreshed
from lora_mixer.library.library import Library
from lora_mixer.library.norms import LayerNorms, layer_norms
from lora_mixer.library.saved_mixes import SavedMixes

__all__ = [
    "SORTS",
    "Compatibility",
    "Entry",
    "Fit",
    "LayerNorms",
    "Library",
    "Page",
    "Refreshed",
    "SavedMixes",
    "SortOrder",
    "base_family",
    "compatible",
    "layer_norms",
    "safe_name",
]
