"""Adapters onto live modules, with a report of what was found."""

from __future__ import annotations

from lora_mixer.binding.bind import Binding, bind, refuse_unusable
from lora_mixer.binding.components import find_components
from lora_mixer.binding.index import ModuleIndex
from lora_mixer.binding.layers import BoundLayer
from lora_mixer.binding.lineage import Lineage, Rebinder
from lora_mixer.binding.memory import ModelMemory
from lora_mixer.binding.reach import check_components, without_effect
from lora_mixer.binding.report import ComponentMatch, MatchReport

__all__ = [
    "Binding",
    "BoundLayer",
    "ComponentMatch",
    "Lineage",
    "MatchReport",
    "ModelMemory",
    "ModuleIndex",
    "Rebinder",
    "bind",
    "check_components",
    "find_components",
    "refuse_unusable",
    "without_effect",
]
