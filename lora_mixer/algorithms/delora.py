"""
DeLoRA: W' = W + gain * (B @ diag(lambda / (r * |A_i| * |B_i|)) @ A) * w_norm, a low-rank change of bounded size.

Decoupling angles and strength (arXiv:2503.18225), as PEFT writes it: each rank-one part has length 1 before lambda / r,
and ``delora_w_norm`` (in,) holds the lengths of the base's columns when the training began.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lora_mixer.algorithms.base import Factored, HasPair, wide
from lora_mixer.algorithms.outputs import Factors

if TYPE_CHECKING:
    import torch

    from lora_mixer.algorithms.base import ModuleTensors

_LEAST = 1e-4  # PEFT's guard for lengths; part of the meaning of its files


@dataclass(frozen=True)
class DeLoRA(HasPair, Factored):
    """
    A normalised pair.

    Attributes:
        up: (out, rank).
        down: (rank, in).
        strength: lambda, one number.
        lengths: (in,).
    """

    algorithm: ClassVar[str] = "delora"
    factors_of_all: ClassVar[tuple[str, ...]] = (*HasPair.factors_of_all, "strength", "lengths")

    up: torch.Tensor
    down: torch.Tensor
    strength: torch.Tensor
    lengths: torch.Tensor

    @classmethod
    def from_parts(cls, parts: ModuleTensors) -> DeLoRA:
        """
        Check the tensors of one module.

        Raises:
            InvalidAdapterError: When a part is missing or shapes cannot belong together.
        """
        up, down, strength, lengths = parts.need("delora_B", "delora_A", "delora_lambda", "delora_w_norm")
        fits = up.ndim == down.ndim == 2 and up.shape[1] == down.shape[0] and strength.numel() == 1
        if not fits or lengths.numel() != down.shape[1]:
            raise parts.broken(
                "expected delora_B (out, r), delora_A (r, in), delora_lambda (1,), delora_w_norm (in,)"
            )
        return cls(up, down, strength.reshape(1), lengths.flatten())

    def factors(self, shape: tuple[int, ...]) -> Factors:  # noqa: ARG002
        """Return B with its parts at length lambda / r, and A with the columns' lengths."""
        up, down = wide(self.up), wide(self.down)
        lengths = down.norm(dim=1).clamp_min(_LEAST) * up.norm(dim=0).clamp_min(_LEAST)
        return Factors(up * (wide(self.strength) / self.rank / lengths), down * wide(self.lengths), 1.0)
