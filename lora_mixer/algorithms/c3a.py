"""
C3A: W' = W + gain * C / in, with C made of circulant blocks: each row of a block is the one above, shifted by one.

Circular convolution adaptation (arXiv:2407.19342), as PEFT writes it: ``c3a_kernel`` (out / b, in / b, b).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from lora_mixer.algorithms.base import LayerWeights, flat_misfit

if TYPE_CHECKING:
    from lora_mixer.algorithms.base import ModuleTensors


@dataclass(frozen=True)
class C3A(LayerWeights):
    """
    Circulant blocks.

    Attributes:
        kernels: (out / b, in / b, b), one kernel for each block.
    """

    algorithm: ClassVar[str] = "c3a"
    factors_of_all: ClassVar[tuple[str, ...]] = ("kernels",)

    kernels: torch.Tensor

    @classmethod
    def from_parts(cls, parts: ModuleTensors) -> C3A:
        """
        Check the tensor of one module.

        Raises:
            InvalidAdapterError: When it is missing or has other axes.
        """
        (kernels,) = parts.need("c3a_kernel")
        if kernels.ndim != 3:
            raise parts.broken("expected kernels (out / b, in / b, b)")
        return cls(kernels)

    @property
    def in_width(self) -> int:
        """Input width."""
        return self.kernels.shape[1] * self.kernels.shape[2]

    def misfit(self, shape: tuple[int, ...]) -> str | None:
        """Say why this cannot change a weight of ``shape``, or None."""
        return flat_misfit((self.kernels.shape[0] * self.kernels.shape[2], self.in_width), shape)

    def delta(self, base: torch.Tensor, gain: float) -> torch.Tensor:
        """Return gain * C / in."""
        size = self.kernels.shape[2]
        places = torch.arange(size, device=base.device)
        shifts = (places.unsqueeze(0) - places.unsqueeze(1)) % size  # (b out, b in)
        blocks = self.kernels.to(base)[:, :, shifts]  # (out / b, in / b, b, b)
        return blocks.transpose(1, 2).reshape(base.shape) * (gain / self.in_width)
