"""
TIES (arXiv:2306.01708): trim, elect signs, merge those that agree.

Of each change the largest entries are kept; for each entry the sign with the larger total is elected, from the
unweighted changes; the result is the mean of the weighted entries that have it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch

from lora_mixer.merging.magnitude import keep_largest

if TYPE_CHECKING:
    from collections.abc import Sequence

    Majority = Literal["total", "frequency"]


def ties(
    deltas: Sequence[torch.Tensor],
    weights: Sequence[float],
    density: float = 0.5,
    majority: Majority = "total",
) -> torch.Tensor:
    """
    Merge by TIES.

    Args:
        deltas: Weight changes of one shape.
        weights: One for each; as in PEFT they count after the election.
        density: Share of the entries to keep.
        majority: Signs are elected by ``total`` (the paper) or by ``frequency`` (one adapter, one vote).

    Returns:
        The merged change.

    Example:
        >>> ties([torch.tensor([3.0, 1.0]), torch.tensor([-1.0, 2.0])], [1, 1], density=1).tolist()
        [3.0, 1.5]
    """
    return agreeing_mean([keep_largest(delta, density) for delta in deltas], weights, majority)


def agreeing_mean(
    deltas: Sequence[torch.Tensor], weights: Sequence[float], majority: Majority = "total"
) -> torch.Tensor:
    """
    Give, entry by entry, the mean of the weighted changes whose sign is the elected one.

    Args:
        deltas: Weight changes of one shape, sparse or not; zeros have no vote and do not count.
        weights: One for each.
        majority: How signs are elected.

    Returns:
        The merged change; zero where none counts.

    Example:
        >>> agreeing_mean([torch.tensor([2.0]), torch.tensor([-1.0]), torch.tensor([0.0])], [0.5, 1, 1]).tolist()
        [1.0]
    """
    if majority not in ("total", "frequency"):
        raise ValueError(f"majority must be 'total' or 'frequency', got {majority!r}")
    stacked = torch.stack(list(deltas))  # (n, ...)
    signs = stacked.sign()
    votes = (stacked if majority == "total" else signs).sum(0)
    elected = torch.where(votes >= 0, 1.0, -1.0).to(stacked)
    agree = signs == elected
    gains = torch.tensor(list(weights), dtype=stacked.dtype, device=stacked.device)
    gains = gains.view(-1, *[1] * (stacked.ndim - 1))
    return (stacked * gains * agree).sum(0) / agree.sum(0).clamp(min=1)
