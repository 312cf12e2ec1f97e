"""
AdaLoRA: W' = W + gain * alpha / (initial rank + 1e-5) * B @ diag(E) @ A (arXiv:2303.10512), as PEFT writes it.

The divisor is the rank that the training began with, in every module and for ever: the length of a module's mask in
``rank_pattern``, else ``init_r``. PEFT saves only the singular values that a mask keeps, in some modules none; a file that
still holds all of them is cut down here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from lora_mixer.algorithms.base import Factored, HasPair, wide
from lora_mixer.algorithms.outputs import Factors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_mixer.algorithms.base import ModuleTensors

_EPSILON = 1e-5  # PEFT's guard for a rank of zero; part of the meaning of its files


@dataclass(frozen=True)
class AdaLora(HasPair, Factored):
    """
    A singular value decomposition with trained parts.

    Attributes:
        up: (out, rank).
        values: (rank, 1).
        down: (rank, in * kernel).
        scale: What the product is multiplied by.
        alpha: The alpha in force.
    """

    algorithm: ClassVar[str] = "adalora"
    factors_of_all: ClassVar[tuple[str, ...]] = (*HasPair.factors_of_all, "values", "scale")

    up: torch.Tensor
    values: torch.Tensor
    down: torch.Tensor
    scale: float
    alpha: float | None

    @classmethod
    def from_parts(cls, parts: ModuleTensors) -> AdaLora:
        """
        Check the tensors of one module, cut them to the kept rank and take the scale.

        Raises:
            InvalidAdapterError: When a part is missing or shapes cannot belong together.
        """
        up, values, down = parts.need("up", "lora_E", "down")
        rank = values.numel()
        if up.ndim != 2 or down.ndim != 2 or (up.shape[1], down.shape[0]) != (rank, rank):
            raise parts.broken("do not multiply: expected lora_B (out, r), lora_E (r, 1), lora_A (r, in)")
        mask = _mask(parts)
        initial = len(mask) if mask is not None else int(parts.number("init_r", rank, 0, 2**31))
        if mask is not None and len(mask) == rank and not all(mask):
            kept = torch.tensor([place for place, keep in enumerate(mask) if keep], dtype=torch.long)
            up, values, down = up[:, kept], values.flatten()[kept], down[kept]
        # PEFT takes its r for an alpha that is not positive
        alpha = parts.alpha if parts.alpha is not None and parts.alpha > 0 else float(initial)
        return cls(up, values.reshape(-1, 1), down, alpha / (initial + _EPSILON), parts.alpha)

    def factors(self, shape: tuple[int, ...]) -> Factors:  # noqa: ARG002
        """Return B and diag(E) @ A."""
        return Factors(self.up, wide(self.values) * wide(self.down), self.scale)


def _mask(parts: ModuleTensors) -> list[bool] | None:
    """Return the configuration's mask of this module, one entry for each rank that training began with."""
    masks = parts.config.once(_masks)
    kept = [masks[name] for name in (parts.module, *parts.spellings) if name in masks]
    return [bool(keep) for keep in min(kept)[1]] if kept else None


def _masks(config: Mapping[str, Any]) -> dict[str, tuple[int, list[Any]]]:
    """Return the masks by module, each with its place: where two are for one module, the first counts."""
    patterns = config.get("rank_pattern")
    masks: dict[str, tuple[int, list[Any]]] = {}
    for place, (name, mask) in enumerate(patterns.items() if isinstance(patterns, dict) else ()):
        module = str(name).removesuffix(".lora_E").removeprefix("base_model.").removeprefix("model.")
        if isinstance(mask, list):
            masks.setdefault(module, (place, mask))
    return masks
