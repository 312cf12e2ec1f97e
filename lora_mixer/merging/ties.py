"""
TIES (arXiv:2306.01708): trim, elect signs, merge those that agree.

What is merged are the weighted changes w_i Delta_i, so a negative weight votes the other way (as in mergekit; PEFT elects
before it weights). Of each the largest entries are kept; for each entry the sign with the larger total is elected; the
result is the mean of the entries that have it, times ``scale`` (the paper's lambda). Where the total is exactly 0 the
sign of the majority of all entries decides, as in the authors' code. Trimming is by layer, as in PEFT and mergekit; the
authors' is over the whole model.

Two adapters at weights 0.5 are half as strong as at 1: weights are strengths here. ``average="weights"`` divides by the
weights of those that agree instead (mergekit's ``normalize``), so that weights say shares.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch

from lora_mixer.errors import MixError
from lora_mixer.merging.magnitude import keep_largest
from lora_mixer.merging.method import AVERAGE, DENSITY, MAJORITY, SCALE, MethodSpec, check_parts

if TYPE_CHECKING:
    from collections.abc import Sequence

Majority = Literal["total", "frequency"]
Average = Literal["count", "weights"]


def ties(
    deltas: Sequence[torch.Tensor],
    weights: Sequence[float],
    density: float = 0.5,
    majority: Majority = "total",
    average: Average = "count",
    scale: float = 1.0,
) -> torch.Tensor:
    """
    Merge by TIES.

    Args:
        deltas: Weight changes of one shape.
        weights: One for each; they count before the election.
        density: Share of the entries to keep.
        majority: Signs are elected by ``total`` (the paper) or by ``frequency`` (one adapter, one vote).
        average: The mean is over the ``count`` of those that agree (the paper) or over their ``weights``.
        scale: Factor on the result, the paper's lambda.

    Returns:
        The merged change.

    Raises:
        MixError: When there is nothing to merge, or weights or shapes do not fit.

    Example:
        >>> ties([torch.tensor([3.0, 1.0]), torch.tensor([-1.0, 2.0])], [1, 1], density=1).tolist()
        [3.0, 1.5]
    """
    check_parts(deltas, weights)
    return agreeing_mean(
        [keep_largest(delta, density) for delta in deltas], weights, majority, average, scale
    )


def agreeing_mean(
    deltas: Sequence[torch.Tensor],
    weights: Sequence[float],
    majority: Majority = "total",
    average: Average = "count",
    scale: float = 1.0,
) -> torch.Tensor:
    """
    Return, entry by entry, the mean of the weighted changes whose sign is the elected one.

    Args:
        deltas: Weight changes of one shape, sparse or not; zeros have no vote and do not count.
        weights: One for each.
        majority: How signs are elected.
        average: What the mean divides by.
        scale: Factor on the result.

    Returns:
        The merged change; zero where none counts.

    Example:
        >>> agreeing_mean([torch.tensor([2.0]), torch.tensor([-1.0]), torch.tensor([0.0])], [0.5, 1, 1]).tolist()
        [0.0]
        >>> agreeing_mean([torch.tensor([2.0]), torch.tensor([-1.0]), torch.tensor([0.0])], [1, 1, 1]).tolist()
        [2.0]
    """
    if majority not in ("total", "frequency"):
        raise MixError(f"majority must be 'total' or 'frequency', got {majority!r}", argument="majority")
    if average not in ("count", "weights"):
        raise MixError(f"average must be 'count' or 'weights', got {average!r}", argument="average")
    stacked = torch.stack(list(deltas))  # (n, ...)
    gains = torch.tensor(list(weights), dtype=stacked.dtype, device=stacked.device)
    gains = gains.view(-1, *[1] * (stacked.ndim - 1))  # (n, 1, ...)
    weighted = stacked * gains
    signs = weighted.sign()
    elected = (weighted if majority == "total" else signs).sum(0).sign()  # (...)
    elected = torch.where(elected == 0, elected.sum().sign(), elected)
    agree = (signs == elected) & (signs != 0)
    total = (weighted * agree).sum(0)
    if average == "count":
        return total / agree.sum(0).clamp(min=1) * scale
    shares = (gains.abs() * agree).sum(0)
    return torch.where(shares > 0, total / shares.where(shares > 0, torch.ones_like(shares)), total) * scale


TIES = MethodSpec(
    "ties",
    "trim, elect signs, mean of those that agree (arXiv:2306.01708)",
    "changes",
    ties,
    ties,
    (DENSITY, MAJORITY, AVERAGE, SCALE),
)
