"""
Model Breadcrumbs (arXiv:2312.06795): drop the few largest entries as outliers and the many smallest as noise.

What is left, between the two, is ``density`` of the entries; the weighted sum of these is the merge.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lora_mixer.merging.magnitude import check_share
from lora_mixer.merging.weighted_sum import weighted_sum

if TYPE_CHECKING:
    from collections.abc import Sequence


def keep_middle(delta: torch.Tensor, density: float, outliers: float) -> torch.Tensor:
    """
    Zero the largest entries, and the smallest until ``density`` of all are left.

    Args:
        delta: A weight change.
        density: Share of the entries to keep.
        outliers: Share of the entries, the largest, to drop.

    Returns:
        The sparse change.

    Raises:
        ValueError: When the shares are none, or are more than 1 together.

    Example:
        >>> keep_middle(torch.tensor([9.0, -4.0, 2.0, 0.5]), 0.5, 0.25).tolist()
        [0.0, -4.0, 2.0, 0.0]
    """
    check_share("density", density)
    check_share("outliers", outliers)
    if density + outliers > 1:
        raise ValueError(f"density and outliers must be at most 1 together, got {density} and {outliers}")
    flat = delta.flatten()
    dropped = int(outliers * flat.numel())
    kept = int(density * flat.numel())
    places = flat.abs().sort(descending=True, stable=True).indices[dropped : dropped + kept]
    return torch.zeros_like(flat).index_copy_(0, places, flat[places]).view_as(delta)


def breadcrumbs(
    deltas: Sequence[torch.Tensor], weights: Sequence[float], density: float = 0.5, outliers: float = 0.01
) -> torch.Tensor:
    """
    Merge by Breadcrumbs.

    Args:
        deltas: Weight changes of one shape.
        weights: One for each.
        density: Share of the entries to keep.
        outliers: Share of the entries, the largest, to drop (gamma of the paper).

    Returns:
        The merged change.

    Example:
        >>> breadcrumbs([torch.tensor([9.0, -4.0, 2.0, 0.5])], [0.5], 0.5, 0.25).tolist()
        [0.0, -2.0, 1.0, 0.0]
    """
    return weighted_sum([keep_middle(delta, density, outliers) for delta in deltas], weights)
