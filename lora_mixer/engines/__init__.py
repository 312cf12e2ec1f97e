"""Engines put a mix into effect; each leaves no trace when it goes."""

from __future__ import annotations

from lora_mixer.engines.merged import MergedEngine, MixLostError
from lora_mixer.engines.slots import BaseDevice

__all__ = ["BaseDevice", "MergedEngine", "MixLostError"]
