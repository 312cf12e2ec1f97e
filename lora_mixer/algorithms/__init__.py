"""Adapter algorithms, one room each: pure functions and values on tensors, no pipeline in sight."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_mixer.algorithms.base import Factors, LayerWeights, Parts
from lora_mixer.algorithms.lora import LowRank

if TYPE_CHECKING:
    from collections.abc import Callable

ALGORITHMS: dict[str, Callable[[Parts], LayerWeights]] = {
    "lora": LowRank.from_parts,
}
"""Algorithm name, as :mod:`lora_mixer.formats.leaves` gives it, to the function that builds its layers."""

UPCOMING = {
    "dora": "DoRA",
    "loha": "LoHa",
    "lokr": "LoKr",
    "glora": "GLoRA",
    "full": "full weight difference (diff)",
    "norm": "trained norms (w_norm)",
    "ia3": "IA3",
    "oft": "OFT",
    "boft": "BOFT",
    "adalora": "AdaLoRA",
    "vera": "VeRA",
    "hra": "HRA",
}
"""Algorithms that are recognised but not applied yet: refused by these names."""

__all__ = ["ALGORITHMS", "UPCOMING", "Factors", "LayerWeights", "LowRank", "Parts"]
