"""The B of all layers of one shape in one tensor, so that a step's gains are folded into them by one product."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence


class Stack:
    """
    B of several layers, as they are and with gains folded in.

    Args:
        spans: Where each layer's ranks lie among all gains.
        out: Rows of each B.
        like: A tensor of their dtype, where they lie.
    """

    def __init__(self, spans: Sequence[slice], out: int, like: torch.Tensor) -> None:
        """Make both; all zeros."""
        ranks = [torch.arange(span.start, span.stop) for span in spans]
        self._places = torch.stack(ranks).to(like.device)
        self.raw = torch.zeros(len(spans), out, len(ranks[0]), dtype=like.dtype, device=like.device)
        self.folded = torch.zeros_like(self.raw)

    def fold(self, gains: torch.Tensor) -> None:
        """
        Multiply gains into all B.

        Args:
            gains: (ranks of all layers,), fp32, where the stack lies.

        Example:
            >>> stack = Stack([slice(0, 1), slice(1, 2)], 1, torch.zeros(0))
            >>> stack.raw.fill_(1.0).shape
            torch.Size([2, 1, 1])
            >>> stack.fold(torch.tensor([2.0, 3.0]))
            >>> stack.folded.flatten().tolist()
            [2.0, 3.0]
        """
        torch.mul(self.raw, gains[self._places].unsqueeze(1), out=self.folded)
