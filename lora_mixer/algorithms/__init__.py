"""Adapter algorithms, one room each: pure functions and values on tensors, no pipeline in sight."""

from __future__ import annotations

from lora_mixer.algorithms.base import Factors, LayerWeights, ModuleTensors
from lora_mixer.algorithms.combined import Stack
from lora_mixer.algorithms.dora import Dora

__all__ = ["Dora", "Factors", "LayerWeights", "ModuleTensors", "Stack"]
