"""
The weight update of many layers in one launch: each weight is read once from its base and written once, 4 bytes in fp16.

Factors are read where they lie, through tables of addresses. Products of halves are exact in the tensor cores' fp32, the
gains are multiplied in fp32, and the sum is rounded once. Imported only where there is Triton, which comes with torch's
CUDA builds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl

if TYPE_CHECKING:
    from collections.abc import Sequence

_TYPES = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}
_ROWS, _COLUMNS = 64, 128


@triton.jit
def _blend(  # noqa: ANN202 -- Triton reads the source, annotations are its own
    weights,  # noqa: ANN001
    bases,  # noqa: ANN001
    ups,  # noqa: ANN001
    downs,  # noqa: ANN001
    gains,  # noqa: ANN001
    ranks,  # noqa: ANN001
    pairs,  # noqa: ANN001
    chunks,  # noqa: ANN001
    rows,  # noqa: ANN001
    columns,  # noqa: ANN001
    WEIGHT: tl.constexpr,
    FACTOR: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    tile, layer = tl.program_id(0), tl.program_id(1)
    across = tl.cdiv(columns, BN)
    rm = (tile // across) * BM + tl.arange(0, BM)
    rn = (tile % across) * BN + tl.arange(0, BN)
    inside = (rm[:, None] < rows) & (rn[None, :] < columns)
    place = rm[:, None].to(tl.int64) * columns + rn[None, :]
    base = tl.load(bases + layer).to(tl.pointer_type(WEIGHT))
    total = tl.load(base + place, mask=inside, other=0.0).to(tl.float32)
    ks = tl.arange(0, BK)
    for turn in range(pairs * chunks):  # one loop, not two: twice as fast
        pair = turn // chunks
        rk = (turn % chunks) * BK + ks
        rank = tl.load(ranks + pair)
        up = tl.load(ups + layer * pairs + pair).to(tl.pointer_type(FACTOR))
        down = tl.load(downs + layer * pairs + pair).to(tl.pointer_type(FACTOR))
        gain = tl.load(gains + layer * pairs + pair)
        a = tl.load(
            up + rm[:, None] * rank + rk[None, :],
            mask=(rm[:, None] < rows) & (rk[None, :] < rank),
            other=0.0,
        )
        b = tl.load(
            down + rk[:, None].to(tl.int64) * columns + rn[None, :],
            mask=(rk[:, None] < rank) & (rn[None, :] < columns),
            other=0.0,
        )
        total += gain * tl.dot(a, b, input_precision="ieee")
    weight = tl.load(weights + layer).to(tl.pointer_type(WEIGHT))
    tl.store(weight + place, total.to(WEIGHT), mask=inside)


class Launch:
    """
    One group of layers, ready to be written again and again.

    Args:
        weights: Live weights (out, in * kernel), contiguous, all of one shape, dtype and device.
        bases: Their bases.
        ups: Of every pair of every layer (out, rank), contiguous.
        downs: Likewise (rank, in * kernel).
        ranks: Rank of each pair of a layer.
    """

    def __init__(
        self,
        weights: Sequence[torch.Tensor],
        bases: Sequence[torch.Tensor],
        ups: Sequence[torch.Tensor],
        downs: Sequence[torch.Tensor],
        ranks: Sequence[int],
    ) -> None:
        """Put the addresses on the device; whoever holds this holds the tensors, too."""
        first = weights[0]
        lists = (weights, bases, ups, downs)
        table = [tensor.data_ptr() for tensors in lists for tensor in tensors]
        self._tables = torch.tensor(table, device=first.device).split([len(x) for x in lists])
        self._ranks = torch.tensor(ranks, dtype=torch.int32, device=first.device)
        self._shape = first.shape
        self._dtypes = _TYPES[first.dtype], _TYPES[ups[0].dtype]
        self._block = min(64, max(16, 1 << (max(ranks) - 1).bit_length()))
        self._chunks = -(-max(ranks) // self._block)
        tiles = -(-first.shape[0] // _ROWS) * -(-first.shape[1] // _COLUMNS)
        self._grid = (tiles, len(weights))

    def write(self, gains: torch.Tensor) -> None:
        """
        Write all layers.

        Args:
            gains: gain * scale of every pair of every layer, fp32, on the device.
        """
        kernel: Any = _blend
        with torch.cuda.device(gains.device):
            kernel[self._grid](
                *self._tables,
                gains,
                self._ranks,
                len(self._ranks),
                self._chunks,
                *self._shape,
                *self._dtypes,
                _ROWS,
                _COLUMNS,
                self._block,
            )
