"""
The weight update for many layers of one shape on a GPU.

A set of adapters touches hundreds of layers in a handful of shapes. Scaling and stacking is done once per shape, then
one ``addmm`` a layer reads the base and writes the weight: 4 bytes per parameter, the least there is. Gains are folded
into ``up`` in fp32 and written as two half-precision parts, which tensor cores add up in fp32: as good as fp32
factors and still bound by memory, since the rank is small.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from lora_mixer.engines.blend import HALF, split_halves

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from lora_mixer.algorithms import Factors

_CHUNK = 1 << 25
"""Largest number of stacked elements at a time, so that temporaries stay small (128 MiB in fp32)."""


@dataclass(frozen=True)
class Job:
    """One layer's update: (out, in * kernel) views of weight and base, and the low-rank pairs with their gains."""

    weight: torch.Tensor
    base: torch.Tensor
    pairs: Sequence[Factors]
    gains: Sequence[float]


def fits(weight: torch.Tensor, base: torch.Tensor, pairs: Iterable[Factors]) -> bool:
    """Say whether a layer can go this way: half precision on a GPU, contiguous, factors of the weight's dtype."""
    return (
        weight.is_cuda
        and weight.dtype in HALF
        and base.device == weight.device
        and weight.is_contiguous()
        and base.is_contiguous()
        and all(
            pair.up.dtype == weight.dtype == pair.down.dtype and pair.up.device == weight.device
            for pair in pairs
        )
    )


def run(jobs: Sequence[Job]) -> None:
    """Write every job's ``base + sum of gain * up @ down`` into its weight."""
    groups: dict[tuple[object, ...], list[Job]] = defaultdict(list)
    for job in jobs:
        ranks = tuple(pair.down.shape[0] for pair in job.pairs)
        groups[tuple(job.weight.shape), job.weight.dtype, job.weight.device, ranks].append(job)
    for group in groups.values():
        rows, columns = group[0].weight.shape
        rank = sum(pair.down.shape[0] for pair in group[0].pairs)
        size = max(1, _CHUNK // (rank * (rows + columns)))
        for start in range(0, len(group), size):
            _run_group(group[start : start + size])


def _run_group(group: Sequence[Job]) -> None:
    first = group[0]
    rows, columns = first.weight.shape
    ranks = [pair.down.shape[0] for pair in first.pairs]
    rank, count = sum(ranks), len(group)
    flat = [gain for job in group for gain in job.gains]
    # A power of two taken out of the gains keeps ``up`` in range; addmm multiplies it back in fp32.
    peak = max(abs(gain) for gain in flat)
    power = 2.0 ** max(0, math.frexp(peak)[1])
    gains = (
        torch.tensor(flat).div_(power).repeat_interleave(torch.tensor(ranks * count)).to(first.weight.device)
    )
    ups = torch.cat([pair.up for job in group for pair in job.pairs], dim=1)  # (out, count * rank)
    downs = torch.cat([pair.down for job in group for pair in job.pairs]).view(count, rank, columns)
    if all(math.frexp(gain)[0] in (0.5, -0.5) for gain in flat):
        left = (ups * gains.to(ups.dtype)).view(rows, count, rank)
    else:
        high, low = split_halves(ups.float() * gains, ups.dtype)
        left = torch.cat([high.view(rows, count, rank), low.view(rows, count, rank)], dim=2)
        downs = torch.cat([downs, downs], dim=1)
    for job, up, down in zip(group, left.unbind(1), downs.unbind(0), strict=True):
        torch.addmm(job.base, up, down, alpha=power, out=job.weight)
