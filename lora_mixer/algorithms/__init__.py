"""Adapter algorithms, one room each: pure functions and values on tensors, no pipeline in sight."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lora_mixer.algorithms.adalora import AdaLora
from lora_mixer.algorithms.base import Factors, LayerWeights, Parts
from lora_mixer.algorithms.boft import BOFT, PeftBOFT
from lora_mixer.algorithms.c3a import C3A
from lora_mixer.algorithms.combined import Sparse, Stack
from lora_mixer.algorithms.delora import DeLoRA
from lora_mixer.algorithms.dora import Dora
from lora_mixer.algorithms.full import Full, Norm
from lora_mixer.algorithms.glora import GLoRA
from lora_mixer.algorithms.gralora import GraLoRA
from lora_mixer.algorithms.hira import HiRA
from lora_mixer.algorithms.hra import HRA
from lora_mixer.algorithms.ia3 import IA3
from lora_mixer.algorithms.loha import LoHa
from lora_mixer.algorithms.lokr import LoKr
from lora_mixer.algorithms.miss import MiSS
from lora_mixer.algorithms.oft import OFT
from lora_mixer.algorithms.oft_peft import PeftOFT
from lora_mixer.algorithms.rows import Chunks
from lora_mixer.algorithms.ungrouped import pair_from_parts
from lora_mixer.algorithms.values import Tokens, Values
from lora_mixer.algorithms.vera import Vera

if TYPE_CHECKING:
    from collections.abc import Callable


def _diagonal_or_butterfly(parts: Parts) -> LayerWeights:
    """
    Tell LyCORIS' OFT from its BOFT: both say ``oft_blocks``, the butterfly has an axis of stages.

    Kohya's OFT of a fused layer has numbered ones, a rotation for each part.
    """
    numbered = sorted((role for role in parts.tensors if role.startswith("oft_blocks_")), key=len)
    if numbered:
        tensors = parts.need(*(f"oft_blocks_{number}" for number in range(len(numbered))))
        rotations = tuple(OFT.from_parts(replace(parts, tensors={"oft_blocks": t})) for t in tensors)
        sizes = tuple(tensor.shape[0] * tensor.shape[1] for tensor in tensors)
        return rotations[0] if len(rotations) == 1 else Chunks(rotations, sizes, None)
    blocks = parts.tensors.get("oft_blocks")
    return BOFT.from_parts(parts) if blocks is not None and blocks.ndim == 4 else OFT.from_parts(parts)


ALGORITHMS: dict[str, Callable[[Parts], LayerWeights]] = {
    "lora": pair_from_parts,
    "loha": LoHa.from_parts,
    "lokr": LoKr.from_parts,
    "glora": GLoRA.from_parts,
    "adalora": AdaLora.from_parts,
    "vera": Vera.from_parts,
    "sparse": Sparse.from_parts,
    "oft": _diagonal_or_butterfly,
    "oft_peft": PeftOFT.from_parts,
    "boft_peft": PeftBOFT.from_parts,
    "hra": HRA.from_parts,
    "hira": HiRA.from_parts,
    "c3a": C3A.from_parts,
    "gralora": GraLoRA.from_parts,
    "delora": DeLoRA.from_parts,
    "miss": MiSS.from_parts,
    "shira": Sparse.of_shira,
    "ia3": IA3.from_parts,
    "full": Full.from_parts,
    "norm": Norm.from_parts,
    "set": Values.from_parts,
    "tokens": Tokens.from_parts,
}
"""Algorithm name, as :mod:`lora_mixer.formats.leaves` gives it, to the function that builds its layers."""

REFUSED = {
    "kasa": "KaSA, which takes small singular values out of the base as well",
    "tlora": "T-LoRA, whose change is the difference from an initialisation that the file does not hold",
    "oft_old": "OFT of PEFT before 0.16 (oft_r), which rotates differently from release to release",
}
"""Algorithms that are recognised but cannot be applied: refused by these names."""

__all__ = ["ALGORITHMS", "REFUSED", "Dora", "Factors", "LayerWeights", "Parts", "Stack"]
