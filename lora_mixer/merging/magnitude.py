"""Magnitude pruning: of each weight change only the largest entries count (the trimming step of TIES, by itself)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lora_mixer.errors import MixError
from lora_mixer.merging.method import DENSITY, MethodSpec, check_parts
from lora_mixer.merging.weighted_sum import weighted_sum

if TYPE_CHECKING:
    from collections.abc import Sequence


def keep_largest(delta: torch.Tensor, density: float) -> torch.Tensor:
    """
    Zero all but the largest entries.

    Args:
        delta: A weight change.
        density: Share of the entries to keep, above 0 and up to 1; the count is rounded down, as in PEFT, but at
            least one stays.

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
    places = flat.abs().topk(share_of(density, flat.numel())).indices
    return torch.zeros_like(flat).index_copy_(0, places, flat[places]).view_as(delta)


def magnitude_prune(
    deltas: Sequence[torch.Tensor], weights: Sequence[float], density: float = 0.5
) -> torch.Tensor:
    """
    Return the weighted sum of the pruned changes.

    Args:
        deltas: Weight changes of one shape.
        weights: One for each.
        density: Share of the entries to keep.

    Returns:
        The merged change.

    Raises:
        MixError: When there is nothing to merge, or weights or shapes do not fit.

    Example:
        >>> magnitude_prune([torch.tensor([1.0, 3.0]), torch.tensor([5.0, 2.0])], [1, 0.5]).tolist()
        [2.5, 3.0]
    """
    check_parts(deltas, weights)
    return weighted_sum([keep_largest(delta, density) for delta in deltas], weights)


def share_of(density: float, count: int) -> int:
    """
    Return how many of some entries a share is: rounded down, at least one for a share above 0.

    Example:
        >>> share_of(0.5, 7), share_of(0.1, 3), share_of(0, 3)
        (3, 1, 0)
    """
    return max(int(density * count), 1 if density > 0 and count else 0)


def check_share(name: str, value: float, *, least: float = 0.0) -> None:
    """
    Refuse a share that is none.

    Raises:
        MixError: Naming it.
    """
    if not least <= value <= 1:
        raise MixError(f"{name} must be from {least:g} to 1, got {value}", argument=name)


MAGNITUDE = MethodSpec(
    "magnitude",
    "keep the largest entries, then add",
    "changes",
    magnitude_prune,
    magnitude_prune,
    (DENSITY,),
)
