"""
LoRA Composite (arXiv 2402.16843): one forward of the denoiser for each adapter, and the mean of what they predict.

Guidance is linear in the predictions, u + g (c - u), so the mean of both halves of a batch is the mean of the paper's
formula, and all is done at the denoiser's own call: pipelines and schedulers notice nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.utils import _pytree as pytree

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Mean:
    """A weighted mean of outputs, in fp32 at least, whatever containers the tensors lie in."""

    def __init__(self, first: Any, weights: torch.Tensor) -> None:
        """Begin with the first pass; ``weights`` has one number for each row, or one for all."""
        leaves, self._spec = pytree.tree_flatten(first)
        self._first = leaves
        self._sums = [_weighted(leaf, weights) for leaf in leaves]

    def add(self, output: Any, weights: torch.Tensor) -> None:
        """Add another pass."""
        for number, leaf in enumerate(pytree.tree_leaves(output)):
            if _counts(leaf):
                self._sums[number] = self._sums[number] + _weighted(leaf, weights)

    def result(self) -> Any:
        """Return the mean in the form and the types of the first output."""
        leaves = [
            total.to(leaf.dtype) if _counts(leaf) else leaf
            for leaf, total in zip(self._first, self._sums, strict=True)
        ]
        return pytree.tree_unflatten(leaves, self._spec)


def _counts(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.is_floating_point()


def _weighted(leaf: Any, weights: torch.Tensor) -> Any:
    if not _counts(leaf):
        return leaf
    wide = leaf.to(torch.promote_types(leaf.dtype, torch.float32))
    spread = (
        weights.to(wide).view(-1, *[1] * (leaf.ndim - 1)) if leaf.ndim else weights.to(wide)[0]
    )  # (rows, 1, ...)
    return wide * spread


def row_weights(passes: Sequence[int], turn: int, rows: torch.Tensor | None) -> torch.Tensor:
    """
    Return the weight of one pass for each row of the batch.

    Args:
        passes: How many passes each image takes.
        turn: The pass, from 0.
        rows: The image of each row; None where there is one mix.

    Example:
        >>> row_weights([2, 1], 1, torch.tensor([0, 1, 0, 1])).tolist()
        [0.5, 0.0, 0.5, 0.0]
    """
    each = torch.tensor([1.0 / count if turn < count else 0.0 for count in passes])  # (images,)
    return each if rows is None else each[rows]


def all_passes(
    first: Any, passes: Sequence[int], rows: torch.Tensor | None, run: Callable[[int], Any]
) -> Any:
    """
    Run the passes after the first one and give the mean.

    Args:
        first: What the first pass gave.
        passes: How many passes each image takes.
        rows: The image of each row; None where there is one mix.
        run: Runs a pass.
    """
    mean = Mean(first, row_weights(passes, 0, rows))
    for turn in range(1, max(passes)):
        mean.add(run(turn), row_weights(passes, turn, rows))
    return mean.result()
