"""
The grouped weight update as one Triton kernel: ``W = base + sum of gain * up @ down``, each byte of a weight moved once.

The ranks of all pairs of a layer stand side by side as one long axis k, packed once for a set of adapters, so that a
tile of the weight is one product over k. Gains are folded into the up factors in fp32 and split again into parts of the
factors' own type (two for fp16, three for bf16), whose products the tensor cores form exactly and sum in fp32. A power
of two for each layer keeps the low parts above the smallest numbers of the type; taking it out of the sum is exact.

Where base and change cancel, fp32 sums miss the last place of a bf16 weight: the kernel lists the stretches of rows that
hold such weights, and a second one writes these few again from sums in fp64.

On a GPU only; Triton comes with torch's CUDA builds.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl

if TYPE_CHECKING:
    from collections.abc import Sequence

_TYPES = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}
_PARTS = {torch.float16: 2, torch.bfloat16: 3, torch.float32: 1}
_LARGEST = {torch.float16: 2.0**12, torch.bfloat16: 0.0, torch.float32: 0.0}
"""What the largest entry of a scaled up factor is brought to; 0 for types with the exponents of fp32."""
_LISTED_AT_MOST = 1 << 20
_CLOSE = 2.0**-9
"""A sum this small beside its base may miss half of a bf16's last place by what the tensor cores' sums lose (some 2**-20)."""
_TILE = (64, 128, 64, 4, 2)
"""Rows, columns and ranks of a tile, warps and stages: the fastest of some thirty on an H200 at 16 to 128 ranks."""


@triton.jit
def _blend(  # noqa: ANN202 -- Triton reads the source, annotations are its own
    weights,  # noqa: ANN001  (layers,) addresses
    bases,  # noqa: ANN001
    ups,  # noqa: ANN001  (layers, rows, K)
    downs,  # noqa: ANN001  (layers, K, columns)
    gains,  # noqa: ANN001  (layers, K), scaled
    unscale,  # noqa: ANN001  (layers,)
    count,  # noqa: ANN001  how many stretches of BN weights are listed
    listed,  # noqa: ANN001  (layer * rows + row) * tiles across + tile of each
    K,  # noqa: ANN001
    rows,  # noqa: ANN001
    columns,  # noqa: ANN001
    most,  # noqa: ANN001
    WEIGHT: tl.constexpr,
    PARTS: tl.constexpr,
    ALIGN: tl.constexpr,  # bytes
    LIST: tl.constexpr,
    CLOSE: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    tile, layer = tl.program_id(0), tl.program_id(1)
    across = tl.cdiv(columns, BN)
    r0, c0 = (tile // across) * BM, (tile % across) * BN
    im, jn = tl.arange(0, BM), tl.arange(0, BN)
    inside_m, inside_n = r0 + im[:, None] < rows, c0 + jn[None, :] < columns
    start = r0.to(tl.int64) * columns + c0
    place = im[:, None] * columns + jn[None, :]  # 32 bits within a tile: wide ones cost registers
    base = tl.multiple_of(tl.load(bases + layer), ALIGN).to(tl.pointer_type(WEIGHT)) + start
    weight = tl.multiple_of(tl.load(weights + layer), ALIGN).to(tl.pointer_type(WEIGHT)) + start
    clean = tl.load(base + place, mask=inside_m & inside_n, other=0.0)  # on its way while the product is made
    up = ups + (layer.to(tl.int64) * rows + r0) * K
    down = downs + layer.to(tl.int64) * K * columns + c0
    total = tl.zeros((BM, BN), tl.float32)
    for k0 in range(0, K, BK):
        ks = k0 + tl.arange(0, BK)
        b = tl.load(down + ks[:, None] * columns + jn[None, :], mask=(ks[:, None] < K) & inside_n, other=0.0)
        a = tl.load(up + im[:, None] * K + ks[None, :], mask=inside_m & (ks[None, :] < K), other=0.0)
        gain = tl.load(gains + layer * K + ks, mask=ks < K, other=0.0)
        folded = a.to(tl.float32) * gain[None, :]
        if PARTS == 1:
            total = tl.dot(folded, b, total, input_precision="ieee")
        else:
            high = folded.to(a.dtype)
            total = tl.dot(high, b, total)
            folded -= high.to(tl.float32)
            low = folded.to(a.dtype)
            total = tl.dot(low, b, total)
            if PARTS == 3:
                total = tl.dot((folded - low.to(tl.float32)).to(a.dtype), b, total)
    exact = clean.to(tl.float32)
    total = total * tl.load(unscale + layer) + exact
    tl.store(weight + place, total.to(WEIGHT), mask=inside_m & inside_n)
    if LIST:
        close = inside_n & (tl.abs(total) < tl.abs(exact) * CLOSE)
        close_rows = (tl.max(close.to(tl.int32), 1) > 0) & (r0 + im < rows)  # (BM,)
        at = tl.atomic_add(count + tl.zeros_like(im), 1, mask=close_rows)
        stretch = (layer.to(tl.int64) * rows + r0 + im) * across + tile % across
        tl.store(listed + at, stretch, mask=close_rows & (at < most))


@triton.jit
def _again(  # noqa: ANN202
    weights,  # noqa: ANN001
    bases,  # noqa: ANN001
    ups,  # noqa: ANN001
    downs,  # noqa: ANN001
    gains,  # noqa: ANN001  (layers, K), fp64, not scaled
    count,  # noqa: ANN001
    listed,  # noqa: ANN001
    K,  # noqa: ANN001
    rows,  # noqa: ANN001
    columns,  # noqa: ANN001
    most,  # noqa: ANN001
    WEIGHT: tl.constexpr,
    CLOSE: tl.constexpr,
    BN: tl.constexpr,
):
    repeats = tl.minimum(tl.load(count), most)
    across = tl.cdiv(columns, BN)
    jn = tl.arange(0, BN)
    for number in range(tl.program_id(0), repeats, tl.num_programs(0)):
        stretch = tl.load(listed + number)
        line, c0 = stretch // across, (stretch % across) * BN  # line: layer * rows + row
        layer, row = line // rows, line % rows
        inside = c0 + jn < columns
        place = row * columns + c0 + jn
        base = tl.load(tl.load(bases + layer).to(tl.pointer_type(WEIGHT)) + place, mask=inside, other=0.0)
        total = base.to(tl.float64)
        weight = tl.load(weights + layer).to(tl.pointer_type(WEIGHT)) + place
        written = tl.load(weight, mask=inside, other=0.0).to(tl.float64)
        close = inside & (tl.abs(written) <= tl.abs(total) * (2 * CLOSE))
        down = downs + layer * K * columns + c0 + jn
        for k in range(K):
            a = tl.load(ups + line * K + k).to(tl.float64) * tl.load(gains + layer * K + k)
            total += a * tl.load(down + k * columns, mask=close, other=0.0).to(tl.float64)
        tl.store(weight, total.to(tl.float32).to(WEIGHT), mask=close)


class Launch:
    """
    One group of layers, ready to be written again and again.

    Args:
        weights: Live weights (out, in * kernel), contiguous, all of one shape, dtype and device.
        bases: Their bases.
        ups: Of every pair of every layer (out, rank), all of one dtype.
        downs: Likewise (rank, in * kernel).
        ranks: Rank of each pair of a layer.

    Attributes:
        pair_of: (K,): the pair of each rank of the packed axis, the number of pairs for ranks that only fill it up.
        peaks: (layers, pairs): the largest magnitude in each up factor, fp64.
        largest: What the largest folded entry shall be scaled to; 0 where the type needs no scaling.
    """

    def __init__(
        self,
        weights: Sequence[torch.Tensor],
        bases: Sequence[torch.Tensor],
        ups: Sequence[torch.Tensor],
        downs: Sequence[torch.Tensor],
        ranks: Sequence[int],
    ) -> None:
        """Pack the factors and put the addresses on the device; whoever holds this holds the weights, too."""
        first, pairs = weights[0], len(ranks)
        layers, (rows, columns), device = len(weights), first.shape, first.device
        rank = sum(ranks)
        padded = -(-rank // 16) * 16  # a tile of the tensor cores
        self._ups = ups[0].new_zeros(layers, rows, padded)  # (layers, out, R)
        self._downs = downs[0].new_zeros(layers, padded, columns)  # (layers, R, in)
        first_rank = 0
        for pair, pair_rank in enumerate(ranks):  # all layers in two launches, and not each in two of its own
            last_rank = first_rank + pair_rank
            packed = ups[pair].new_empty(layers, rows, pair_rank)
            torch._foreach_copy_(list(packed.unbind(0)), list(ups[pair::pairs]))
            self._ups[:, :, first_rank:last_rank] = packed
            packed = downs[pair].new_empty(layers, pair_rank, columns)
            torch._foreach_copy_(list(packed.unbind(0)), list(downs[pair::pairs]))
            self._downs[:, first_rank:last_rank] = packed
            first_rank = last_rank
        addresses = [tensor.data_ptr() for tensors in (weights, bases) for tensor in tensors]
        self._tables = torch.tensor(addresses, device=device).view(2, layers).unbind(0)
        self.pair_of = [pair for pair, chunk in enumerate(ranks) for _ in range(chunk)] + [pairs] * (
            padded - rank
        )
        self.peaks = torch.stack(torch._foreach_norm(list(ups), float("inf"))).double().view(layers, pairs)  # noqa: SLF001
        self.largest = _LARGEST[ups[0].dtype]
        self._sizes = padded, rows, columns
        self._weight = _TYPES[first.dtype]
        exact = first.dtype == torch.float32 and ups[0].dtype == torch.float16
        self._parts = 3 if exact else _PARTS[ups[0].dtype]
        self._align = math.gcd(16, columns * first.element_size(), *addresses)
        self.lists = first.dtype == torch.bfloat16
        self._listed = torch.empty(_LISTED_AT_MOST if self.lists else 1, dtype=torch.int64, device=device)

    def write(
        self, scaled: torch.Tensor, unscale: torch.Tensor, exact: torch.Tensor, count: torch.Tensor
    ) -> None:
        """
        Write all layers.

        Args:
            scaled: (layers * K,): gain * scale of every rank times the layer's power of two, fp32, on the device.
            unscale: (layers,): one over that power, fp32.
            exact: (layers * K,): gain * scale of every rank, fp64.
            count: (1,): zero, int32.
        """
        blend: Any = _blend
        again: Any = _again
        size, rows, columns = self._sizes
        bm, bn, bk, warps, stages = _TILE
        bk = min(bk, size & -size) if size < bk else bk
        grid = (-(-rows // bm) * -(-columns // bn), unscale.shape[0])
        given = (self._ups, self._downs)
        last = (count, self._listed, size, rows, columns, self._listed.numel(), self._weight)
        with torch.cuda.device(count.device):
            blend[grid](
                *self._tables, *given, scaled, unscale, *last, self._parts, self._align, self.lists, _CLOSE,
                bm, bn, bk, num_warps=warps, num_stages=stages,
            )  # fmt: skip
            if self.lists:
                again[(1056,)](*self._tables, *given, exact, *last, _CLOSE, bn, num_warps=1)
