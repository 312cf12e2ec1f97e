"""
Adapter algorithms, one file each: pure functions and values on tensors, no pipeline in sight.

The table of all of them, with how files name their keys, is :mod:`lora_mixer.algorithms.table`. Headers are read by it without
torch, so this room imports what needs torch at the first look.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lora_mixer.algorithms.base import LayerWeights, ModuleTensors
    from lora_mixer.algorithms.combined import Stack
    from lora_mixer.algorithms.dora import Dora
    from lora_mixer.algorithms.outputs import Factors

__all__ = ["Dora", "Factors", "LayerWeights", "ModuleTensors", "Stack"]

_FILES = {
    "Dora": "dora",
    "Factors": "outputs",
    "LayerWeights": "base",
    "ModuleTensors": "base",
    "Stack": "combined",
}


def __getattr__(name: str) -> object:
    """Return a name of ``__all__`` from its file."""
    if name not in _FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(f"{__name__}.{_FILES[name]}"), name)
    globals()[name] = value
    return value
