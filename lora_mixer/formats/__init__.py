"""Files to adapters: containers, key spellings, scales and metadata of every layout; no model in sight."""

from __future__ import annotations

from lora_mixer.formats.collector import paused_gc
from lora_mixer.formats.reader import check_held, read, read_embeddings, read_info, read_trainable

__all__ = ["check_held", "paused_gc", "read", "read_embeddings", "read_info", "read_trainable"]
