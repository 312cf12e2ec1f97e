"""
The weight update for many layers of one shape on a GPU.

A set of adapters touches hundreds of layers in a handful of shapes, and launching kernels costs more than running them.
So layers of one shape are written together, summed in fp32 and rounded once:

* by one kernel (``kernel.py``) that reads each base once and writes each weight once;
* without Triton, and for factors of two dtypes: bases copied into an fp32 buffer, all adapters added by one batched
  product in fp32, the sums copied back. That moves five times the bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_mixer.algorithms import Factors

_CHUNK = 1 << 25
"""Largest number of elements of a temporary (128 MiB in fp32)."""

_KERNEL_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@cache
def _launches() -> Any:
    """Give the class that launches the kernel, or None where Triton is missing or cannot compile."""
    try:
        from lora_mixer.engines.merged.kernel import Launch

        a = torch.eye(16, device="cuda", dtype=torch.float16)
        out = torch.empty_like(a)
        Launch([out], [a], [a], [a], [16]).write(torch.ones(1, device="cuda"))
        return Launch if torch.equal(out, 2 * a) else None
    except Exception:  # noqa: BLE001 -- no compiler, an old driver, another vendor: there is the other way
        return None


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
    """

    ranks: tuple[int, ...]
    weights: list[torch.Tensor] = field(default_factory=list)
    bases: list[torch.Tensor] = field(default_factory=list)
    ups: list[torch.Tensor] = field(default_factory=list)
    downs: list[torch.Tensor] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    scales: list[float] = field(default_factory=list)
    _ready: tuple[torch.Tensor, torch.Tensor, Any] | None = None

    def write(self, gains: torch.Tensor) -> None:
        """
        Write every layer's ``base + sum of gain * scale * up @ down`` into its weight.

        Args:
            gains: All gains, fp64, on the device.
        """
        if self._ready is None:
            self._ready = self._prepared(gains.device)
        places, scales, launch = self._ready
        factors = (gains[places] * scales).float()
        if launch is not None:
            launch.write(factors)
        else:
            self._write_batched(
                factors.repeat_interleave(torch.tensor(self.ranks * len(self.weights)).to(factors.device))
            )

    def _prepared(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, Any]:
        places = torch.tensor(self.places, device=device)
        scales = torch.tensor(self.scales, dtype=torch.float64, device=device)
        factors = [*self.ups, *self.downs]
        alike = len({x.dtype for x in factors}) == 1 and factors[0].dtype in _KERNEL_DTYPES
        fits = alike and self.weights[0].dtype in _KERNEL_DTYPES and all(x.is_contiguous() for x in factors)
        launches = _launches() if fits else None
        launch = launches and launches(self.weights, self.bases, self.ups, self.downs, self.ranks)
        return places, scales, launch

    def _write_batched(self, factors: torch.Tensor) -> None:
        rows, columns = self.weights[0].shape
        rank, pairs, count = sum(self.ranks), len(self.ranks), len(self.weights)
        size = max(1, _CHUNK // max(rows * columns, rank * (rows + columns)))
        for start in range(0, count, size):
            n = min(size, count - start)
            part = slice(start * pairs, (start + n) * pairs)
            sums = torch.empty(n, rows, columns, dtype=torch.float32, device=factors.device)
            layers = list(sums.unbind(0))
            torch._foreach_copy_(layers, self.bases[start : start + n])
            left = torch.cat(self.ups[part], dim=1).float()  # (out, n * rank)
            left = left * factors[start * rank : (start + n) * rank]
            right = torch.cat(self.downs[part]).float().view(n, rank, columns)
            sums.baddbmm_(left.view(rows, n, rank).transpose(0, 1), right)
            torch._foreach_copy_(self.weights[start : start + n], layers)


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
            False unless all is on one GPU, contiguous, and at most fp32.
        """
        if not (
            weight.is_cuda
            and weight.dtype.itemsize <= 4
            and base.device == weight.device
            and weight.is_contiguous()
            and base.is_contiguous()
            and not weight.is_inference()
            and all(p.up.device == p.down.device == weight.device and p.up.dtype.itemsize > 1 for p in pairs)
        ):
            return False
        rows = weight.shape[0]
        flat = weight.view(rows, -1)
        ranks = tuple(pair.down.shape[0] for pair in pairs)
        group = self._groups.setdefault((flat.shape, weight.dtype, weight.device, ranks), Group(ranks))
        group.weights.append(flat)
        group.bases.append(base.view(rows, -1))
        group.ups.extend(pair.up for pair in pairs)
        group.downs.extend(pair.down for pair in pairs)
        group.places.extend(places)
        group.scales.extend(pair.scale for pair in pairs)
        return True

    def write(self, gains: Sequence[float]) -> None:
        """Write all layers of all groups."""
        moved: dict[torch.device, torch.Tensor] = {}
        for group in self._groups.values():
            device = group.weights[0].device
            if device not in moved:
                moved[device] = torch.tensor(gains, dtype=torch.float64).to(device, non_blocking=True)
            group.write(moved[device])
