"""
LoHa: W' = W + gain * (alpha / rank) * (w1_a @ w1_b) * (w2_a @ w2_b), an element-wise product of two low-rank matrices.

FedPara (arXiv:2108.06098), as LyCORIS (arXiv:2309.14859) and PEFT write it; ``t1`` and ``t2`` are Tucker cores for
convolutions, with w*_a transposed then. LyCORIS' ``merge_to`` applies alpha / rank twice; its forward, and this, once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch

from lora_mixer.algorithms.base import (
    LayerWeights,
    flat_misfit,
    rows_and_columns,
    take_rows,
    wide,
)
from lora_mixer.algorithms.outputs import Factors

if TYPE_CHECKING:
    from lora_mixer.algorithms.base import ModuleTensors, Ranges


def tucker_pair(
    core: torch.Tensor, left: torch.Tensor, right: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Write einsum('ijkl,jr,ip->prkl', core, right, left) as a product of two matrices.

    Args:
        core: (i, j, *kernel).
        left: (i, out).
        right: (j, in).

    Returns:
        (out, i) and (i, in * kernel).
    """
    folded = torch.einsum("ij...,jr->ir...", wide(core), wide(right))
    return left.T, folded.flatten(1)


def row_products(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Multiply every column of (n, p) with every column of (n, q): (n, p * q), the row-wise Kronecker product."""
    return (first.unsqueeze(2) * second.unsqueeze(1)).flatten(1)


@dataclass(frozen=True)
class LoHa(LayerWeights):
    """
    A LoHa quadruple, with both cores or none.

    Attributes:
        w1_a: (out, rank); with cores (rank, out).
        w1_b: (rank, in * kernel); with cores (rank, in).
        w2_a: As ``w1_a``.
        w2_b: As ``w1_b``.
        t1: (rank, rank, *kernel), or None.
        t2: As ``t1``.
        scale: What the product is multiplied by.
        alpha: The alpha in force, or None.
    """

    algorithm: ClassVar[str] = "loha"
    factors_of_all: ClassVar[tuple[str, ...]] = ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2", "scale")
    told_by_shapes: ClassVar[bool] = True
    needs_base: ClassVar[bool] = False

    w1_a: torch.Tensor
    w1_b: torch.Tensor
    w2_a: torch.Tensor
    w2_b: torch.Tensor
    t1: torch.Tensor | None
    t2: torch.Tensor | None
    scale: float
    alpha: float | None

    @classmethod
    def from_parts(cls, parts: ModuleTensors) -> LoHa:
        """
        Check the tensors of one module and take its scale.

        Raises:
            InvalidAdapterError: When a part is missing or shapes cannot belong together.
        """
        w1_a, w1_b, w2_a, w2_b = parts.need("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
        t1, t2 = parts.tensors.get("hada_t1"), parts.tensors.get("hada_t2")
        if any(t.ndim != 2 for t in (w1_a, w1_b, w2_a, w2_b)) or (t1 is None) != (t2 is None):
            raise parts.broken("expected four matrices, and both cores t1 and t2 or none")
        product = cls(w1_a, w1_b, w2_a, w2_b, t1, t2, parts.scale_for(w1_b.shape[0]), parts.alpha)
        if t1 is not None and t2 is not None:
            fits = all(
                t.ndim > 2 and t.shape[:2] == (a.shape[0], b.shape[0])
                for t, a, b in ((t1, w1_a, w1_b), (t2, w2_a, w2_b))
            )
            fits = fits and t1.shape[2:] == t2.shape[2:] and w1_a.shape[1] == w2_a.shape[1]
        else:
            fits = (
                w1_a.shape[1] == w1_b.shape[0]
                and w2_a.shape[1] == w2_b.shape[0]
                and w1_a.shape[0] == w2_a.shape[0]
            )
        if not fits or w1_b.shape[1] != w2_b.shape[1]:
            raise parts.broken("do not multiply: expected w_a (out, rank) and w_b (rank, in * kernel), twice")
        return product

    def lycoris_tensors(self) -> dict[str, torch.Tensor]:
        """Return the quadruple, the cores and an alpha."""
        tensors = {
            ".hada_w1_a": self.w1_a,
            ".hada_w1_b": self.w1_b,
            ".hada_w2_a": self.w2_a,
            ".hada_w2_b": self.w2_b,
        }
        if self.t1 is not None and self.t2 is not None:
            tensors |= {".hada_t1": self.t1, ".hada_t2": self.t2}
        return tensors | {".alpha": torch.tensor(self.scale * self.rank, dtype=torch.float32)}

    @property
    def rank(self) -> int:
        """The rank of each of the two matrices."""
        return self.w1_b.shape[0]

    @property
    def in_width(self) -> int:
        """Input width (times the kernel, for convolutions without cores)."""
        return self.w1_b.shape[1]

    def take(self, ranges: Ranges, total: int) -> LayerWeights:
        """Return rows of both products' left factors; a Tucker core is cut after the product."""
        if self.t1 is not None or self.t2 is not None:
            return super().take(ranges, total)
        return replace(self, w1_a=take_rows(self.w1_a, ranges), w2_a=take_rows(self.w2_a, ranges))

    def misfit(self, shape: tuple[int, ...]) -> str | None:
        """Say why this cannot change a weight of ``shape``, or None."""
        if self.t1 is None:
            return flat_misfit((self.w1_a.shape[0], self.w1_b.shape[1]), shape)
        made_for = (self.w1_a.shape[1], self.w1_b.shape[1], *self.t1.shape[2:])
        # PEFT gives cores two axes of kernels, also where the layer has one
        fits = made_for == shape or (made_for[-1] == 1 and made_for[:-1] == shape)
        return None if fits else f"made for a weight {made_for}, the module has {shape}"

    def _pairs(self) -> tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
        if self.t1 is None or self.t2 is None:
            return (self.w1_a, self.w1_b), (self.w2_a, self.w2_b)
        return tucker_pair(self.t1, self.w1_a, self.w1_b), tucker_pair(self.t2, self.w2_a, self.w2_b)

    def factors(self, shape: tuple[int, ...]) -> Factors | None:
        """Return the exact pair of rank w1's rank times w2's, where :func:`pair_is_cheaper` says so."""
        (a1, b1), (a2, b2) = self._pairs()
        if not pair_is_cheaper(a1.shape[1] * a2.shape[1], shape):
            return None
        up = row_products(wide(a1), wide(a2))  # (out, r1 * r2)
        down = row_products(wide(b1).T, wide(b2).T).T  # (r1 * r2, in * kernel)
        return Factors(up, down, self.scale)

    def delta(self, base: torch.Tensor, gain: float) -> torch.Tensor:
        """Return gain * scale * (a1 @ b1) * (a2 @ b2) in the base's dtype and shape."""
        first, second = ((a.to(base) @ b.to(base)) for a, b in self._pairs())
        return first.mul_(second).mul_(gain * self.scale).reshape(base.shape)


def pair_is_cheaper(rank: int, shape: tuple[int, ...]) -> bool:
    """
    Say whether an exact low-rank pair is worth building for a weight, rather than the dense change.

    The rule: when both factors together hold at most an eighth of the elements of the weight. Then a blend adds it in
    the same product as every other low-rank adapter, and no dense temporary is made (measured in docs/formats.md).
    """
    rows, columns = rows_and_columns(shape)
    return rank * (rows + columns) * 8 <= rows * columns
