"""
What the side path adds to a layer's output, in one pass over it: out += (gain * hidden) @ B^T.

The outputs are what costs, not the arithmetic, and beside an SDXL step the library's product of matrices takes a quarter
longer than this. A launch from Python costs more than the library's, though, so this is for CUDA graphs, whose replays
launch for nothing. Imported only where there is Triton, which comes with torch's CUDA builds.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

_ROWS, _COLUMNS = 64, 128


@triton.jit
def _add(  # noqa: ANN202 -- Triton reads the source, annotations are its own
    out,  # noqa: ANN001
    hidden,  # noqa: ANN001
    up,  # noqa: ANN001
    rows,  # noqa: ANN001
    columns,  # noqa: ANN001
    hidden_stride,  # noqa: ANN001
    up_stride,  # noqa: ANN001
    RANK: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    tile = tl.program_id(0)
    down = tl.cdiv(rows, BM)
    rm = (tile % down) * BM + tl.arange(0, BM)
    rn = (tile // down) * BN + tl.arange(0, BN)
    inside = (rm[:, None] < rows) & (rn[None, :] < columns)
    place = out + rm[:, None].to(tl.int64) * columns + rn[None, :]
    old = tl.load(place, mask=inside, other=0.0)  # on its way while the product is made
    total = tl.zeros((BM, BN), tl.float32)
    for start in tl.static_range(0, RANK, BK):
        rk = start + tl.arange(0, BK)
        a = tl.load(
            hidden + rm[:, None].to(tl.int64) * hidden_stride + rk[None, :],
            mask=(rm[:, None] < rows) & (rk[None, :] < RANK),
            other=0.0,
        )
        b = tl.load(
            up + rn[None, :].to(tl.int64) * up_stride + rk[:, None],
            mask=(rk[:, None] < RANK) & (rn[None, :] < columns),
            other=0.0,
        )
        total = tl.dot(a, b, total)
    tl.store(place, (total + old.to(tl.float32)).to(out.dtype.element_ty), mask=inside)


def add_product(output: torch.Tensor, hidden: torch.Tensor, up: torch.Tensor) -> None:
    """
    Add ``hidden @ up.T`` to an output in place, summed in fp32 and rounded once.

    Args:
        output: (rows, out), contiguous, on a GPU, fp16 or bf16.
        hidden: (rows, rank), of the same dtype; its rows may lie apart.
        up: (out, rank), likewise; a kernel is compiled for each number of ranks, its loop unrolled.
    """
    rows, columns = output.shape
    rank = up.shape[1]
    block = min(64, max(16, triton.next_power_of_2(rank)))
    grid = (triton.cdiv(rows, _ROWS) * triton.cdiv(columns, _COLUMNS),)
    kernel: Any = _add
    with torch.cuda.device(output.device):
        kernel[grid](
            output, hidden, up, rows, columns, hidden.stride(0), up.stride(0), rank, _ROWS, _COLUMNS, block
        )
