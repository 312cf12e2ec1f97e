"""
A base without a second copy of it: what a weight holds under a mix, minus the change, and a patch where that is not the base.

Rounding loses the base in a few weights of a hundred, those that the mix made larger; these are noted when the mix is written. All
others have to come out of the subtraction the same bit for bit whenever it is made, by any number of threads, in any order of
additions. No library promises that of its products, so these are products of whole numbers: the factors are rounded to so few bits that
every sum of theirs is a whole number below 2 ** 53, which fp64 holds exactly. Rounding the factors costs nothing here: the patch has
what it moves. One look at each device shows that its products are exact (:func:`is_exact`).

A checksum of the base, taken before a mix is written over it, is compared whenever it is asked for, and one of the weight under the mix
before anything is written: what somebody else wrote there is told, and never taken for a base.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

import torch

from lora_mixer.engines.merged.blend import stacked, write
from lora_mixer.engines.merged.rounding import BLOCK

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lora_mixer.algorithms import Factors

    Pairs = Sequence[tuple[Factors, float]]
    """Low-rank pairs and the weights that they are in a mix with."""

_BLOCK_ON_DEVICE = 1 << 24
"""Weights that are worked on at a time where calls are dear and memory is not that of the caches."""

_FEW = 8
"""One in so many factors, as halves have them, may be rounded: another product would cost more than the patch."""

_FP64_BITS = 53
_INT8 = 127

_CHUNK = 16
"""Bits of a place within its chunk of a weight: two bytes for each, and one number for a chunk."""

_LARGEST_POWER = 900
"""Powers of two of factors beyond which the scales leave fp64."""

_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integers of as many bytes."""

_WORDS = 1024
"""Words of four bytes that are summed with multipliers of their own."""


@dataclass(frozen=True)
class _WholeProduct:
    """A product of whole numbers times a power of two: up (out, R), down (R, in * kernel)."""

    up: torch.Tensor
    down: torch.Tensor
    unit: float


@dataclass(frozen=True)
class _Patch:
    """Where the difference is not the base: places within their chunks, how many a chunk has, and how far off its bits are."""

    places: torch.Tensor
    counts: torch.Tensor
    steps: torch.Tensor
    """One byte for each place; 0 where it does not fit, for which ``far`` has the next one."""
    far: torch.Tensor

    @property
    def nbytes(self) -> int:
        return sum(x.nbytes for x in (self.places, self.counts, self.steps, self.far))

    def mend(self, bits: torch.Tensor) -> None:
        """Add the steps to the bits (n,) of a difference, in place."""
        chunks = torch.arange(len(self.counts), device=bits.device).repeat_interleave(self.counts)
        where = (chunks << _CHUNK) + self.places.to(torch.int64) + (1 << (_CHUNK - 1))
        steps = self.steps.to(bits.dtype)
        steps[self.steps == 0] = self.far
        bits[where] += steps


@dataclass(frozen=True, eq=False)
class PatchedBase:
    """
    A base as what is left of it in a weight under a mix.

    Attributes:
        mixed: What the weight holds: the parameter's own memory, until somebody moves or replaces that.
        pairs: What the mix is made of, and the weights.
        transposed: Whether the weight is stored (in, out).
        patches: What the difference lacks, by block of rows.
        of_base: The base's checksum.
        of_mixed: The weight's.
    """

    mixed: torch.Tensor
    pairs: Pairs
    transposed: bool
    patches: Sequence[_Patch]
    of_base: int
    of_mixed: int

    @property
    def dtype(self) -> torch.dtype:
        """The base's dtype."""
        return self.mixed.dtype

    @property
    def device(self) -> torch.device:
        """Where the base comes out, and what it takes in memory lies."""
        return self.mixed.device

    @property
    def weights(self) -> int:
        """How many numbers the base has."""
        return self.mixed.numel()

    @cached_property
    def nbytes(self) -> int:
        """What is held beside the weight, in bytes."""
        return sum(patch.nbytes for patch in self.patches)

    @property
    def is_whole(self) -> bool:
        """Whether the weight still holds, bit for bit, what the mix has made of it."""
        return checksum(self.mixed) == self.of_mixed

    @torch.no_grad()
    def read(self) -> torch.Tensor | None:
        """Return the base in memory of its own; None where the weight was written over."""
        change = _change(self.pairs, self.mixed)
        if not change:
            return None
        base = torch.empty_like(self.mixed)
        rows_of = base.T if self.transposed else base
        parts = _without(self.mixed, change, transposed=self.transposed)
        for patch, (rows, rounded) in zip(self.patches, parts, strict=True):
            patch.mend(rounded.view(_BITS[rounded.itemsize]).view(-1))
            rows_of[rows] = rounded.view(rows_of[rows].shape)
        return base if checksum(base) == self.of_base else None


@torch.no_grad()
def patched(mixed: torch.Tensor, base: torch.Tensor, pairs: Pairs, *, transposed: bool) -> PatchedBase | str:
    """
    Return what gives a base back from a weight that a mix was written into.

    Args:
        mixed: The weight (out, in, *kernel) under the mix; (in, out) when ``transposed``.
        base: Its base, of the same shape and dtype.
        pairs: What the mix is made of.
        transposed: Whether the weight is stored (in, out).

    Returns:
        That, or why the base has to be kept whole.

    Example:
        >>> from lora_mixer.algorithms import Factors
        >>> base = torch.linspace(-1, 1, 12).view(3, 4).half()
        >>> pair = Factors(torch.ones(3, 1), torch.ones(1, 4), 0.01)
        >>> mixed = (base.double() + 0.01).half()
        >>> kept = patched(mixed, base, [(pair, 1.0)], transposed=False)
        >>> torch.equal(kept.read(), base)
        True
    """
    if base.device != mixed.device or base.dtype != mixed.dtype or mixed.itemsize not in _BITS:
        return "its base is of another kind, or elsewhere"
    if not is_exact(mixed.device):
        return f"products on {mixed.device.type} are not exact in fp64"
    change = _change(pairs, mixed)
    if not change or not math.isfinite(mixed.sum(dtype=torch.float32).item()):
        return "it or an adapter has numbers that are none (NaN, Inf)"
    patches, size = [], 0
    clean = base.T if transposed else base
    for rows, rounded in _without(mixed, change, transposed=transposed):
        kind = _BITS[rounded.itemsize]
        wanted = clean[rows].reshape(rounded.shape).contiguous()
        steps = (wanted.view(kind) - rounded.view(kind)).view(-1)
        patches.append(_patch(steps))
        size += patches[-1].nbytes
        if size >= base.nbytes:
            return "the mix changes it so much that a patch would be no smaller"
    return PatchedBase(mixed.detach(), tuple(pairs), transposed, patches, checksum(base), checksum(mixed))


def _patch(steps: torch.Tensor) -> _Patch:
    """Note where steps (n,) between the bits of two tensors are not 0."""
    where = steps.nonzero().view(-1)
    chunks = max(-(-len(steps) >> _CHUNK), 1)
    counts = torch.bincount(where >> _CHUNK, minlength=chunks)
    places = (where & ((1 << _CHUNK) - 1)) - (1 << (_CHUNK - 1))
    odd = steps[where]
    is_far = (odd > _INT8) | (odd < -_INT8)
    near = odd.masked_fill(is_far, 0).to(torch.int8)
    return _Patch(places.to(torch.int16), counts.to(torch.int32), near, odd[is_far])


def _without(
    mixed: torch.Tensor, change: Sequence[_WholeProduct], *, transposed: bool
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yield rows of a weight and what these are without the change, (rows, in * kernel), each number rounded once; used at once."""
    source = mixed.T if transposed else mixed
    columns = change[0].down.shape[1]
    block = BLOCK if mixed.device.type == "cpu" else _BLOCK_ON_DEVICE
    height = max(block // max(columns, 1), 1)
    count = min(height, source.shape[0])
    # memory that is kept: the system would map, fault in and unmap new blocks each time
    sums, products = torch.empty(2, count, columns, dtype=torch.float64, device=mixed.device)
    kept = torch.empty(count, columns, dtype=mixed.dtype, device=mixed.device)
    for top in range(0, source.shape[0], height):
        rows = slice(top, min(top + height, source.shape[0]))
        count = rows.stop - top
        exact, product, rounded = sums[:count], products[:count], kept[:count]
        exact.copy_(source[rows].reshape(count, columns))
        for part in change:  # each exact in any order of additions; taken away one by one, number by number
            exact.sub_(torch.mm(part.up[rows], part.down, out=product).mul_(part.unit))
        write(rounded, exact)
        yield rows, rounded


def _change(pairs: Pairs, weight: torch.Tensor) -> list[_WholeProduct]:
    """
    Return a mix's change of a weight in whole numbers; none where it has no such form.

    Halves need no more bits of the factors than one product has; for others what rounding took from the factors follows.
    """
    up, down = stacked(pairs, weight.device, torch.float64)  # with the gains, (out, R); (R, in * kernel)
    if not (down.numel() and up.numel()):
        return []
    powers = [_power(peak) for peak in down.abs().amax(1).tolist()]
    scales = [2.0**power for power in powers if power is not None]
    if len(scales) < len(powers) or not bool(up.isfinite().all()):
        return []
    scale = torch.tensor(scales, dtype=torch.float64, device=weight.device)
    up, down = up * scale, down / scale[:, None]  # below 1 in each row of down
    top = _power(float(up.abs().max()))
    if top is None:
        return []
    bits = (_FP64_BITS - (down.shape[0] - 1).bit_length()) // 2
    up *= 2.0 ** (bits - top)
    down *= 2.0**bits
    ups, downs = up.round(), down.round()
    unit = 2.0 ** (top - 2 * bits)
    change = [_WholeProduct(ups, downs, unit)]
    if weight.itemsize > 2:
        finer = 2.0 ** (bits - 1)  # what is left is at most a half
        lesser_up, lesser_down = ((up - ups) * finer).round_(), ((down - downs) * finer).round_()
        change += [_WholeProduct(lesser_up, downs, unit / finer)] if lesser_up.any() else []
        if lesser_down.count_nonzero() * _FEW > lesser_down.numel():
            change.append(_WholeProduct(ups, lesser_down, unit / finer))
    return change


def _power(peak: float) -> int | None:
    """Return the power of two above a number; None where that is out of reach."""
    if not math.isfinite(peak):
        return None
    power = math.frexp(peak)[1]
    return power if abs(power) <= _LARGEST_POWER else None


@cache
def _multipliers() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randint(-(1 << 30), 1 << 30, (_WORDS,), generator=generator, device="cpu").to(torch.int32) * 2
        + 1
    )


@torch.no_grad()
def checksum(tensor: torch.Tensor) -> int:
    """
    Return 64 bits that differ, for all one can tell, where any bit of a tensor does, on any device the same.

    Example:
        >>> zeros = torch.zeros(3)
        >>> checksum(zeros) == checksum(zeros.clone()), checksum(zeros) == checksum(-zeros)
        (True, False)
    """
    flat = tensor.detach().contiguous().view(-1)
    if flat.storage_offset() * flat.itemsize % 4:
        flat = flat.clone()
    total = len(flat)
    whole = len(flat) * flat.itemsize // 4 // _WORDS * _WORDS * 4 // flat.itemsize
    words = flat[:whole].view(torch.int32).view(-1, _WORDS) if whole else flat[:0]
    table = _multipliers().to(flat.device)
    block = max((BLOCK if flat.device.type == "cpu" else _BLOCK_ON_DEVICE) // _WORDS, 1)
    for top in range(0, len(words), block):
        sums = (words[top : top + block] * table).sum(1)  # modulo 2 ** 32 each, and of these the sum
        places = torch.arange(top, top + len(sums), device=flat.device) * 2 + 1
        total = _mixed_in(total, int((sums * places).sum()))
    rest = flat[whole:].view(_BITS[flat.itemsize]).to(torch.int64)
    places = torch.arange(len(rest), device=flat.device) * 2 + 1
    return _mixed_in(total, int((rest * places).sum()))


def _mixed_in(total: int, number: int) -> int:
    return (total * 0x9E3779B97F4A7C15 + number + 1) % (1 << 64)


@cache
def is_exact(device: torch.device) -> bool:
    """
    Tell whether products of whole numbers are exact on a device, at edges of blocks and at once by all its threads.

    Example:
        >>> is_exact(torch.device("cpu"))
        True
    """
    try:
        return all(_is_product_exact(device, *shape) for shape in ((67, 16, 129), (1, 64, 300), (257, 5, 1)))
    except (RuntimeError, TypeError, NotImplementedError):  # no fp64 there
        return False


def _is_product_exact(device: torch.device, rows: int, rank: int, columns: int) -> bool:
    generator = torch.Generator().manual_seed(rank)
    bits = (_FP64_BITS - (rank - 1).bit_length()) // 2

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randint(-(1 << bits), (1 << bits) + 1, shape, generator=generator, device="cpu")

    up, down = numbers(rows, rank), numbers(rank, columns)
    exact: Any = (up[:, :, None] * down).sum(1)  # int64
    product = up.to(device, torch.float64) @ down.to(device, torch.float64)
    return torch.equal(product.cpu(), exact.to(torch.float64))
