"""
Adapter algorithms, one file each: pure functions and values on tensors, no pipeline in sight.

The table of all of them, with how files name their keys, is :mod:`lora_mixer.formats.kinds`: headers are read by it without torch.
"""

from __future__ import annotations

from lora_mixer.algorithms.base import LayerWeights, ModuleTensors
from lora_mixer.algorithms.combined import Stack
from lora_mixer.algorithms.dora import Dora
from lora_mixer.algorithms.outputs import Factors

__all__ = ["Dora", "Factors", "LayerWeights", "ModuleTensors", "Stack"]
