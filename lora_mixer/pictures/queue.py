"""One queue in front of one device: whoever asks often waits his turn among all who ask."""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict, deque
from contextlib import contextmanager
from typing import TYPE_CHECKING

from lora_mixer.errors import PictureCancelled, PictureError

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator

LOOK_EVERY = 0.5
"""Seconds between looks at ``stopped`` while nothing moves; a turn itself is passed on at once."""


class FairQueue:
    """
    Turns on a device, one at a time, given to owners in a circle.

    An owner with many pictures in the queue delays another by one picture, not by all of them. Put it in front of a
    :class:`PictureMaker`: one turn for each picture or batch.

    Args:
        limit: The most turns that may wait; further ones are refused.

    Example:
        >>> queue = FairQueue()
        >>> with queue.turn("a session") as place:
        ...     print(place.ahead, len(queue))
        0 1
    """

    def __init__(self, limit: int = 256) -> None:
        """Start empty."""
        self._limit = limit
        self._changed = threading.Condition()
        self._waiting: OrderedDict[Hashable, deque[QueueTurn]] = OrderedDict()
        self._running: QueueTurn | None = None
        self._numbers = itertools.count()

    def __len__(self) -> int:
        """Count the turns that run or wait."""
        with self._changed:
            return sum(map(len, self._waiting.values())) + (self._running is not None)

    @contextmanager
    def turn(
        self,
        owner: Hashable,
        *,
        on_move: Callable[[int], None] | None = None,
        stopped: Callable[[], bool] | None = None,
    ) -> Iterator[QueueTurn]:
        """
        Wait for a turn, hold it for a block of code, and pass it on, whatever happens inside.

        Args:
            owner: Who asks; turns go round among owners.
            on_move: Called with the number of turns ahead, at once and whenever it changes while waiting.
            stopped: Looked at while waiting; true gives the place in the queue up.

        Yields:
            The turn, which says how many are ahead.

        Raises:
            PictureError: When the queue is full.
            PictureCancelled: When ``stopped`` said so.
        """
        place = self._enter(owner)
        try:
            self._wait(place, on_move, stopped)
            yield place
        finally:
            self._leave(place)

    def _enter(self, owner: Hashable) -> QueueTurn:
        with self._changed:
            waiting = sum(map(len, self._waiting.values()))
            if waiting >= self._limit:
                raise PictureError(
                    f"the queue is full: {waiting} pictures wait; try again when some are finished"
                )
            place = QueueTurn(self, owner, next(self._numbers))
            self._waiting.setdefault(owner, deque()).append(place)
            self._pass_on()
            return place

    def _wait(
        self, place: QueueTurn, on_move: Callable[[int], None] | None, stopped: Callable[[], bool] | None
    ) -> None:
        told = None
        while True:
            with self._changed:
                if self._running is place:
                    return
                ahead = self._ahead(place)
                if ahead == told:
                    self._changed.wait(LOOK_EVERY)
                    ahead = self._ahead(place)
            if stopped is not None and stopped():
                raise PictureCancelled("stopped while it waited in the queue")
            if ahead != told and on_move is not None:
                on_move(ahead)
            told = ahead

    def _leave(self, place: QueueTurn) -> None:
        with self._changed:
            if self._running is place:
                self._running = None
            else:
                self._waiting[place.owner].remove(place)
                if not self._waiting[place.owner]:
                    del self._waiting[place.owner]
            self._pass_on()

    def _pass_on(self) -> None:
        if self._running is None and self._waiting:
            owner, places = self._waiting.popitem(last=False)
            self._running = places.popleft()
            if places:
                self._waiting[owner] = places  # to the end of the circle
        self._changed.notify_all()

    def _ahead(self, place: QueueTurn) -> int:
        if self._running is place:
            return 0
        order = list(self._waiting)
        mine = list(self._waiting.get(place.owner, ())).index(place)
        turn = order.index(place.owner)
        before = sum(
            min(len(places), mine + (number < turn))
            for number, places in enumerate(self._waiting.values())
            if number != turn
        )
        return before + mine + (self._running is not None)


class QueueTurn:
    """
    A place in a :class:`FairQueue`.

    Attributes:
        owner: Whose it is.
        number: Counts up from 0 in the order of asking.
    """

    def __init__(self, queue: FairQueue, owner: Hashable, number: int) -> None:
        """Take a number."""
        self._queue = queue
        self.owner = owner
        self.number = number

    @property
    def ahead(self) -> int:
        """How many turns come before this one, the running one included."""
        with self._queue._changed:  # noqa: SLF001 -- one idea in two classes
            return self._queue._ahead(self)  # noqa: SLF001
