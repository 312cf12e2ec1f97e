"""
AdaLoRA: W' = W + gain * alpha / (rank + 1e-5) * B @ diag(E) @ A (arXiv:2303.10512), as PEFT writes it.

The rank is the number of singular values that the training kept. PEFT saves only those; a file that still holds all of
them beside a ``rank_pattern`` of booleans is cut down here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from lora_mixer.algorithms.base import Factored, Factors, HasPair, wide

if TYPE_CHECKING:
    from lora_mixer.algorithms.base import Parts

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

    up: torch.Tensor
    values: torch.Tensor
    down: torch.Tensor
    scale: float
    alpha: float | None

    @classmethod
    def from_parts(cls, parts: Parts) -> AdaLora:
        """
        Check the tensors of one module, cut them to the kept rank and take the scale.

        Raises:
            InvalidAdapterError: When a part is missing or shapes cannot belong together.
        """
        up, values, down = parts.need("up", "lora_E", "down")
        rank = values.numel()
        if up.ndim != 2 or down.ndim != 2 or (up.shape[1], down.shape[0]) != (rank, rank):
            raise parts.broken("do not multiply: expected lora_B (out, r), lora_E (r, 1), lora_A (r, in)")
        kept = _mask(parts, rank)
        if kept is not None:
            up, values, down = up[:, kept], values.flatten()[kept], down[kept]
            rank = len(kept)
        # PEFT takes its r for an alpha that is not positive
        alpha = parts.alpha if parts.alpha is not None and parts.alpha > 0 else float(rank)
        return cls(up, values.reshape(-1, 1), down, alpha / (rank + _EPSILON), parts.alpha)

    def factors(self, shape: tuple[int, ...]) -> Factors:  # noqa: ARG002
        """Give B and diag(E) @ A."""
        return Factors(self.up, wide(self.values) * wide(self.down), self.scale)


def _mask(parts: Parts, rank: int) -> torch.Tensor | None:
    """Give the places of the singular values that the configuration keeps, where the file still holds all of them."""
    patterns = parts.config.get("rank_pattern")
    if not isinstance(patterns, dict):
        return None
    for name, mask in patterns.items():
        module = str(name).removesuffix(".lora_E").removeprefix("base_model.").removeprefix("model.")
        if isinstance(mask, list) and len(mask) == rank and not all(mask) and module == parts.module:
            return torch.tensor([place for place, keep in enumerate(mask) if keep], dtype=torch.long)
    return None
