"""
Whose turn it is: calls of components under a mix that goes by the call are made one after the other.

What a call changes (the gains of its step, its rows, its places, its scale) is there once for all threads. While one thread is inside
of such a call no other is inside of any; calls that change nothing are made beside each other.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

from lora_mixer.interrupts import Interruptible
from lora_mixer.uninterrupted import uninterrupted

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

_LOOK_SECONDS = 0.1
"""How often who waits looks whether the threads that he waits for are still there."""


class Turns:
    """
    One thread alone, or any number of them beside each other; a thread that is inside may go in once more.

    Attributes:
        is_by_call: Whether every call changes what others would see.

    Example:
        >>> turns = Turns()
        >>> with turns.taken(alone=True), turns.taken(alone=True):
        ...     turns.count
        2
        >>> turns.count
        0
    """

    def __init__(self) -> None:
        """Start with nobody inside."""
        self.is_by_call = False
        self.changed = threading.Condition(threading.Lock())
        self.inside: list[tuple[threading.Thread, bool]] = []

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy has: no call of it is under way."""
        return {"is_by_call": self.is_by_call}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Start with nobody inside."""
        vars(self).update(state, changed=threading.Condition(threading.Lock()), inside=[])

    @property
    def count(self) -> int:
        """How many calls are under way."""
        return len(self.inside)

    def taken(self, *, alone: bool) -> AbstractContextManager[None]:
        """Wait for one's turn, and have it for a block."""
        turn: Any = _Turn(self, alone=alone)
        return Interruptible(lambda: None, lambda _: None, turn)


class _Turn:
    """One call's, as a lock."""

    def __init__(self, turns: Turns, *, alone: bool) -> None:
        self._turns, self._alone = turns, alone

    @uninterrupted
    def acquire(self, timeout: float = -1) -> bool:
        """Wait for it; say whether it is had now."""
        turns, me, until = (
            self._turns,
            threading.current_thread(),
            None if timeout < 0 else time.monotonic() + timeout,
        )
        with turns.changed:
            while not self._is_free(me):
                left = _LOOK_SECONDS if until is None else min(_LOOK_SECONDS, until - time.monotonic())
                if left <= 0:
                    return False
                turns.changed.wait(left)
            turns.inside.append((me, self._alone))
            return True

    @uninterrupted
    def release(self) -> None:
        """Give it back."""
        with self._turns.changed:
            self._turns.inside.remove((threading.current_thread(), self._alone))
            self._turns.changed.notify_all()

    @uninterrupted
    def _is_free(self, me: threading.Thread) -> bool:
        living: list[tuple[threading.Thread, bool]] = []
        in_the_way = False
        for thread, alone in self._turns.inside:
            if thread.is_alive():  # what has ended keeps nobody out
                living.append((thread, alone))
                in_the_way = in_the_way or (thread is not me and (alone or self._alone))
        self._turns.inside[:] = living
        return not in_the_way
