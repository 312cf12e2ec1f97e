"""Python's garbage collector kept out of the way while thousands of small objects are made."""

from __future__ import annotations

import gc
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


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
