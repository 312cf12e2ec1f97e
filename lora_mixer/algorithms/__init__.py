"""
Adapter algorithms, one file each: pure functions and values on tensors, no pipeline in sight.

The table of all of them, with how files name their keys, is :mod:`lora_mixer.algorithms.table`. Headers are read by it without
torch, so this room imports what needs torch at the first look.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader  # type: ignore[import-untyped]

if TYPE_CHECKING:
    from lora_mixer.algorithms.base import LayerWeights, ModuleTensors
    from lora_mixer.algorithms.combined import Combined
    from lora_mixer.algorithms.dora import Dora
    from lora_mixer.algorithms.outputs import Factors

__all__ = ["Combined", "Dora", "Factors", "LayerWeights", "ModuleTensors"]

__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "base": ["LayerWeights", "ModuleTensors"],
        "combined": ["Combined"],
        "dora": ["Dora"],
        "outputs": ["Factors"],
    },
)
