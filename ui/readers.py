"""Work on files that may take long, in threads of its own: the page's handlers keep theirs, whoever asks for how much."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from anyio import CapacityLimiter, to_thread

from lora_mixer.errors import PictureError

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

THREADS, WAITING = 8, 40
"""How many files are worked on at a time, and how many questions wait behind them."""


class Readers:
    """A few threads, and an end of what waits for them."""

    def __init__(self) -> None:
        """Start with nothing to do."""
        self._limiter = CapacityLimiter(THREADS)
        self._under_way = 0

    async def do(self, work: Callable[[], T]) -> T:
        """
        Do something in one of the threads, and wait for it in none.

        Raises:
            PictureError: When too much waits already.
        """
        if self._under_way >= THREADS + WAITING:
            raise PictureError("The server reads files for others just now: try again in a while.")
        self._under_way += 1
        try:
            return await to_thread.run_sync(work, limiter=self._limiter)
        finally:
            self._under_way -= 1
