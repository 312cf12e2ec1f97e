"""
The weighted sum, sum of w_i Delta_i: task arithmetic (arXiv:2212.04089), "merging LoRAs".

For low-rank pairs it is exact without a full matrix: [w_1 B_1, w_2 B_2, ...] [A_1; A_2; ...]. Summing the ups and the
downs apart, as PEFT's ``combination_type="linear"`` and others do, is something else: it adds sqrt(w_1 w_2)
(B_1 A_2 + B_2 A_1), which is of the size of the sum itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lora_mixer.merging.method import MethodSpec, check_parts

if TYPE_CHECKING:
    from collections.abc import Sequence

    Pair = tuple[torch.Tensor, torch.Tensor]
    """``up`` (out, r) and ``down`` (r, in), all scales in them."""


def concatenate(pairs: Sequence[Pair], weights: Sequence[float]) -> Pair:
    """
    Return the weighted sum of low-rank pairs as one pair, exactly; its rank is the sum of the ranks.

    Args:
        pairs: (up, down) of each adapter, alpha / rank multiplied in.
        weights: One for each.

    Returns:
        The pair, in fp64 where any of the input is, else in fp32.

    Raises:
        MixError: When there is nothing to merge, or weights or shapes do not fit.

    Example:
        >>> up, down = concatenate([(torch.ones(2, 1), torch.ones(1, 3))] * 2, [0.5, -0.25])
        >>> (up @ down)[0].tolist()
        [0.25, 0.25, 0.25]
    """
    check_parts(pairs, weights, "pairs")
    wide = wide_type(tensor for pair in pairs for tensor in pair)
    ups = [up.to(wide) * weight for (up, _), weight in zip(pairs, weights, strict=True)]
    return torch.cat(ups, dim=1), torch.cat([down.to(wide) for _, down in pairs])  # (out, R), (R, in)


def weighted_sum(deltas: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    """
    Return sum of w_i Delta_i of full matrices.

    Args:
        deltas: Weight changes of one shape.
        weights: One for each.

    Returns:
        The sum.

    Raises:
        MixError: When there is nothing to merge, or weights or shapes do not fit.

    Example:
        >>> weighted_sum([torch.ones(2), torch.ones(2)], [0.5, 1.0]).tolist()
        [1.5, 1.5]
    """
    check_parts(deltas, weights)
    total = torch.zeros_like(deltas[0])
    for delta, weight in zip(deltas, weights, strict=True):
        total += delta * weight
    return total


def wide_type(tensors: object) -> torch.dtype:
    """Return fp64 where any of the tensors has it, else fp32: sums of halves would round."""
    listed: list[torch.Tensor] = list(tensors)  # type: ignore[call-overload]
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in listed) else torch.float32


SUM = MethodSpec(
    "sum",
    "the weighted sum, exactly (arXiv:2212.04089)",
    "pairs",
    concatenate,
    weighted_sum,
    is_sum=True,
)
