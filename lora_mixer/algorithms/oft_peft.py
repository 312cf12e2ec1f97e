"""
OFT as PEFT writes it: the inputs of a module are rotated block by block, W' = W @ blockdiag(R)^T.

Each row of ``oft_R.weight`` is the upper triangle of a skew-symmetric Q. R is the polynomial of
:func:`~lora_mixer.algorithms.rotation.cayley_neumann` by default, (I - Q)(I + Q)^-1 without ``use_cayley_neumann``; with
``coft`` Q is scaled down block by block to norm eps / sqrt(n), with ``block_share`` one block serves all inputs.

PEFT knows no weights but 1; at others this takes gain * R + (1 - gain) * I, as LyCORIS does. On convolutions the
blocks run over in * kernel, as in PEFT's merge. PEFT's own unmerged forward is another thing there: it adds up
overlapping patches without dividing by their number, so even R = I multiplies a 3x3 convolution's input by up to 9,
which is not a change of a weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from lora_mixer.algorithms.base import LayerWeights, all_zero, rows_and_columns
from lora_mixer.algorithms.rotation import (
    cayley,
    cayley_neumann,
    skew_of_triangle,
    toward_identity,
    triangle_side,
)

if TYPE_CHECKING:
    from lora_mixer.algorithms.base import ModuleTensors


@dataclass(frozen=True)
class PeftOFT(LayerWeights):
    """
    Rotations of blocks of inputs.

    Attributes:
        triangles: (n, b(b-1)/2); one row with ``shared``.
        shared: Whether one block serves all inputs.
        terms: Powers of the Cayley-Neumann polynomial, or None for the exact inverse.
        limit: ``coft``'s eps, or None.
        embedding: Whether it was made on an embedding, where PEFT multiplies from the other side.
    """

    algorithm: ClassVar[str] = "oft"

    triangles: torch.Tensor
    shared: bool
    terms: int | None
    limit: float | None
    embedding: bool

    @classmethod
    def from_parts(cls, parts: ModuleTensors) -> PeftOFT:
        """
        Check the tensor of one module and read the configuration.

        Raises:
            InvalidAdapterError: When the rows are not triangles.
        """
        embedding = "oft_embedding_R" in parts.tensors
        (triangles,) = parts.need("oft_embedding_R" if embedding else "oft_R")
        if triangles.ndim != 2 or not triangle_side(triangles.shape[1]):
            raise parts.broken("expected rows of b(b-1)/2 numbers, the upper triangles of (b, b) blocks")
        config = parts.config
        exact = not config.get("use_cayley_neumann", not config)
        return cls(
            triangles,
            bool(config.get("block_share")),
            None if exact else int(parts.number("num_cayley_neumann_terms", 5, 1, 100)),
            float(parts.number("eps", 6e-5, 0, 1e6)) if config.get("coft") else None,
            embedding,
        )

    def misfit(self, shape: tuple[int, ...]) -> str | None:
        """Say why this cannot change a weight of ``shape``, or None."""
        size, columns = triangle_side(self.triangles.shape[1]), rows_and_columns(shape)[1]
        if (columns % size == 0) if self.shared else (self.triangles.shape[0] * size == columns):
            return None
        return f"rotates {self.triangles.shape[0]} blocks of {size} inputs, the module has {columns}"

    def confine(self) -> None:
        """Scale blocks beyond ``coft``'s limit down, as PEFT does before each step: gradients are those at the limit."""
        if self.limit is not None:
            with torch.no_grad():
                self.triangles.mul_(self._within(skew_of_triangle(self.triangles)).flatten(1))

    def _within(self, q: torch.Tensor) -> torch.Tensor:
        """Return what each block (n, b, b) is to be multiplied by, (n, 1, 1)."""
        if self.limit is None:
            return q.new_ones(q.shape[0], 1, 1)
        norms = torch.linalg.vector_norm(q.detach(), dim=(1, 2), keepdim=True).clamp_min(
            torch.finfo(q.dtype).tiny
        )
        factors: torch.Tensor = (self.limit / q.shape[0] ** 0.5 / norms).clamp(max=1.0)
        return factors

    def is_zero(self) -> bool:
        """Say whether nothing is turned."""
        return all_zero(self.triangles)

    def delta(self, base: torch.Tensor, gain: float) -> torch.Tensor:
        """Return W @ blockdiag(gain * R + (1 - gain) * I)^T - W."""
        q = skew_of_triangle(self.triangles.to(base))  # (n, b, b)
        q = q * self._within(q)
        rotation = toward_identity(cayley(-q) if self.terms is None else cayley_neumann(q, self.terms), gain)
        blocks = base.reshape(base.shape[0], -1, rotation.shape[-1])  # (out, n, b)
        side = "onk,nkc->onc" if self.embedding else "onk,nck->onc"
        turned = torch.einsum(side, blocks, rotation.expand(blocks.shape[1], -1, -1))
        return turned.reshape(base.shape) - base
