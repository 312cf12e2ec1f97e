"""Adapter algorithms, one room each: pure functions and values on tensors, no pipeline in sight."""

from __future__ import annotations

from lora_mixer.algorithms.base import LayerWeights, ModuleTensors
from lora_mixer.algorithms.combined import Stack
from lora_mixer.algorithms.dora import Dora
from lora_mixer.algorithms.outputs import Factors

__all__ = ["Dora", "Factors", "LayerWeights", "ModuleTensors", "Stack"]
