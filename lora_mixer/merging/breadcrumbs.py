"""
Model Breadcrumbs (arXiv:2312.06795): drop the few largest entries as outliers and the many smallest as noise.

Row by row, as in the authors' code: one output's weights are compared with each other. What is left, between the two, is
``density`` of the row; the weighted sum of these, times ``scale``, is the merge.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lora_mixer.errors import MixError
from lora_mixer.merging.magnitude import check_share, share_of
from lora_mixer.merging.method import DENSITY, SCALE, MethodSpec, Setting, check_parts
from lora_mixer.merging.weighted_sum import weighted_sum

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any


def keep_middle(delta: torch.Tensor, density: float, outliers: float) -> torch.Tensor:
    """
    Zero the largest entries of each row, and the smallest until ``density`` of it is left.

    Args:
        delta: A weight change (out, ...); a vector is one row.
        density: Share of a row to keep; at least one entry stays.
        outliers: Share of a row, the largest, to drop; rounded down.

    Returns:
        The sparse change.

    Raises:
        MixError: When the shares are none, or are more than 1 together.

    Example:
        >>> keep_middle(torch.tensor([[9.0, -4.0, 2.0, 0.5], [1.0, 0.1, 0.2, 0.3]]), 0.5, 0.25).tolist()
        [[0.0, -4.0, 2.0, 0.0], [0.0, 0.0, 0.20000000298023224, 0.30000001192092896]]
    """
    check_share("density", density)
    check_share("outliers", outliers)
    if density + outliers > 1:
        raise MixError(
            f"density and outliers must be at most 1 together, got {density} and {outliers}",
            argument="density",
        )
    rows = delta.flatten(1) if delta.ndim > 1 else delta[None]
    dropped = int(outliers * rows.shape[1])
    kept = share_of(density, rows.shape[1])
    places = rows.abs().sort(dim=1, descending=True, stable=True).indices[:, dropped : dropped + kept]
    return torch.zeros_like(rows).scatter_(1, places, rows.gather(1, places)).view_as(delta)


def breadcrumbs(
    deltas: Sequence[torch.Tensor],
    weights: Sequence[float],
    density: float = 0.5,
    outliers: float = 0.01,
    scale: float = 1.0,
) -> torch.Tensor:
    """
    Merge by Breadcrumbs.

    Args:
        deltas: Weight changes of one shape.
        weights: One for each.
        density: Share of each row to keep.
        outliers: Share of each row, the largest, to drop (gamma of the paper).
        scale: Factor on the result (alpha of the paper).

    Returns:
        The merged change.

    Raises:
        MixError: When there is nothing to merge, or weights or shapes do not fit.

    Example:
        >>> breadcrumbs([torch.tensor([9.0, -4.0, 2.0, 0.5])], [0.5], 0.5, 0.25).tolist()
        [0.0, -2.0, 1.0, 0.0]
    """
    check_parts(deltas, weights)
    return weighted_sum([keep_middle(delta, density, outliers) for delta in deltas], weights) * scale


def _fits(settings: Mapping[str, Any]) -> str | None:
    density, outliers = settings["density"], settings["outliers"]
    return (
        None
        if density + outliers <= 1
        else f"outliers must be from 0 to {1 - density:g} here, got {outliers:g}"
    )


BREADCRUMBS = MethodSpec(
    "breadcrumbs",
    "drop each row's outliers and its noise, then add (arXiv:2312.06795)",
    "changes",
    breadcrumbs,
    breadcrumbs,
    (DENSITY, Setting("outliers", 0.01, "share of each row, the largest, that is dropped", 0, 1), SCALE),
    check=_fits,
)
