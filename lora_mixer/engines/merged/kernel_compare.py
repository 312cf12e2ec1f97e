"""
Whether tensors on a GPU hold the same bits as others, all by one Triton kernel: each is read once, and nothing but flags is written.

torch's ``!=`` and ``any`` are two launches and a temporary for each tensor: at SDXL's size 24 ms for what the memory reads in 3.
On a GPU only; Triton comes with torch's CUDA builds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

if TYPE_CHECKING:
    from collections.abc import Sequence

WORD = 8
"""Bytes that are compared at a time; tensors begin and end at whole ones."""
_BLOCK = 4096
_PARTS = 32
"""Programs that share a tensor: the largest of SDXL have 800 blocks, hundreds of others a few."""


@triton.jit
def _differ(  # noqa: ANN202 -- Triton reads the source, annotations are its own
    ones,  # noqa: ANN001  (tensors,) addresses
    others,  # noqa: ANN001
    words,  # noqa: ANN001  (tensors,) how many of 8 bytes each has
    flags,  # noqa: ANN001  (tensors,) 1 where any is another
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    tensor, part = tl.program_id(0), tl.program_id(1)
    one = tl.multiple_of(tl.load(ones + tensor), 8).to(tl.pointer_type(tl.int64))
    other = tl.multiple_of(tl.load(others + tensor), 8).to(tl.pointer_type(tl.int64))
    count = tl.load(words + tensor)
    odd = tl.zeros((BLOCK,), tl.int32)
    start = part.to(tl.int64) * BLOCK
    while start < count:
        place = start + tl.arange(0, BLOCK)
        a = tl.load(one + place, mask=place < count, other=0)
        b = tl.load(other + place, mask=place < count, other=0)
        odd |= (a != b).to(tl.int32)
        start += PARTS * BLOCK
    if tl.max(odd, 0) > 0:
        tl.store(flags + tensor, 1)


def differ(pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """
    Compare tensors, each with another of its size; all contiguous, on one GPU, at addresses and of sizes that are whole words.

    Returns:
        int32 (pairs,): 1 where any bit differs.
    """
    device = pairs[0][0].device
    table = torch.tensor(
        [(one.data_ptr(), other.data_ptr(), one.nbytes // WORD) for one, other in pairs], dtype=torch.int64
    )
    ones, others, words = table.T.contiguous().to(device, non_blocking=True)
    flags = torch.zeros(len(pairs), dtype=torch.int32, device=device)
    with torch.cuda.device(device):
        _differ[len(pairs), _PARTS](ones, others, words, flags, PARTS=_PARTS, BLOCK=_BLOCK)
    return flags
