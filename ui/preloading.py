"""Work done before somebody waits for it: the pipeline's first steps, and adapters that a row was just made for."""

from __future__ import annotations

import logging
import threading
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from lora_mixer import PictureRequest

from .ending import start_computing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from lora_mixer import StepProgress

WARM_SIDE = 128
"""Pixels a side of the picture that warms the pipeline up, at most."""
_OWNER = "preloading"
_log = logging.getLogger(__name__)


class _App(Protocol):
    """What is warmed up: the page's shared state, as far as it matters here."""

    queue: Any
    models: Any

    @property
    def mixer(self) -> Any:
        """The mixer."""

    @property
    def maker(self) -> Any:
        """Who makes pictures."""

    @property
    def size(self) -> tuple[int, int]:
        """Pixels that the model was made for."""

    def spare_for(self, name: str) -> bool:
        """Tell whether an adapter could be loaded without another making room."""

    def ready(self, names: Iterable[str]) -> Any:
        """Load adapters."""


class Preloader:
    """
    One thread that takes its turns in the device's queue like a session, and goes away when there is nothing to do.

    Args:
        app: Whose pipeline and adapters.
    """

    def __init__(self, app: _App) -> None:
        """Start with nothing to do."""
        self._app = app
        self._lock = threading.Lock()
        self._names: dict[str, None] = {}
        self._cold = False
        self._thread: threading.Thread | None = None

    def warm_up(self) -> None:
        """Make a tiny picture of one step, preview and all: what is slow the first time is done then."""
        with self._lock:
            self._cold = True
            self._go()

    def want(self, names: Iterable[str]) -> None:
        """
        Load adapters soon.

        Args:
            names: As mixes call them; those that cannot be used here are left for the click to complain about.
        """
        fresh = [name for name in names if self._app.spare_for(name)]
        with self._lock:
            self._names |= dict.fromkeys(fresh)
            if fresh:
                self._go()

    def wait(self) -> None:
        """Wait until there is nothing to do."""
        while (thread := self._thread) is not None:
            thread.join()

    def _go(self) -> None:
        if self._thread is None:
            self._thread = start_computing(self._run, _OWNER)

    def _run(self) -> None:
        while True:
            with self._lock:
                cold, names = self._cold, list(self._names)
                self._cold, self._names = False, {}
                if not cold and not names:
                    self._thread = None
                    return
            for name in names:
                self._turn(f"{name} could not be loaded ahead", partial(self._load, name))
            if cold:
                self._turn("the pipeline could not be warmed up", self._first_steps)

    def _turn(self, failed: str, work: Callable[[], None]) -> None:
        try:
            self._app.models.loaded()  # not within the turn: whoever comes meanwhile waits for the model alone
            with self._app.queue.turn(_OWNER):
                work()
        except Exception as error:  # noqa: BLE001 -- whoever needs it meets the error again, and is told
            _log.info("%s: %s", failed, error)

    def _load(self, name: str) -> None:
        self._app.ready([name])
        with self._app.mixer.applied({name: 1.0}):  # the first time, the base of what it changes is kept
            pass

    def _first_steps(self) -> None:
        width, height = (min(side, WARM_SIDE) for side in self._app.size)
        request = PictureRequest("", steps=1, width=width, height=height)
        list(self._app.maker.make([request], on_step=_look))


def _look(report: StepProgress) -> None:
    report.previews()
