"""
KnOTS (arXiv:2410.19735): bring the adapters into one basis first, then merge there.

[Delta_1 ... Delta_n] = U S [V_1 ... V_n]; the S V_i, all in the basis U, are merged by TIES; the result is U times that.
With a plain sum in place of TIES it is the weighted sum. Norms and biases are merged by TIES as they are. Since every Delta_i is B_i A_i, the basis comes from a core
as small as the sum of the ranks, and the result has at most that rank: no full matrix is built. A singular vector has no
sign of its own, and votes that are even go by signs: the largest entry of each vector of U is made positive.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lora_mixer.merging.low_rank import decomposed
from lora_mixer.merging.method import MethodSpec, check_parts
from lora_mixer.merging.ties import TIES, ties

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_mixer.merging.ties import Average, Majority
    from lora_mixer.merging.weighted_sum import Pair

NEGLIGIBLE = 1e-10
"""
Singular values up to this share of the largest are dropped: they are the rounding of the stack.

The authors drop those up to 1e-5, absolutely, which takes all of an adapter whose numbers are small.
"""


def knots(
    pairs: Sequence[Pair],
    weights: Sequence[float],
    density: float = 0.5,
    majority: Majority = "total",
    average: Average = "count",
    scale: float = 1.0,
) -> Pair:
    """
    Merge by KnOTS with TIES.

    Args:
        pairs: (up, down) of each adapter, alpha / rank multiplied in.
        weights: One for each.
        density: Share of the entries that TIES keeps.
        majority: How TIES elects signs.
        average: What TIES' mean divides by.
        scale: Factor on the result.

    Returns:
        The merged pair, fp64; its rank is at most the sum of the ranks.

    Raises:
        MixError: When there is nothing to merge, or weights or shapes do not fit.

    Example:
        >>> up, down = knots([(torch.ones(2, 1), torch.ones(1, 3))], [0.5], density=1)
        >>> (up @ down).round(decimals=6)[0].tolist()
        [0.5, 0.5, 0.5]
    """
    check_parts(pairs, weights, "pairs")
    widths = [down.shape[1] for _, down in pairs]
    ups = torch.cat([up.double() for up, _ in pairs], dim=1)  # (out, R)
    downs = _block_diagonal([down.double() for _, down in pairs])  # (R, n * in)
    q_up, r_up = torch.linalg.qr(ups)
    q_down, r_down = torch.linalg.qr(downs.T)
    left, values, right = decomposed(r_up @ r_down.T)
    kept = max(int((values > NEGLIGIBLE * values.max()).sum()), 1)
    basis = q_up @ left[:, :kept]  # (out, k)
    parts = (values[:kept, None] * right[:kept]) @ q_down.T  # (k, n * in)
    signs = basis.gather(0, basis.abs().argmax(0, keepdim=True)).sign()  # (1, k)
    basis, parts = basis * signs, parts * signs.T
    return basis, ties(list(parts.split(widths, dim=1)), weights, density, majority, average, scale)


def _block_diagonal(blocks: Sequence[torch.Tensor]) -> torch.Tensor:
    whole = blocks[0].new_zeros(
        sum(block.shape[0] for block in blocks), sum(block.shape[1] for block in blocks)
    )
    row = column = 0
    for block in blocks:
        whole[row : row + block.shape[0], column : column + block.shape[1]] = block
        row, column = row + block.shape[0], column + block.shape[1]
    return whole


KNOTS = MethodSpec(
    "knots",
    "TIES in the common basis of all adapters (arXiv:2410.19735)",
    "pairs",
    knots,
    ties,
    TIES.settings,
)
