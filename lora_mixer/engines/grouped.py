"""
The weight update for many layers of one shape on a GPU.

A set of adapters touches hundreds of layers in a handful of shapes, and launching kernels costs more than running them.
Copying bases, scaling and stacking is done once per shape; then one ``addmm_`` a layer adds all adapters to the fresh
copy of its base. Gains are folded into ``up`` in fp32 and written as two half-precision parts, which tensor cores add
up in fp32: as good as fp32 factors and still bound by memory, since the rank is small.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from lora_mixer.engines.blend import HALF, split_halves

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_mixer.algorithms import Factors

_CHUNK = 1 << 25
"""Largest number of stacked elements at a time, so that temporaries stay small (128 MiB in fp32)."""


@dataclass
class Group:
    """
    Layers of one shape with pairs of the same ranks.

    Attributes:
        ranks: Rank of each pair of a layer, in the order of summation.
        weights: (out, in * kernel) views of the live weights.
        bases: The same of the kept bases.
        ups: (out, rank) of every pair of every layer.
        downs: (rank, in * kernel), likewise.
        places: For every pair, where its gain stands in the list of all gains.
        scales: For every pair, what its gain is multiplied by.
        peaks: For every pair, the largest magnitude in ``up``; looked up at the first write.
    """

    ranks: tuple[int, ...]
    weights: list[torch.Tensor] = field(default_factory=list)
    bases: list[torch.Tensor] = field(default_factory=list)
    ups: list[torch.Tensor] = field(default_factory=list)
    downs: list[torch.Tensor] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    scales: list[float] = field(default_factory=list)
    peaks: list[float] = field(default_factory=list)

    def write(self, gains: Sequence[float]) -> None:
        """Write every layer's ``base + sum of gain * scale * up @ down`` into its weight."""
        # One launch copies every base. addmm(base, ..., out=weight) would copy too, a launch for each layer.
        torch._foreach_copy_(self.weights, self.bases)
        first = self.weights[0]
        rows, columns = first.shape
        rank, pairs, count = sum(self.ranks), len(self.ranks), len(self.weights)
        flat = [gains[place] * scale for place, scale in zip(self.places, self.scales, strict=True)]
        power = self._power(flat)
        lossless = all(math.frexp(gain)[0] in (0.5, -0.5) for gain in set(flat))
        factors = torch.tensor([gain / power for gain in flat], dtype=torch.float32)
        factors = factors.repeat_interleave(torch.tensor(self.ranks * count))
        factors = factors.to(first.device, non_blocking=True)
        size = max(1, _CHUNK // (rank * (rows + columns)))
        for start in range(0, count, size):
            part = slice(start * pairs, (start + size) * pairs)
            n = min(size, count - start)
            left = torch.cat(self.ups[part], dim=1)  # (out, n * rank)
            right = torch.cat(self.downs[part]).view(n, rank, columns)
            own = factors[start * rank : (start + n) * rank]
            if lossless:
                left = (left * own).to(left.dtype).view(rows, n, rank)
            else:
                high, low = split_halves(left.float().mul_(own), left.dtype)
                left = torch.cat([high.view(rows, n, rank), low.view(rows, n, rank)], dim=2)
                right = torch.cat([right, right], dim=1)
            for weight, up, down in zip(
                self.weights[start : start + n], left.unbind(1), right.unbind(0), strict=True
            ):
                weight.addmm_(up, down, alpha=power)

    def _power(self, flat: Sequence[float]) -> float:
        """
        Give the power of two that is taken out of ``up`` times the gains; addmm multiplies it back in fp32.

        It puts the largest of them just below 2^14: fp16 has all its digits there, and a low half all of its own, while
        the small factors that files have lie where fp16 runs out of digits.
        """
        if not self.peaks:
            norms = torch._foreach_norm(self.ups, math.inf)  # noqa: SLF001
            self.peaks = [peak if math.isfinite(peak) else 1.0 for peak in torch.stack(norms).tolist()]
        largest = max(abs(gain) * peak for gain, peak in zip(flat, self.peaks, strict=True))
        return 2.0 ** (max(math.frexp(largest)[1], -100) - 14)


class Groups:
    """Sorts layers into groups and writes them all."""

    def __init__(self) -> None:
        """Start empty."""
        self._groups: dict[tuple[object, ...], Group] = {}

    def add(
        self, weight: torch.Tensor, base: torch.Tensor, pairs: Sequence[Factors], places: Sequence[int]
    ) -> bool:
        """
        Take a layer, or say that it has to go another way.

        Args:
            weight: The live weight (out, in, *kernel).
            base: Its kept base.
            pairs: Its low-rank pairs in the order of summation.
            places: Where their gains stand in the list of all gains.

        Returns:
            False unless all is half precision of one dtype on one GPU, and contiguous.
        """
        if not (
            weight.is_cuda
            and weight.dtype in HALF
            and base.device == weight.device
            and weight.is_contiguous()
            and base.is_contiguous()
            and not weight.is_inference()
            and all(
                p.up.dtype == weight.dtype == p.down.dtype and p.up.device == weight.device for p in pairs
            )
        ):
            return False
        rows = weight.shape[0]
        flat = weight.view(rows, -1)
        ranks = tuple(pair.down.shape[0] for pair in pairs)
        key = (tuple(flat.shape), weight.dtype, weight.device, ranks)
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = Group(ranks)
        group.weights.append(flat)
        group.bases.append(base.view(rows, -1))
        group.ups.extend(pair.up for pair in pairs)
        group.downs.extend(pair.down for pair in pairs)
        group.places.extend(places)
        group.scales.extend(pair.scale for pair in pairs)
        return True

    def write(self, gains: Sequence[float]) -> None:
        """Write all layers of all groups."""
        for group in self._groups.values():
            group.write(gains)
