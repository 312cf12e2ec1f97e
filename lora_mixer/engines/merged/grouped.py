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

_CAPTURED_AT = 3
"""How often the same layers are written before that is captured: capturing costs as much as some writes, and the first one compiles."""

_KERNEL_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@cache
def _launches() -> Any:
    """Return the class that launches the kernel, or None where Triton is missing or cannot compile."""
    try:
        from lora_mixer.engines.merged.kernel import Launch

        a = torch.eye(16, device="cuda", dtype=torch.float16)
        out = torch.empty_like(a)
        one = torch.ones(16, device="cuda")
        Launch([out], [a], [a], [a], [16]).write(one, one[:1], one.double(), one[:1].int() * 0)
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

    def launch(self) -> Any:
        """Return what writes all layers by one kernel, or None where that cannot be."""
        alike = len({x.dtype for x in (*self.ups, *self.downs)}) == 1 and self.ups[0].dtype in _KERNEL_DTYPES
        launches = _launches() if alike and self.weights[0].dtype in _KERNEL_DTYPES else None
        if launches is None:
            return None
        made = launches(self.weights, self.bases, self.ups, self.downs, self.ranks)
        self.ups, self.downs = [], []  # packed now
        return made

    def write_batched(self, factors: torch.Tensor) -> None:
        """
        Write all layers by one batched product after the other.

        Args:
            factors: gain * scale of every pair of every layer, on the device.
        """
        repeats = torch.tensor(self.ranks * len(self.weights), device=factors.device)
        factors = factors.float().repeat_interleave(repeats)  # (layers * rank,)
        rows, columns = self.weights[0].shape
        rank, pairs, count = sum(self.ranks), len(self.ranks), len(self.weights)
        size = max(1, _CHUNK // max(rows * columns, rank * (rows + columns)))
        for start in range(0, count, size):
            n = min(size, count - start)
            part = slice(start * pairs, (start + n) * pairs)
            sums = torch.empty(n, rows, columns, dtype=torch.float32, device=factors.device)  # (n, out, in)
            layers = list(sums.unbind(0))
            torch._foreach_copy_(layers, self.bases[start : start + n])
            left = torch.cat(self.ups[part], dim=1).float()  # (out, n * rank)
            left = left * factors[start * rank : (start + n) * rank]  # (out, n * rank)
            right = torch.cat(self.downs[part]).float().view(n, rank, columns)  # (n, rank, in)
            sums.baddbmm_(left.view(rows, n, rank).transpose(0, 1), right)  # (n, out, rank) @ (n, rank, in)
            torch._foreach_copy_(self.weights[start : start + n], layers)


class _Device:
    """
    All groups of one device: their gains are worked out together, by a handful of operations for hundreds of layers.

    Args:
        groups: The groups.
        device: Where they are.
    """

    def __init__(self, groups: Sequence[Group], device: torch.device) -> None:
        self._device, self._times = device, 0
        self._graph: tuple[torch.cuda.CUDAGraph, torch.Tensor] | None = None
        self._batched = []
        self._launches: list[tuple[Any, slice, slice]] = []  # with their layers and their ranks of all layers
        places: list[list[int]] = []  # by layer
        scales: list[list[float]] = []
        pair_of: list[torch.Tensor] = []  # of every rank of every layer, in the table of (layers, pairs)
        peaks: list[torch.Tensor] = []
        largest: list[float] = []
        most = max(len(group.ranks) for group in groups)
        ranks = 0
        for group in groups:
            launch = group.launch()
            pairs = len(group.ranks)
            if launch is None:
                tables = (
                    torch.tensor(group.places, device=device),
                    torch.tensor(group.scales, dtype=torch.float64),
                )
                self._batched.append((group, tables[0], tables[1].to(device)))
                continue
            first, count = len(places), len(group.weights)
            for layer in range(count):
                chunk = slice(layer * pairs, (layer + 1) * pairs)
                filling = most + 1 - pairs  # the last column has no gain: that of ranks that only fill up
                places.append([*group.places[chunk], *[0] * filling])
                scales.append([*group.scales[chunk], *[0.0] * filling])
            columns = torch.tensor([most if pair == pairs else pair for pair in launch.pair_of])
            rows = torch.arange(first, first + count)[:, None] * (most + 1)
            pair_of.append((rows + columns).flatten())
            known = torch.nan_to_num(
                launch.peaks, nan=1.0, posinf=1e30
            )  # one NaN must not reach a whole layer
            peaks.append(torch.nn.functional.pad(known, (0, most + 1 - pairs)))
            largest += [launch.largest or 1.0] * count
            self._launches.append(
                (launch, slice(first, first + count), slice(ranks, ranks + count * len(columns)))
            )
            ranks += count * len(columns)
        if self._launches:
            self._places = torch.tensor(places, device=device)  # (layers, pairs + 1)
            self._scales = torch.tensor(scales, dtype=torch.float64, device=device)
            self._pair_of = torch.cat(pair_of).to(device)  # (every rank of every layer,)
            self._layer_of = (torch.cat(pair_of) // (most + 1)).to(device)  # (every rank of every layer,)
            self._peaks = torch.cat(peaks)  # (layers, pairs + 1)
            self._largest = torch.tensor(largest, dtype=torch.float64, device=device)

    def write(self, gains: Sequence[float]) -> None:
        """Write all layers; what is written again and again is one captured graph, as launching a dozen kernels takes a millisecond."""
        values = torch.tensor(gains, dtype=torch.float64)
        with torch.cuda.device(self._device):
            if torch.cuda.is_current_stream_capturing():  # it becomes a part of somebody else's graph
                self._launch(values.to(self._device))
                return
            self._times += 1
            if self._times == _CAPTURED_AT and not self._batched:
                self._graph = self._captured(values)
            if self._graph is None:
                self._launch(values.to(self._device, non_blocking=True))
                return
            graph, held = self._graph
            held.copy_(values, non_blocking=True)
            graph.replay()

    def _captured(self, gains: torch.Tensor) -> tuple[torch.cuda.CUDAGraph, torch.Tensor] | None:
        """Return all launches as one graph, with the gains that it reads; None where they cannot be captured."""
        held, graph, side = gains.to(self._device), torch.cuda.CUDAGraph(), torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        here = torch.cuda.current_stream(self._device)
        side.wait_stream(here)
        try:
            with torch.cuda.stream(side):
                graph.capture_begin(capture_error_mode="thread_local")
                try:
                    self._launch(held)
                finally:
                    graph.capture_end()
        except RuntimeError:  # a driver or an allocator that has none
            return None
        here.wait_stream(side)
        return graph, held

    def _launch(self, gains: torch.Tensor) -> None:
        """Write all layers kernel by kernel; ``gains``: all gains, fp64, on the device."""
        for group, places, scales in self._batched:
            group.write_batched(gains[places] * scales)
        if not self._launches:
            return
        pairs = gains[self._places].mul_(self._scales)  # (layers, pairs)
        peak = (pairs.abs() * self._peaks).amax(1).clamp_(1e-30, 1e30)  # (layers,)
        power = torch.exp2(torch.floor(torch.log2(self._largest / peak)))  # (layers,)
        exact = pairs.view(-1)[self._pair_of]  # (every rank of every layer,)
        scaled = (exact * power[self._layer_of]).float()
        unscale = (1.0 / power).float()
        counts = torch.zeros(len(self._launches), dtype=torch.int32, device=gains.device)
        for number, (launch, layers, ranks) in enumerate(self._launches):
            launch.write(scaled[ranks], unscale[layers], exact[ranks], counts[number : number + 1])


class Groups:
    """Sorts layers into groups and writes them all."""

    def __init__(self) -> None:
        """Start empty."""
        self._groups: dict[tuple[object, ...], Group] = {}
        self._devices: dict[torch.device, _Device] = {}

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
            False unless all is on one GPU, dense in memory (channels last, too), and at most fp32.
        """
        if not weight.is_cuda:
            return False
        flat, clean = _flat(weight), _flat(base)
        if not (
            weight.dtype.itemsize <= 4
            and base.device == weight.device
            and flat is not None
            and clean is not None
            and weight.is_contiguous() == base.is_contiguous()
            and not weight.is_inference()
            and all(p.up.device == p.down.device == weight.device and p.up.dtype.itemsize > 1 for p in pairs)
        ):
            return False
        ranks = tuple(pair.down.shape[0] for pair in pairs)
        group = self._groups.setdefault((flat.shape, weight.dtype, weight.device, ranks), Group(ranks))
        group.weights.append(flat)
        group.bases.append(clean)
        group.ups.extend(pair.up for pair in pairs)
        group.downs.extend(
            pair.down if weight.is_contiguous() else _channels_last(pair.down, weight) for pair in pairs
        )
        group.places.extend(places)
        group.scales.extend(pair.scale for pair in pairs)
        return True

    def write(self, gains: Sequence[float]) -> None:
        """Write all layers of all groups."""
        for device in dict.fromkeys(group.weights[0].device for group in self._groups.values()):
            if device not in self._devices:
                groups = [group for group in self._groups.values() if group.weights[0].device == device]
                self._devices[device] = _Device(groups, device)
            self._devices[device].write(gains)


def _flat(weight: torch.Tensor) -> torch.Tensor | None:
    """Return a weight as (out, in * kernel) over its own memory, or None where there is no such view."""
    if weight.is_contiguous():
        return weight.view(weight.shape[0], -1)
    last = weight.permute(0, *range(2, weight.ndim), 1) if weight.ndim > 2 else weight
    return last.view(weight.shape[0], -1) if last.is_contiguous() else None


def _channels_last(down: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return (rank, in * kernel) with its columns in the order of a weight that has its channels last in memory."""
    shaped = down.view(-1, *weight.shape[1:])  # (rank, in, *kernel)
    return shaped.permute(0, *range(2, shaped.ndim), 1).reshape(down.shape)
