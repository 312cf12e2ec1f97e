"""Who holds a mixer still: a lock that tells threads, and asyncio tasks within one thread, apart."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any

from lora_mixer.errors import PipelineStateError
from lora_mixer.uninterrupted import uninterrupted

_LOOK_SECONDS = 0.1
"""How often who waits looks whether the thread that he waits for is still there."""


@dataclass(frozen=True)
class Holder:
    """
    Who is running: a thread, and the asyncio task in it, if any.

    Attributes:
        thread: The thread itself; its number may be another one's later.
        task: The task, None outside of any.
    """

    thread: threading.Thread
    task: asyncio.Task[Any] | None = None

    @classmethod
    @uninterrupted
    def now(cls) -> Holder:
        """Return who is running."""
        task = None
        if "asyncio" in sys.modules:
            try:
                task = asyncio.current_task()
            except RuntimeError:  # no loop is running in this thread
                task = None
        return cls(threading.current_thread(), task)

    @property
    @uninterrupted
    def is_gone(self) -> bool:
        """Whether the thread has ended: nothing of it will ever end what it began."""
        return not self.thread.is_alive()

    @uninterrupted
    def may_end_what(self, other: Holder) -> bool:
        """Tell whether this one may end what another has begun: itself, or one that is over."""
        if self == other or other.is_gone:
            return True
        return self.thread is other.thread and (other.task is None or other.task.done())


class HoldingLock:
    """
    A lock that its holder may take again, as ``threading.RLock``.

    It differs in two ways: one whose thread has ended keeps nobody out, and of the asyncio tasks of one thread, which cannot
    wait for each other without stopping both, the second is refused. A task may take what its thread holds outside of tasks.

    Example:
        >>> lock = HoldingLock()
        >>> lock.acquire(), lock.acquire(), lock.release(), lock.release()
        (True, True, None, None)
    """

    def __init__(self) -> None:
        """Start free."""
        self._changed = threading.Condition(threading.Lock())
        self._holders: list[Holder] = []

    @uninterrupted
    def acquire(self, timeout: float = -1, *, reading: bool = False) -> bool:
        """
        Wait for the lock.

        Args:
            timeout: For how many seconds at most; without end where it is below 0.
            reading: Whether another task of this thread may hold it: what is only read at once is between its steps.

        Returns:
            Whether it is held now.

        Raises:
            PipelineStateError: When another task of this thread holds it.
        """
        me, until = Holder.now(), None if timeout < 0 else time.monotonic() + timeout
        with self._changed:
            while not self._is_free_for(me, reading=reading):
                left = _LOOK_SECONDS if until is None else min(_LOOK_SECONDS, until - time.monotonic())
                if left <= 0:
                    return False
                self._changed.wait(left)
            self._holders.append(me)
            return True

    @uninterrupted
    def release(self) -> None:
        """Give back what was acquired last by who is running."""
        me, last = Holder.now(), -1
        with self._changed:
            for at, holder in enumerate(
                self._holders
            ):  # a comprehension would be a function that is interrupted
                if holder == me:
                    last = at
            for at, holder in enumerate(self._holders):
                if last < 0 and me.may_end_what(holder):
                    last = at
            if last >= 0:
                del self._holders[last]
            self._changed.notify_all()

    @uninterrupted
    def _is_free_for(self, me: Holder, *, reading: bool) -> bool:
        living: list[Holder] = []
        others = beside = 0
        for holder in self._holders:
            if not holder.is_gone:
                living.append(holder)
                if not me.may_end_what(holder):
                    others += 1
                    beside += holder.thread is me.thread
        self._holders = living
        if not others or (reading and others == beside):
            return True
        if beside:
            raise PipelineStateError(
                "another asyncio task of this thread is inside of applied() or another call of this mixer, and neither can wait for "
                "the other: let one task at a time have the mixer (async with asyncio.Lock()), or make pictures in threads "
                "(asyncio.to_thread), which wait for each other. Nothing was changed"
            )
        return False


class ReadingLock:
    """
    The same lock for who only reads and is done at once: what another task of this thread holds does not keep it out.

    Args:
        lock: The lock.
    """

    def __init__(self, lock: HoldingLock) -> None:
        """Keep it."""
        self._lock = lock

    @uninterrupted
    def acquire(self, timeout: float = -1) -> bool:
        """Wait for the lock, as :meth:`HoldingLock.acquire`."""
        return self._lock.acquire(timeout, reading=True)

    @uninterrupted
    def release(self) -> None:
        """Give it back."""
        self._lock.release()
