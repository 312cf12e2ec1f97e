"""Magnitude pruning: of each weight change only the largest entries count (the trimming step of TIES, by itself)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lora_mixer.merging.weighted_sum import weighted_sum

if TYPE_CHECKING:
    from collections.abc import Sequence


def keep_largest(delta: torch.Tensor, density: float) -> torch.Tensor:
    """
    Zero all but the largest entries.

    Args:
        delta: A weight change.
        density: Share of the entries to keep, 0 to 1; the count is rounded down, as in PEFT.

    Returns:
        The pruned change, of the same shape.

    Example:
        >>> keep_largest(torch.tensor([1.0, -4.0, 2.0, 0.5]), 0.5).tolist()
        [0.0, -4.0, 2.0, 0.0]
    """
    check_share("density", density)
    if density == 1:
        return delta
    flat = delta.flatten()
    places = flat.abs().topk(int(density * flat.numel())).indices
    return torch.zeros_like(flat).index_copy_(0, places, flat[places]).view_as(delta)


def magnitude_prune(
    deltas: Sequence[torch.Tensor], weights: Sequence[float], density: float = 0.5
) -> torch.Tensor:
    """
    Give the weighted sum of the pruned changes.

    Args:
        deltas: Weight changes of one shape.
        weights: One for each.
        density: Share of the entries to keep.

    Returns:
        The merged change.

    Example:
        >>> magnitude_prune([torch.tensor([1.0, 3.0]), torch.tensor([5.0, 2.0])], [1, 0.5]).tolist()
        [2.5, 3.0]
    """
    return weighted_sum([keep_largest(delta, density) for delta in deltas], weights)


def check_share(name: str, value: float, *, least: float = 0.0) -> None:
    """
    Refuse a share that is none.

    Raises:
        ValueError: Naming it.
    """
    if not least <= value <= 1:
        raise ValueError(f"{name} must be from {least:g} to 1, got {value}")
