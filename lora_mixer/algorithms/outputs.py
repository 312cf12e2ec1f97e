"""
What a change of a linear layer's weight does to its output, without the weight.

Every change here is of the form ``diag(r) W + W diag(c) + s U D + M``, so that, with y0 = x W^T what the layer itself computes,

    y = y0 + r * y0 + (x * c) W^T + s (x D^T) U^T + x M^T

Only M, and what is worked out of the base's own values (the lengths of a DoRA, say), is ever as large as the weight. Packed
weights are asked for their products and stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class Factors:
    """
    An exact low-rank form of a weight change: ``scale * up @ down``.

    Attributes:
        up: Shape (out, rank), the file's dtype.
        down: Shape (rank, in * kernel), the file's dtype.
        scale: alpha / rank, or what the file says instead.
    """

    up: torch.Tensor
    down: torch.Tensor
    scale: float


@dataclass(frozen=True)
class OutputChange:
    """
    The change of a weight (out, in) as sums of what can be done to outputs.

    Attributes:
        rows: r, (out,), or None.
        columns: c, (in,), or None.
        pair: s U D, or None.
        dense: M, (out, in), or None.
    """

    rows: torch.Tensor | None = None
    columns: torch.Tensor | None = None
    pair: Factors | None = None
    dense: torch.Tensor | None = None

    @property
    def uses_own(self) -> bool:
        """Whether :meth:`added` looks at what the layer itself computes."""
        return self.rows is not None or self.columns is not None

    def plus(self, other: OutputChange) -> OutputChange:
        """Return the sum of two changes."""

        def both(one: torch.Tensor | None, two: torch.Tensor | None) -> torch.Tensor | None:
            return one if two is None else two if one is None else one + two

        pairs = [pair for pair in (self.pair, other.pair) if pair is not None]
        pair = pairs[0] if len(pairs) == 1 else None
        if len(pairs) == 2:
            kinds = torch.promote_types(
                pairs[0].up.dtype, torch.promote_types(pairs[1].up.dtype, torch.float32)
            )
            ups = torch.cat([one.up.to(kinds) * one.scale for one in pairs], 1)
            pair = replace(pairs[0], up=ups, down=torch.cat([one.down.to(kinds) for one in pairs]), scale=1.0)
        return OutputChange(
            both(self.rows, other.rows),
            both(self.columns, other.columns),
            pair,
            both(self.dense, other.dense),
        )

    def added(
        self, x: torch.Tensor, plain: torch.Tensor, product: Callable[[torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        """
        Return what is added to the output, in fp32 at least where rows are multiplied, else in the inputs' type.

        Args:
            x: Inputs, (..., in).
            plain: What the layer computes without its bias, (..., out).
            product: Multiplies inputs by the layer's own weight.

        Example:
            >>> weight, x = torch.tensor([[1.0, 2.0]]), torch.ones(1, 2)
            >>> change = OutputChange(rows=torch.tensor([1.0]), dense=torch.tensor([[0.0, 3.0]]))
            >>> change.added(x, x @ weight.T, lambda x: x @ weight.T)
            tensor([[6.]])
        """
        total = torch.zeros((), dtype=plain.dtype, device=plain.device)
        if self.rows is not None:
            total = total + plain * self.rows.to(plain.device)
        if self.columns is not None:
            # one product of the inputs as they are to be: packed layers round them
            total = total + product((x * (1 + self.columns.to(x.device))).to(x.dtype)) - plain
        if self.pair is not None:
            down, up = (half.to(x.device, x.dtype) for half in (self.pair.down, self.pair.up))
            total = total + functional.linear(functional.linear(x, down), up) * self.pair.scale
        if self.dense is not None:
            total = total + functional.linear(x, self.dense.to(x.device, x.dtype))
        return total
