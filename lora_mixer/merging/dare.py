"""
DARE (arXiv:2311.03099): drop entries at random and rescale the others, then add or merge by signs.

Delta' = mask * Delta / density with mask ~ Bernoulli(density): the same change on average, with fewer entries in each
other's way. Draws are seeded, one source for each adapter: one seed, one result, whatever the order.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch

from lora_mixer.merging.magnitude import check_share
from lora_mixer.merging.method import AVERAGE, DENSITY, MAJORITY, SCALE, SEED, MethodSpec, check_parts
from lora_mixer.merging.ties import agreeing_mean
from lora_mixer.merging.weighted_sum import weighted_sum

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_mixer.merging.ties import Average, Majority


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
    generators: Sequence[torch.Generator],
    elect: bool = False,
    majority: Majority = "total",
    average: Average = "count",
    scale: float = 1.0,
) -> torch.Tensor:
    """
    Merge by DARE.

    Args:
        deltas: Weight changes of one shape.
        weights: One for each.
        density: Probability of an entry to stay.
        generators: The source of each adapter's draw, seeded.
        elect: Merge by elected signs, as TIES does, instead of adding.
        majority: How signs are elected.
        average: What the mean of those that agree divides by.
        scale: Factor on the result.

    Returns:
        The merged change.

    Raises:
        MixError: When there is nothing to merge, or weights or shapes do not fit.

    Example:
        >>> dare([torch.ones(3)], [0.5], density=1, generators=[torch.Generator()]).tolist()
        [0.5, 0.5, 0.5]
    """
    check_parts(deltas, weights)
    sparse = [drop_at_random(d, density, g) for d, g in zip(deltas, generators, strict=True)]
    if elect:
        return agreeing_mean(sparse, weights, majority, average, scale)
    return weighted_sum(sparse, weights) * scale


DARE = MethodSpec(
    "dare",
    "drop at random and rescale, then add (arXiv:2311.03099)",
    "changes",
    dare,
    dare,
    (DENSITY, SCALE, SEED),
    draws=True,
)

DARE_TIES = MethodSpec(
    "dare-ties",
    "drop at random and rescale, then elect signs as TIES does (arXiv:2311.03099)",
    "changes",
    partial(dare, elect=True),
    partial(dare, elect=True),
    (DENSITY, MAJORITY, AVERAGE, SCALE, SEED),
    draws=True,
)
