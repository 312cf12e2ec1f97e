"""
Mixes as values: frozen, validated, serialisable, without any model.

The mixer and its engines ask a mix for one thing only: the gain of an adapter on a layer, at a step. All grammars are
listed in ``docs/mixes.md``.
"""

from __future__ import annotations

from lora_mixer.mixes.adapter import AdapterMix
from lora_mixer.mixes.mix import Mix
from lora_mixer.mixes.schedule import Constant, Keyframes, Ramp, Schedule, SliderStart, Window

__all__ = [
    "AdapterMix",
    "Constant",
    "Keyframes",
    "Mix",
    "Ramp",
    "Schedule",
    "SliderStart",
    "Window",
]
