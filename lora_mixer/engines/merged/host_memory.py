"""
Copies of weights in host memory, without the stall that pinned memory costs where it is made.

The bus is fast to and from pinned memory only, and to pin 24 GB when it is asked for takes some 18 s (1 GB/s seen on an H200's host).
So a copy is made in plain memory by way of a small pinned buffer (13 GB/s there), and pinned where it lies by another thread
(a second or two, in which nobody waits).
"""

from __future__ import annotations

import weakref
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import torch

_AT_ONCE = 1 << 26
"""Bytes of the pinned buffer, which torch keeps for the next time."""


def copy_to_host(live: torch.Tensor) -> torch.Tensor:
    """
    Return a copy of a tensor in host memory, in the same memory format; it is pinned soon after where it comes from a GPU.

    Example:
        >>> weight = torch.ones(2, 3)
        >>> kept = copy_to_host(weight)
        >>> kept is weight, torch.equal(kept, weight)
        (False, True)
    """
    live = live.detach()
    host = torch.empty_like(live, device="cpu")
    source, target = _bytes_of(live), _bytes_of(host)
    if not live.is_cuda or source is None or target is None or live.stride() != host.stride():
        return host.copy_(live)
    buffer = torch.empty(min(len(source), _AT_ONCE), dtype=torch.uint8, pin_memory=True)
    for start in range(0, len(source), _AT_ONCE):
        part = source[start : start + _AT_ONCE]
        target[start : start + len(part)].copy_(buffer[: len(part)].copy_(part))
    if len(source):
        _thread().submit(_pin, weakref.ref(host))
    return host


def _bytes_of(tensor: torch.Tensor) -> torch.Tensor | None:
    """Return a tensor's memory as bytes (n,), or None where it has gaps."""
    last = tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    if not (tensor.is_contiguous() or last):
        return None
    return tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8)


@cache
def _thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, "lora_mixer pins bases")


def _pin(held: weakref.ref[torch.Tensor]) -> None:
    """Pin a copy that is still wanted; where the system refuses, it stays slower to read."""
    host = held()
    if host is None:
        return
    runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    if int(runtime.cudaHostRegister(host.data_ptr(), host.numel() * host.element_size(), 0)) == 0:
        weakref.finalize(host, runtime.cudaHostUnregister, host.data_ptr()).atexit = False
