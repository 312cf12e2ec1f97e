"""
HiRA: W' = W + gain * W * (B @ A), element by element: a low-rank change relative to the weight.

High-rank adaptation by a Hadamard product (ICLR 2025), as PEFT writes it; no alpha.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from lora_mixer.algorithms.base import HasPair, LayerWeights, take_rows

if TYPE_CHECKING:
    import torch

    from lora_mixer.algorithms.base import ModuleTensors, Ranges


@dataclass(frozen=True)
class HiRA(HasPair):
    """
    A low-rank matrix of relative changes.

    Attributes:
        up: (out, rank), or (out, rank, 1, 1).
        down: (rank, in), or (rank, in, k, k).
    """

    algorithm: ClassVar[str] = "hira"

    up: torch.Tensor
    down: torch.Tensor

    @classmethod
    def from_parts(cls, parts: ModuleTensors) -> HiRA:
        """
        Check the tensors of one module.

        Raises:
            InvalidAdapterError: When a half is missing or shapes cannot belong together.
        """
        flipped = "hira_embedding_A" in parts.tensors
        down, up = (
            parts.need("hira_embedding_A", "hira_embedding_B") if flipped else parts.need("hira_A", "hira_B")
        )
        if up.ndim < 2 or down.ndim < 2 or up[0].numel() != down.shape[0]:
            raise parts.broken("do not multiply: expected hira_B (out, rank), hira_A (rank, in)")
        # on an embedding the change is (B @ A)^T
        return cls(down.T, up.T) if flipped else cls(up, down)

    def take(self, ranges: Ranges, total: int) -> LayerWeights:  # noqa: ARG002 -- the pair knows its rows
        """Return rows of ``up``; the product multiplies the base's own rows."""
        return replace(self, up=take_rows(self.up, ranges))

    def delta(self, base: torch.Tensor, gain: float) -> torch.Tensor:
        """Return gain * W * (B @ A)."""
        relative = self.up.flatten(1).to(base) @ self.down.flatten(1).to(base)
        return relative.mul_(gain).reshape(base.shape) * base
