"""
GLoRA: W' = W + gain * (alpha / rank) * (W @ a1 @ a2 + b1 @ b2), a change of the weight by itself and beside it.

Generalized LoRA (arXiv:2306.07967) as LyCORIS writes it. Since LyCORIS 3: a1 (in, r), a2 (r, in), b1 (out, r),
b2 (r, in[, k, k]); before, the same with the two of each pair swapped: W @ a2 @ a1 + b2 @ b1. They are told apart by
the side on which all four agree on the rank. The change depends on the base; it is taken from the clean one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from lora_mixer.algorithms.base import LayerWeights, all_zero, flat_misfit, take_rows
from lora_mixer.algorithms.lora import fold_core

if TYPE_CHECKING:
    import torch

    from lora_mixer.algorithms.base import ModuleTensors, Ranges


@dataclass(frozen=True)
class GLoRA(LayerWeights):
    """
    A GLoRA quadruple in the newer order.

    Attributes:
        a1: (in, rank).
        a2: (rank, in).
        b1: (out, rank).
        b2: (rank, in, *kernel); with a core (rank, in).
        core: (rank, rank, *kernel), or None.
        scale: What the change is multiplied by.
        alpha: The alpha in force, or None.
    """

    algorithm: ClassVar[str] = "glora"
    factors_of_all: ClassVar[tuple[str, ...]] = ("scale",)
    told_by_shapes: ClassVar[bool] = True

    a1: torch.Tensor
    a2: torch.Tensor
    b1: torch.Tensor
    b2: torch.Tensor
    core: torch.Tensor | None
    scale: float
    alpha: float | None

    @classmethod
    def from_parts(cls, parts: ModuleTensors) -> GLoRA:
        """
        Check the tensors of one module, tell its order and take its scale.

        Raises:
            InvalidAdapterError: When a part is missing or the four agree on no rank.
        """
        a1, a2, b1, b2 = parts.need("glora_a1", "glora_a2", "glora_b1", "glora_b2")
        if any(t.ndim < 2 for t in (a1, a2, b1, b2)):
            raise parts.broken("expected matrices or convolution kernels")
        orders = [order for order in ((a1, a2, b1, b2), (a2, a1, b2, b1)) if _agree(*order)]
        if not orders:
            raise parts.broken("agree on no rank: expected a1 (in, r), a2 (r, in), b1 (out, r), b2 (r, in)")
        # Both can agree on a square layer only when one of the two ranks is the layer's own width.
        a1, a2, b1, b2 = min(orders, key=lambda order: order[1].shape[0])
        rank, core = a2.shape[0], parts.tensors.get("glora_bm")
        if core is not None and (core.ndim < 3 or core.shape[:2] != (rank, rank) or b2[0, 0].numel() != 1):
            raise parts.broken("expected a core (r, r, *kernel) over b2 (r, in, 1, 1)")
        return cls(
            a1.flatten(1),
            a2.flatten(1),
            b1.flatten(1),
            b2,
            core,
            parts.scale_for(rank),
            parts.alpha,
        )

    @property
    def rank(self) -> int:
        """The rank."""
        return self.a2.shape[0]

    @property
    def in_width(self) -> int:
        """Input width."""
        return self.a2.shape[1]

    def take(self, ranges: Ranges, total: int) -> LayerWeights:  # noqa: ARG002 -- b1 knows its rows
        """Return rows of ``b1``; the other part multiplies the base's own rows."""
        return replace(self, b1=take_rows(self.b1, ranges))

    def misfit(self, shape: tuple[int, ...]) -> str | None:
        """Say why this cannot change a weight of ``shape``, or None."""
        if len(shape) < 2 or self.a1.shape[0] != shape[1]:
            return f"made for {self.a1.shape[0]} inputs, the module has {shape}"
        kernel = self.b2[0].numel() if self.core is None else self.b2.shape[1] * self.core[0, 0].numel()
        return flat_misfit((self.b1.shape[0], kernel), shape)

    def is_zero(self) -> bool:
        """Say whether the scale is zero, or a factor of both products."""
        first = all_zero(self.a1) or all_zero(self.a2)
        second = all_zero(self.b1) or all_zero(self.b2) or all_zero(self.core)
        return super().is_zero() or (first and second)

    def delta(self, base: torch.Tensor, gain: float) -> torch.Tensor:
        """Return gain * scale * (W @ a1 @ a2 + b1 @ b2), the first over W's input axis."""
        down = self.b2 if self.core is None else fold_core(self.core, self.b2)
        beside = (self.b1.to(base) @ down.flatten(1).to(base)).reshape(base.shape)
        flat = base.movedim(1, -1)  # (out, *kernel, in)
        itself = (flat @ self.a1.to(base) @ self.a2.to(base)).movedim(-1, 1)
        return (beside + itself).mul_(gain * self.scale)


def _agree(a1: torch.Tensor, a2: torch.Tensor, b1: torch.Tensor, b2: torch.Tensor) -> bool:
    rank = a2.shape[0]
    return (
        a1.shape[1] == b1.shape[1] == b2.shape[0] == rank
        and a1.shape[0] == math.prod(a2.shape[1:])
        and math.prod(a1.shape[1:]) == math.prod(b1.shape[1:]) == rank
        and b2.shape[1] == a1.shape[0]
    )
