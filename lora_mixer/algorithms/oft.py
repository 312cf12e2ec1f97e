"""
OFT: the outputs of a module are rotated block by block (arXiv:2306.07280): W'_k = (gain * R_k + (1 - gain) * I)^T W_k.

LyCORIS ``diag-oft`` and Kohya's ``oft_unet_`` files store B with Q = B - B^T and R = (I + Q)(I - Q)^-1; ``alpha`` is
not a scale but the constraint: Q is scaled down to norm alpha * out where it is larger (0 means no limit). Early LyCORIS
stores R itself as ``oft_diag``. ``rescale`` multiplies the outputs of the rotated weight, at any weight but 0.

PEFT's OFT, which rotates inputs, has a room of its own (:mod:`lora_mixer.algorithms.oft_peft`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lora_mixer.algorithms.base import LayerWeights, all_equal, all_zero
from lora_mixer.algorithms.rotation import cayley, constrained, skew, toward_identity

if TYPE_CHECKING:
    import torch

    from lora_mixer.algorithms.base import ModuleTensors


@dataclass(frozen=True)
class OFT(LayerWeights):
    """
    Rotations of blocks of outputs.

    Attributes:
        blocks: (n, b, b) with n * b outputs.
        rescale: One factor for each output, or None.
        constraint: The stored alpha; the norm of Q is limited to it times the number of outputs.
        is_rotation: Whether ``blocks`` are R themselves (``oft_diag``).
    """

    algorithm: ClassVar[str] = "oft"

    blocks: torch.Tensor
    rescale: torch.Tensor | None
    constraint: float
    is_rotation: bool

    @classmethod
    def from_parts(cls, parts: ModuleTensors) -> OFT:
        """
        Check the tensors of one module.

        Raises:
            InvalidAdapterError: When the blocks are missing or not square.
        """
        old = "oft_diag" in parts.tensors
        (blocks,) = parts.need("oft_diag" if old else "oft_blocks")
        if blocks.ndim != 3 or blocks.shape[1] != blocks.shape[2]:
            raise parts.broken("expected blocks (n, b, b)")
        return cls(blocks, parts.tensors.get("rescale"), parts.alpha or 0.0, old)

    def mixes_rows(self, shape: tuple[int, ...]) -> bool:  # noqa: ARG002
        """Rows of a block are rotated into each other."""
        return True

    def misfit(self, shape: tuple[int, ...]) -> str | None:
        """Say why this cannot change a weight of ``shape``, or None."""
        return rows_misfit(self.blocks.shape[0] * self.blocks.shape[1], self.rescale, shape)

    def is_zero(self) -> bool:
        """Say whether nothing is turned or rescaled."""
        return not self.is_rotation and all_zero(self.blocks) and all_equal(self.rescale, 1.0)

    def delta(self, base: torch.Tensor, gain: float) -> torch.Tensor:
        """Return W'(gain) - W."""
        if not gain:
            return base.new_zeros(base.shape)
        blocks = self.blocks.to(base)
        limit = self.constraint * base.shape[0]
        rotation = blocks if self.is_rotation else cayley(constrained(skew(blocks), limit))  # (n, b, b)
        rows = base.reshape(*blocks.shape[:2], -1)  # (n, b, in * kernel)
        turned = (toward_identity(rotation, gain).transpose(1, 2) @ rows).reshape(base.shape)
        return rescaled(turned, self.rescale) - base


def rows_misfit(rows: int, rescale: torch.Tensor | None, shape: tuple[int, ...]) -> str | None:
    """Say why a rotation of ``rows`` outputs does not belong to a weight of ``shape``, or None."""
    if rows != shape[0]:
        return f"rotates {rows} outputs, the module has {shape[0]}"
    if rescale is not None and rescale.numel() != rows:
        return f"rescales {rescale.numel()} outputs, the module has {rows}"
    return None


def rescaled(weight: torch.Tensor, factor: torch.Tensor | None) -> torch.Tensor:
    """Multiply each output of a weight (out, ...) by its factor, if there is any."""
    return (
        weight if factor is None else weight * factor.flatten().to(weight).view(-1, *[1] * (weight.ndim - 1))
    )
