"""
DARE (arXiv:2311.03099): drop entries at random and rescale the others, then add or merge by signs.

Delta' = mask * Delta / density with mask ~ Bernoulli(density): the same change on average, with fewer entries in each
other's way. The draw is seeded: one seed, one result.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lora_mixer.merging.magnitude import check_share
from lora_mixer.merging.ties import agreeing_mean
from lora_mixer.merging.weighted_sum import weighted_sum

if TYPE_CHECKING:
    from collections.abc import Sequence


def drop_at_random(delta: torch.Tensor, density: float, generator: torch.Generator) -> torch.Tensor:
    """
    Keep each entry with probability ``density``, divided by it.

    Args:
        delta: A weight change.
        density: Probability of an entry to stay, above 0.
        generator: The source of the draw, on the CPU, so that every device draws alike.

    Returns:
        The sparse change.

    Example:
        >>> drop_at_random(torch.ones(1000), 0.5, torch.Generator().manual_seed(0)).unique().tolist()
        [0.0, 2.0]
    """
    check_share("density", density, least=1e-6)
    mask = torch.rand(delta.shape, generator=generator, dtype=torch.float64) < density
    return delta * mask.to(delta.device) / density


def dare(
    deltas: Sequence[torch.Tensor],
    weights: Sequence[float],
    density: float = 0.5,
    *,
    generator: torch.Generator,
    elect: bool = False,
) -> torch.Tensor:
    """
    Merge by DARE.

    Args:
        deltas: Weight changes of one shape.
        weights: One for each.
        density: Probability of an entry to stay.
        generator: The source of the draws, seeded.
        elect: Merge by elected signs, as TIES does, instead of adding.

    Returns:
        The merged change.

    Example:
        >>> dare([torch.ones(3)], [0.5], density=1, generator=torch.Generator()).tolist()
        [0.5, 0.5, 0.5]
    """
    sparse = [drop_at_random(delta, density, generator) for delta in deltas]
    return agreeing_mean(sparse, weights) if elect else weighted_sum(sparse, weights)
