"""
Independent writes on all cores of a CPU, one at a time on each.

torch spreads a single call over its threads, but the rounding of a sum is many small ones, which run on one core: a mix of
SDXL in host memory took 8 seconds on 16 cores. Layers have nothing to do with each other, so each thread takes whole ones.
"""

from __future__ import annotations

import threading
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING

import torch

from lora_mixer.interrupts import Interruptible, uninterrupted

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

WORTH_IT = 1 << 22
"""Weights from which threads are started: some 10 ms of work, where starting them takes a tenth of one each."""


def on_all_cores(writes: Sequence[Callable[[], None]], weights: int) -> None:
    """
    Run writes that have nothing to do with each other, on as many threads as torch has, each computing alone.

    They are begun in order. After an error, and after Ctrl-C, no other is begun, and those under way end before it goes on.

    Args:
        writes: What to run; each without gradients.
        weights: How many weights they write in all; few are written one after the other in this thread.

    Example:
        >>> from functools import partial
        >>> written: list[int] = []
        >>> on_all_cores([partial(written.append, row) for row in range(3)], weights=3)
        >>> written
        [0, 1, 2]
    """
    threads = torch.get_num_threads()
    count = min(threads, len(writes))
    if count < 2 or weights < WORTH_IT:
        for write in writes:
            write()
        return
    futures: list[Future[None]] = []

    @uninterrupted
    def begin() -> ThreadPoolExecutor:
        pool = ThreadPoolExecutor(count, "lora_mixer writes", initializer=_alone)
        all_there = threading.Barrier(count + 1)
        try:
            for _ in range(count):
                pool.submit(all_there.wait)
        except BaseException:
            all_there.abort()  # no thread could be had: those that could wait for it
            pool.shutdown(wait=True)
            raise
        all_there.wait()
        torch.set_num_threads(threads)  # for threads that start from now on; those of the pool have theirs
        return pool

    @uninterrupted
    def end(_: BaseException | None) -> None:
        pool.shutdown(wait=True, cancel_futures=True)

    with Interruptible(begin, end) as pool:
        futures.extend(pool.submit(_without_gradients, write) for write in writes)
        wait(futures, return_when=FIRST_EXCEPTION)
    for future in futures:
        if not future.cancelled():
            future.result()


def _alone() -> None:
    """Have this thread compute by itself: torch reads the process's number at a thread's first question, so that comes first."""
    torch.get_num_threads()
    torch.set_num_threads(1)


@torch.no_grad()
def _without_gradients(write: Callable[[], None]) -> None:
    write()
