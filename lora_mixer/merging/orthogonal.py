"""
Orthogonal sum: adapters answer to input directions of their own.

Orthogonal Adaptation (arXiv:2312.02432) trains adapters whose down projections are orthogonal to each other, so that
their plain sum keeps each one intact. For adapters that were not trained so, this takes from each the input directions
that those before it use, A_i' = A_i (I - Q Q^T) with Q an orthonormal basis of the rows of their changes, and then adds: rows of a
down projection that its up makes nothing of take nothing away. The first is kept whole; the order counts. Norms and biases
have no input directions: they are added.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lora_mixer.merging.low_rank import decomposed
from lora_mixer.merging.method import MethodSpec, check_parts
from lora_mixer.merging.weighted_sum import concatenate, weighted_sum

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_mixer.merging.weighted_sum import Pair

_TINY = 1e-10
"""Directions up to this share of the change that an adapter came with are rounding."""


def orthogonal_sum(pairs: Sequence[Pair], weights: Sequence[float]) -> Pair:
    """
    Return the sum of adapters of which each is made blind to the inputs of those before it.

    Args:
        pairs: (up, down) of each adapter, alpha / rank multiplied in; the order counts.
        weights: One for each.

    Returns:
        The merged pair, fp64.

    Raises:
        MixError: When there is nothing to merge, or weights or shapes do not fit.

    Example:
        >>> a = (torch.ones(2, 1), torch.tensor([[1.0, 0.0]]))
        >>> b = (torch.ones(2, 1), torch.tensor([[1.0, 1.0]]))
        >>> up, down = orthogonal_sum([a, b], [1, 1])
        >>> (up @ down)[0].tolist()
        [1.0, 1.0]
    """
    check_parts(pairs, weights, "pairs")
    basis = pairs[0][1].new_zeros(
        pairs[0][1].shape[1], 0, dtype=torch.float64
    )  # (in, k), orthonormal columns
    freed = []
    for up, down in pairs:
        whole, rest = down.double(), down.double()
        for _ in range(2):  # once leaves rounding where nearly all is taken
            rest = rest - (rest @ basis) @ basis.T
        freed.append((up.double(), rest))
        core = torch.linalg.qr(up.double())[1]  # (r, r): what each row of down is worth
        _, values, right = decomposed(core @ rest)
        used = values > _TINY * torch.linalg.vector_norm(core @ whole)
        basis = torch.cat([basis, right[used].T], dim=1)
    return concatenate(freed, weights)


ORTHOGONAL = MethodSpec(
    "orthogonal",
    "each adapter without the input directions of those before it (after arXiv:2312.02432)",
    "pairs",
    orthogonal_sum,
    weighted_sum,
    ordered=True,
)
