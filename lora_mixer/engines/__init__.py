"""Engines put a mix into effect; each leaves no trace when it goes."""

from __future__ import annotations

from lora_mixer.engines.merged import MixLostError
from lora_mixer.engines.setting import BASE, Engine, Setting
from lora_mixer.engines.slots import BaseDevice
from lora_mixer.engines.stage import Stage
from lora_mixer.engines.words import Word, Words

__all__ = ["BASE", "BaseDevice", "Engine", "MixLostError", "Setting", "Stage", "Word", "Words"]
