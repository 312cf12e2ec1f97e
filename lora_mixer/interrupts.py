"""Ctrl-C that ends a block at once, but waits where the block begins and ends: there a pipeline is not whole."""

from __future__ import annotations

import signal
import sys
import threading
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from lora_mixer.errors import PipelineStateError
from lora_mixer.holding import Holder
from lora_mixer.uninterrupted import WHOLE, uninterrupted

__all__ = ["WHOLE", "Interruptible", "uninterrupted"]

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType, TracebackType

    from lora_mixer.holding import HoldingLock, ReadingLock

T = TypeVar("T")

_LOOK_SECONDS = 0.1
"""How often who waits for a lock looks whether Ctrl-C came."""


class Interruptible(Generic[T]):
    """
    A block whose begin and end are whole: SIGINT waits there, and ends what is between them at once.

    It is not a ``@contextmanager``: between an error and the rest of such a generator runs code of the standard library, where
    Ctrl-C would keep the end from being run. The handler looks where the signal came instead, so that there is no such
    place. In other threads, where no signal comes, and under handlers that are not Python's, nothing changes.

    Args:
        begin: Called as the block begins; what it returns is what ``with`` gives. Where it fails, the block has not begun.
        end: Called as it ends, with the error that ended it, or None.
        lock: Held meanwhile; Ctrl-C ends waiting for it.

    Example:
        >>> with Interruptible(lambda: "block", lambda error: print("whole")) as name:
        ...     print(name)
        block
        whole
    """

    def __init__(
        self,
        begin: Callable[[], T],
        end: Callable[[BaseException | None], object],
        lock: HoldingLock | ReadingLock | None = None,
    ) -> None:
        """Keep them."""
        self._begin, self._end, self._lock = begin, end, lock
        self._before: Any = None
        self._came = 0
        self._holders: list[Holder] = []

    @uninterrupted
    def __enter__(self) -> T:
        """Begin the block; what came meanwhile ends it before anything is done in it."""
        outside = sys._getframe().f_back  # noqa: SLF001
        before = signal.getsignal(signal.SIGINT)
        if threading.current_thread() is threading.main_thread() and callable(before):
            self._before = before
            signal.signal(signal.SIGINT, self._handle)
        try:
            self._acquire(outside)
        except BaseException:
            self._leave(outside)
            raise
        try:
            value = self._begin()
        except BaseException:
            self._release(outside)
            raise
        self._holders.append(Holder.now())
        try:
            self._pass_on(outside)
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return value

    @uninterrupted
    def __exit__(
        self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None
    ) -> None:
        """
        End the block, whatever comes meanwhile; one whose thread has ended may be ended by any other.

        Raises:
            PipelineStateError: When it is not open, or began in another thread or asyncio task, which holds the lock; nothing has
                changed then.
        """
        if not self._holders:
            raise PipelineStateError("this block is not open: it has ended, or has not begun") from error
        began, here = self._holders[-1], Holder.now()
        if not here.may_end_what(began):
            what = "another thread" if began.thread is not here.thread else "another asyncio task"
            raise PipelineStateError(
                f"this block began in {what}, which keeps all others out until it ends: end it where it began (a generator that "
                "holds it has to be closed there)"
            ) from error
        outside = sys._getframe().f_back  # noqa: SLF001
        if began.is_gone:
            self._acquire(outside)
        self._holders.pop()
        try:
            self._end(error)
        finally:
            self._release(outside)

    @uninterrupted
    def _acquire(self, outside: FrameType | None) -> None:
        if self._lock is None:
            return
        if self._before is None:
            self._lock.acquire()
            return
        while not self._lock.acquire(timeout=_LOOK_SECONDS):
            self._pass_on(outside)

    @uninterrupted
    def _release(self, outside: FrameType | None) -> None:
        if self._lock is not None:
            self._lock.release()
        self._leave(outside)

    @uninterrupted
    def _pass_on(self, outside: FrameType | None) -> None:
        if self._came:
            self._came = 0
            self._before(signal.SIGINT, outside)

    @uninterrupted
    def _leave(self, outside: FrameType | None) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
            self._pass_on(outside)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        at = frame
        while at is not None and at.f_code not in WHOLE:
            at = at.f_back
        if at is None:
            self._before(number, frame)
        else:
            self._came += 1


def at_once(work: Callable[[], T], undo: Callable[[], object]) -> T:
    """
    Do what Ctrl-C does not interrupt; where it fails it is undone.

    Args:
        work: What is done; Ctrl-C that comes meanwhile is heard when it has ended.
        undo: What takes back whatever part of it was done.

    Returns:
        What ``work`` returns.

    Example:
        >>> at_once(lambda: 3, lambda: None)
        3
    """

    @uninterrupted
    def begin() -> T:
        try:
            return work()
        except BaseException:
            undo()
            raise

    with Interruptible(begin, lambda _: None) as found:
        pass
    return found
