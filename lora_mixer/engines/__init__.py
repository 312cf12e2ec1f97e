"""Engines put a mix into effect; each leaves no trace when it goes."""

from __future__ import annotations

from lora_mixer.engines.active import BASE, ActiveMixes
from lora_mixer.engines.controller import EngineController
from lora_mixer.engines.merged.kept_weight import BaseDevice

__all__ = ["BASE", "ActiveMixes", "BaseDevice", "EngineController"]
