"""
Sums in fp64 written into a weight with one rounding, and without whole temporaries.

torch converts fp64 to float16 and bfloat16 by way of fp32: two roundings, after which about 6 in 100,000 float16 weights
are not the nearest (1 in 100,000 of bfloat16). They go wrong only where the fp32 value lies midway between two halves and
the exact one beside it. Such values have zeros in their last bits, so the few that can be concerned are found in fp32 and
moved a bit towards the exact value before they are converted.

Sums go by blocks of rows in scratch memory that is kept: a layer of 10240 x 1280 in fp64 is 105 MB, which the system
would map, fault in and unmap at every switch. Blocks depend on the shape alone, and so do results.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

BLOCK = 1 << 20
"""Elements that are summed at a time: 8 MiB in fp64, in few calls: small parallel ones collapse on a busy machine."""
_TILE = 1 << 15
"""Elements that are rounded at a time: they stay in a core's cache, and torch starts no threads for so few."""
_LOW_BITS = {torch.float16: 0xFFF, torch.bfloat16: 0x7FFF}
"""Bits of an fp32 value that are all zero where it lies midway between two halves, subnormal ones too."""


class _Scratch(threading.local):
    """Memory that each thread keeps between calls."""

    def __init__(self) -> None:
        self.exact = torch.empty(BLOCK, dtype=torch.float64)
        self.single = torch.empty(_TILE, dtype=torch.float32)
        self.bits: NDArray[np.int32] = np.empty(_TILE, dtype=np.int32)
        self.zero: NDArray[np.bool_] = np.empty(_TILE, dtype=np.bool_)


_scratch = _Scratch()


def write_rounded(target: torch.Tensor, exact: torch.Tensor) -> None:
    """
    Write fp64 values into a tensor of any type and memory format, each rounded once.

    Args:
        target: Written in place, on a CPU.
        exact: fp64, of the same shape; read only.

    Example:
        >>> half = torch.empty(1, dtype=torch.float16)
        >>> write_rounded(half, torch.tensor([1 + 2.0**-11 + 2.0**-40], dtype=torch.float64))
        >>> half.item() == 1 + 2.0**-10
        True
    """
    if target.dtype not in _LOW_BITS:
        target.copy_(exact)
        return
    plain = target if target.is_contiguous() else torch.empty(target.shape, dtype=target.dtype)
    _round(plain.view(-1), exact.reshape(-1))
    if plain is not target:
        target.copy_(plain)


def write_by_rows(target: torch.Tensor, columns: int, fill: Callable[[slice, torch.Tensor], None]) -> None:
    """
    Write values that are made some rows at a time, each rounded once.

    Args:
        target: (rows, ...), written in place, on a CPU, in any memory format.
        columns: How many values a row has.
        fill: Puts the exact values of some rows into an fp64 tensor (rows, columns).
    """
    plain = target if target.is_contiguous() else torch.empty(target.shape, dtype=target.dtype)
    flat, rows = plain.view(-1), target.shape[0]
    height = max(BLOCK // max(columns, 1), 1)
    scratch = _scratch.exact if columns <= BLOCK else torch.empty(columns, dtype=torch.float64)
    for top in range(0, rows, height):
        bottom = min(top + height, rows)
        exact = scratch[: (bottom - top) * columns]
        fill(slice(top, bottom), exact.view(bottom - top, columns))
        _round(flat[top * columns : bottom * columns], exact)
    if plain is not target:
        target.copy_(plain)


def _round(target: torch.Tensor, exact: torch.Tensor) -> None:
    """Write fp64 values (n,) into (n,), each rounded once."""
    low = _LOW_BITS.get(target.dtype)
    if low is None:
        target.copy_(exact)
        return
    places: list[NDArray[np.int64]] = []
    for start in range(0, len(exact), _TILE):
        stop = min(start + _TILE, len(exact))
        count = stop - start
        single, bits, zero = _scratch.single[:count], _scratch.bits[:count], _scratch.zero[:count]
        single.copy_(exact[start:stop])
        target[start:stop].copy_(single)
        np.bitwise_and(single.numpy().view(np.int32), low, out=bits)
        np.equal(bits, 0, out=zero)
        zeros = np.flatnonzero(zero)
        zeros += start
        places.append(zeros)
    where = np.concatenate(places) if places else np.empty(0, np.int64)
    if where.size:
        values = torch.from_numpy(_towards(exact.numpy()[where]))
        target[torch.from_numpy(where)] = values.to(target.dtype)


def _towards(exact: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return fp32 values on the same side of every half and every middle between two as the exact ones."""
    with np.errstate(over="ignore", invalid="ignore"):
        single = exact.astype(np.float32)
        error = exact - single
        aside = np.nextafter(single, np.where(error > 0, np.inf, -np.inf).astype(np.float32))
        return np.where((error != 0) & np.isfinite(error), aside, single)
