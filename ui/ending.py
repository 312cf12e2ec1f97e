"""
Threads that compute, at the end of the process: one that is inside of torch while Python goes away ends it with an abort.

So the process waits for them a while. They are daemons all the same: a picture that takes minutes holds nobody up for longer.
"""

from __future__ import annotations

import atexit
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

PATIENCE = 10.0
"""Seconds in all that the end of the process waits."""
_computing: weakref.WeakSet[threading.Thread] = weakref.WeakSet()


def start_computing(target: Callable[..., object], name: str, args: tuple[Any, ...] = ()) -> threading.Thread:
    """Start a thread that computes, for which the end of the process waits."""
    thread = threading.Thread(target=target, name=name, args=args, daemon=True)
    _computing.add(thread)
    thread.start()
    return thread


@atexit.register
def wait() -> None:
    """Wait until nothing computes any more, at most :data:`PATIENCE`."""
    until = time.monotonic() + PATIENCE
    for thread in list(_computing):
        thread.join(max(0.0, until - time.monotonic()))
