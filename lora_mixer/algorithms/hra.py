"""
HRA: the inputs of a module are reflected, W' = W @ H_1 @ ... @ H_r with H_i = I - 2 u_i u_i^T (arXiv:2405.17484).

PEFT's ``hra_u`` (in * kernel, r); with ``apply_GS`` the u_i are made orthonormal first (Gram-Schmidt). PEFT knows no
weights but 1; at others this takes W + gain * (W' - W).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from lora_mixer.algorithms.base import LayerWeights, rows_and_columns

if TYPE_CHECKING:
    from lora_mixer.algorithms.base import ModuleTensors


@dataclass(frozen=True)
class HRA(LayerWeights):
    """
    Householder reflections.

    Attributes:
        vectors: (in * kernel, r), one column for each reflection.
        orthogonal: Whether they are made orthonormal first.
    """

    algorithm: ClassVar[str] = "hra"
    factors_of_all: ClassVar[tuple[str, ...]] = ("vectors",)

    vectors: torch.Tensor
    orthogonal: bool

    @classmethod
    def from_parts(cls, parts: ModuleTensors) -> HRA:
        """
        Check the tensor of one module.

        Raises:
            InvalidAdapterError: When it is missing or no matrix.
        """
        (vectors,) = parts.need("hra_u")
        if vectors.ndim != 2:
            raise parts.broken("expected (in, reflections)")
        orthogonal = bool(parts.config.get("apply_GS"))
        if orthogonal and vectors.shape[1] > vectors.shape[0]:
            raise parts.broken("more reflections than inputs cannot be orthogonal to each other")
        return cls(vectors, orthogonal)

    @property
    def rank(self) -> int:
        """The number of reflections."""
        return self.vectors.shape[1]

    @property
    def in_width(self) -> int:
        """Input width (times the kernel)."""
        return self.vectors.shape[0]

    def misfit(self, shape: tuple[int, ...]) -> str | None:
        """Say why this cannot change a weight of ``shape``, or None."""
        columns = rows_and_columns(shape)[1]
        return (
            None if columns == self.in_width else f"reflects {self.in_width} inputs, the module has {columns}"
        )

    def delta(self, base: torch.Tensor, gain: float) -> torch.Tensor:
        """Return gain * (W @ H_1 @ ... @ H_r - W)."""
        start = base.reshape(base.shape[0], -1)
        turned = start
        done = base.new_zeros(self.vectors.shape if self.orthogonal else (0, 0))
        for number, column in enumerate(self.vectors.to(base).unbind(1)):
            unit = column
            if self.orthogonal:
                before = done[:, :number]
                for _ in range(2):  # twice is enough for what one subtraction of all leaves over
                    unit = unit - before @ (before.T @ unit)
            unit = unit / unit.norm().clamp_min(
                torch.finfo(unit.dtype).tiny
            )  # a column of zeros reflects nothing
            if self.orthogonal:
                done[:, number] = unit
            turned = turned - 2 * (turned @ unit).outer(unit)
        return ((turned - start) * gain).reshape(base.shape)
