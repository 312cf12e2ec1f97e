"""Inputs that an adapter does not know: a file for a narrower model, zero in the columns that are more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch.nn import functional

from lora_mixer.algorithms.base import LayerWeights, Wrapped
from lora_mixer.algorithms.outputs import Factors

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Padded(Wrapped):
    """
    A change of the first inputs of a weight; those behind them stay.

    Attributes:
        inner: The change of the narrower weight.
        columns: Its inputs.
        alpha: The alpha in force.
    """

    algorithm: ClassVar[str] = "padded"
    told_by_shapes: ClassVar[bool] = True

    inner: LayerWeights
    columns: int
    alpha: float | None

    @property
    def in_width(self) -> int | None:
        """Input width of the change."""
        return self.columns

    def misfit(self, shape: tuple[int, ...]) -> str | None:
        """Say why this cannot change a weight of ``shape``, or None."""
        if len(shape) < 2 or shape[1] < self.columns:
            return f"made for {self.columns} inputs, the module has {shape}"
        return self.inner.misfit(self._narrow(shape))

    def _narrow(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (shape[0], self.columns, *shape[2:])

    def factors(self, shape: tuple[int, ...]) -> Factors | None:
        """Return the pair with zeros for the inputs behind."""
        pair = self.inner.factors(self._narrow(shape))
        if pair is None:
            return None
        rank = pair.down.shape[0]
        down = pair.down.reshape(rank, self.columns, -1)
        return Factors(pair.up, with_columns(down, shape[1]).reshape(rank, -1), pair.scale)

    def delta(self, base: torch.Tensor, gain: float) -> torch.Tensor:
        """Return the change, zeros for the inputs behind."""
        return with_columns(self.inner.delta(base[:, : self.columns], gain), base.shape[1])

    def bias_delta(self, base: torch.Tensor | None, gain: float) -> torch.Tensor | None:
        """Return the change's own."""
        return self.inner.bias_delta(base, gain)


def with_columns(tensor: torch.Tensor, columns: int) -> torch.Tensor:
    """
    Return a tensor with zeros behind its second axis, up to a number of columns.

    Example:
        >>> import torch
        >>> with_columns(torch.ones(1, 2), 3)
        tensor([[1., 1., 0.]])
    """
    return functional.pad(tensor, (*[0, 0] * (tensor.ndim - 2), 0, columns - tensor.shape[1]))
