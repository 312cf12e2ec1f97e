"""
DELLA (arXiv:2406.11617): drop entries at random, small ones rather than large ones, then merge by signs.

In each row of a change the entry of rank k by magnitude (0 the smallest, n - 1 the largest) stays with probability
p = density - epsilon + 2 epsilon k / (n - 1), and is divided by p. With epsilon 0 it is DARE. (The paper's epsilon is
the full width, 2 epsilon here; mergekit's is this one.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lora_mixer.errors import MixError
from lora_mixer.merging.method import (
    AVERAGE,
    DENSITY,
    MAJORITY,
    SCALE,
    SEED,
    MethodSpec,
    Setting,
    check_parts,
)
from lora_mixer.merging.ties import agreeing_mean
from lora_mixer.merging.weighted_sum import weighted_sum

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from lora_mixer.merging.ties import Average, Majority


def keep_probabilities(delta: torch.Tensor, density: float, epsilon: float) -> torch.Tensor:
    """
    Return each entry's probability to stay, by its rank in its row.

    Args:
        delta: A weight change (out, ...); each row is ranked by itself.
        density: The mean probability.
        epsilon: How far the smallest and the largest entry are from it.

    Returns:
        Probabilities of the change's shape, fp64.

    Raises:
        MixError: When they would leave 0 to 1.

    Example:
        >>> keep_probabilities(torch.tensor([[3.0, -1.0, 2.0]]), 0.5, 0.2).tolist()
        [[0.7, 0.3, 0.5]]
    """
    if not (epsilon >= 0 and density - epsilon > 0 and density + epsilon <= 1):
        raise MixError(
            f"density - epsilon must be above 0 and density + epsilon at most 1, got {density}, {epsilon}",
            argument="density",
        )
    rows = delta.flatten(1) if delta.ndim > 1 else delta[None]
    ranks = rows.abs().argsort(dim=1).argsort(dim=1).double()
    last = max(rows.shape[1] - 1, 1)
    return (density - epsilon + 2 * epsilon * ranks / last).view(delta.shape)


def drop_small_rather(
    delta: torch.Tensor, density: float, epsilon: float, generator: torch.Generator
) -> torch.Tensor:
    """
    Sample a change by DELLA's probabilities and rescale what stays.

    Args:
        delta: A weight change.
        density: The mean probability to stay.
        epsilon: The reach of the probabilities.
        generator: The source of the draw, on the CPU.

    Returns:
        The sparse change.

    Example:
        >>> drop_small_rather(torch.ones(1, 2), 1.0, 0.0, torch.Generator()).tolist()
        [[1.0, 1.0]]
    """
    probabilities = keep_probabilities(delta, density, epsilon)
    mask = torch.rand(delta.shape, generator=generator, dtype=torch.float64).to(delta.device) < probabilities
    return delta * mask / probabilities.to(delta)


def della(
    deltas: Sequence[torch.Tensor],
    weights: Sequence[float],
    density: float = 0.5,
    epsilon: float = 0.1,
    *,
    generators: Sequence[torch.Generator],
    elect: bool = True,
    majority: Majority = "total",
    average: Average = "count",
    scale: float = 1.0,
) -> torch.Tensor:
    """
    Merge by DELLA.

    Args:
        deltas: Weight changes of one shape.
        weights: One for each.
        density: The mean probability to stay.
        epsilon: The reach of the probabilities.
        generators: The source of each adapter's draw, seeded.
        elect: Merge by elected signs (the paper); otherwise add.
        majority: How signs are elected.
        average: What the mean of those that agree divides by.
        scale: Factor on the result, the paper's lambda.

    Returns:
        The merged change.

    Raises:
        MixError: When there is nothing to merge, or weights or shapes do not fit.

    Example:
        >>> della([torch.ones(1, 2)], [0.5], 1.0, 0.0, generators=[torch.Generator()]).tolist()
        [[0.5, 0.5]]
    """
    check_parts(deltas, weights)
    sparse = [drop_small_rather(d, density, epsilon, g) for d, g in zip(deltas, generators, strict=True)]
    if elect:
        return agreeing_mean(sparse, weights, majority, average, scale)
    return weighted_sum(sparse, weights) * scale


def _fits(settings: Mapping[str, Any]) -> str | None:
    low, high = settings["density"] - settings["epsilon"], settings["density"] + settings["epsilon"]
    if low > 0 and high <= 1:
        return None
    return f"della draws between density - epsilon and density + epsilon, got {low:g} to {high:g}"


DELLA = MethodSpec(
    "della",
    "drop small entries rather than large ones, then elect signs (arXiv:2406.11617)",
    "changes",
    della,
    della,
    (
        DENSITY,
        Setting("epsilon", 0.1, "how far an entry's chance is from the density", 0, 1),
        MAJORITY,
        AVERAGE,
        SCALE,
        SEED,
    ),
    draws=True,
    check=_fits,
)
