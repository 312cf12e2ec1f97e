"""Files to adapters: containers, key spellings, scales and metadata of every layout; no model in sight."""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader  # type: ignore[import-untyped]

if TYPE_CHECKING:
    from lora_mixer.formats.collector import paused_gc
    from lora_mixer.formats.info import read_info
    from lora_mixer.formats.reader import check_held, read_embeddings, read_source, read_trainable

# headers are read without torch, which takes seconds to import
__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "collector": ["paused_gc"],
        "info": ["read_info"],
        "reader": ["check_held", "read_source", "read_embeddings", "read_trainable"],
    },
)

__all__ = ["check_held", "paused_gc", "read_embeddings", "read_info", "read_source", "read_trainable"]
