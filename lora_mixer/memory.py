"""What a mixer holds in memory, and keeping Python's collector out of the way while it fills it."""

from __future__ import annotations

import gc
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lora_mixer.engines import BaseDevice


@dataclass(frozen=True)
class MemoryReport:
    """
    What a mixer holds, in bytes.

    Attributes:
        adapters: Tensors of each loaded adapter.
        base: Kept base weights by device; ``cpu`` is host memory.
        keep_base: Where bases are kept by choice: ``device`` or ``host``.
    """

    adapters: Mapping[str, int]
    base: Mapping[str, int]
    keep_base: BaseDevice

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self.adapters.values()) + sum(self.base.values())


@contextmanager
def paused_gc() -> Iterator[None]:
    """
    Keep the cyclic garbage collector from running for a moment.

    Loading makes thousands of small objects that all stay: each time some hundreds have come together, the collector
    would walk through every module of torch, diffusers and the pipeline, which takes longer than the load.
    """
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()
