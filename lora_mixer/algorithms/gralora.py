"""
GraLoRA: W' = W + gain * alpha / (r + h) * D, where D has a low-rank pair of its own for each of N x N blocks.

Granular low-rank adaptation (arXiv:2505.20355), as PEFT writes it: the block of inputs n and outputs k is
A[n, :, part k] @ B[k, part n, :] with parts of r / N ranks; h is the rank of an ordinary pair over all of it, if any.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from lora_mixer.algorithms.base import LayerWeights, all_zero, flat_misfit

if TYPE_CHECKING:
    from lora_mixer.algorithms.base import ModuleTensors


@dataclass(frozen=True)
class GraLoRA(LayerWeights):
    """
    Pairs of blocks.

    Attributes:
        down: (N, in / N, r).
        up: (N, r, out / N).
        whole_down: (h, in), or None.
        whole_up: (out, h), or None.
        scale: What all of it is multiplied by.
        alpha: The alpha in force.
    """

    algorithm: ClassVar[str] = "gralora"
    factors_of_all: ClassVar[tuple[str, ...]] = ("scale",)
    needs_base: ClassVar[bool] = False

    down: torch.Tensor
    up: torch.Tensor
    whole_down: torch.Tensor | None
    whole_up: torch.Tensor | None
    scale: float
    alpha: float | None

    @classmethod
    def from_parts(cls, parts: ModuleTensors) -> GraLoRA:
        """
        Check the tensors of one module and take the scale.

        Raises:
            InvalidAdapterError: When a part is missing or shapes cannot belong together.
        """
        down, up = parts.need("gralora_A", "gralora_B")
        fits = down.ndim == up.ndim == 3 and down.shape[0] == up.shape[0] and down.shape[2] == up.shape[1]
        if not fits or up.shape[1] % up.shape[0]:
            raise parts.broken(
                "expected gralora_A (N, in / N, r), gralora_B (N, r, out / N), r divisible by N"
            )
        names = ("gralora_A_general", "gralora_B_general")
        whole_down, whole_up = parts.need(*names) if parts.tensors.keys() & set(names) else (None, None)
        rank = down.shape[2]
        if whole_down is not None and whole_up is not None:
            sizes = (down.shape[0] * down.shape[1], up.shape[0] * up.shape[2])
            if (
                whole_down.ndim != 2
                or whole_up.shape != (sizes[1], whole_down.shape[0])
                or whole_down.shape[1] != sizes[0]
            ):
                raise parts.broken("expected gralora_A_general (h, in), gralora_B_general (out, h)")
            rank += whole_down.shape[0]
        return cls(down, up, whole_down, whole_up, parts.scale_for(rank), parts.alpha)

    @property
    def rank(self) -> int:
        """The rank that is shared by the blocks of a row."""
        return self.down.shape[2]

    @property
    def in_width(self) -> int:
        """Input width."""
        return self.down.shape[0] * self.down.shape[1]

    def misfit(self, shape: tuple[int, ...]) -> str | None:
        """Say why this cannot change a weight of ``shape``, or None."""
        return flat_misfit((self.up.shape[0] * self.up.shape[2], self.in_width), shape)

    def is_zero(self) -> bool:
        """Say whether the scale is zero, or a half of both pairs."""
        blocks = all_zero(self.down) or all_zero(self.up)
        whole = self.whole_up is None or all_zero(self.whole_up) or all_zero(self.whole_down)
        return super().is_zero() or (blocks and whole)

    def delta(self, base: torch.Tensor, gain: float) -> torch.Tensor:
        """Return gain * scale * D."""
        n, size, rank = self.down.shape
        down = self.down.to(base).reshape(n, size, n, rank // n)  # (n, in / N, k, r / N)
        up = self.up.to(base).reshape(n, n, rank // n, -1)  # (k, n, r / N, out / N)
        change = torch.einsum("niks,knso->koni", down, up).reshape(base.shape)
        if self.whole_up is not None and self.whole_down is not None:
            change = change + (self.whole_up.to(base) @ self.whole_down.to(base)).reshape(base.shape)
        return change * (gain * self.scale)
