"""Work done for one session: what it asked for in a row, what is told while it goes on, and how it ends."""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
import time
from collections import OrderedDict, deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lora_mixer import Problem
from lora_mixer.errors import LoraMixerError, PictureCancelled, PictureError

from . import gallery
from .ending import start_computing
from .messages import FieldError, told, unexpected
from .thumbs import data_uri

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from lora_mixer import Picture, PictureMaker, PictureRequest, StepProgress

    from .app_state import AppState

    Tell = Callable[[dict[str, Any]], None]
    View = dict[str, Any]

PREVIEW_EVERY = 0.3
"""Seconds between previews; the first comes with the first step."""
PREVIEW_SIDE = 384
MAX_JOBS = 32
"""Sessions whose pictures may be under way or wait at one time; one more is refused."""
MAX_WAITING = 8
"""What one session may have waiting behind what is being made."""
MAX_TAKEN = 64
"""Orders that were taken out of queues and can be put back, of all sessions together."""
GRACE = 30.0
"""Seconds that a job goes on when nobody listens: long enough to load the page again."""
_LOOK_EVERY = 2.0
_MADE = "Pictures of yours are still being made on {}: wait for them, or stop them there."
_UNDER_WAY = {
    "compare": _MADE.format("Compare"),
    "grid": _MADE.format("Compare"),
    "export": "An export of yours is still being written: wait for it.",
    "bake": "A model of yours is still being written: wait for it.",
    "site": "The site is still being asked: wait for its answer.",
}
_log = logging.getLogger(__name__)


@dataclass
class Order:
    """
    One press of a button.

    Attributes:
        label: What people see of it while it waits.
        work: Does it; takes the job, and returns what the last event has as its ``result``.
        number: Told apart by this.
    """

    label: str
    work: Callable[[SessionJob], Any]
    number: int = field(default_factory=itertools.count(1).__next__)


class SessionJob:
    """
    What a session has under way: orders one after the other, and one view of them that listeners follow.

    Args:
        owner: The session.
        kind: Orders of one kind may wait for each other.
        view: What is shown before anything was told.
        heard: Takes the view and what was told, and gives the next view.

    Attributes:
        first: The view given.
        orders: What waits.
    """

    def __init__(self, owner: str, kind: str, view: View, heard: Callable[[View, View], View]) -> None:
        """Start with no order."""
        self.owner, self.kind, self.stop = owner, kind, threading.Event()
        self.orders: deque[Order] = deque()
        self.first, self.heard = view, heard
        self.seen = time.monotonic()
        self.over = False
        self._view, self._version = view, 0
        self._listeners: set[Callable[[], None]] = set()
        self._lock = threading.RLock()

    def tell(self, event: dict[str, Any]) -> None:
        """Take in what happened, and wake whoever listens."""
        with self._lock:
            self._view = self.heard(self._view, event)
        self.changed()

    def changed(self) -> None:
        """Wake whoever listens."""
        with self._lock:
            self._version += 1
            listeners = list(self._listeners)
        for wake in listeners:
            wake()

    @property
    def view(self) -> View:
        """What is shown now."""
        with self._lock:
            waiting = [{"number": order.number, "label": order.label} for order in self.orders]
            return {**self._view, "waiting": waiting}

    async def follow(self) -> AsyncIterator[View]:
        """Yield each new view until the job is over; those that a slow listener missed are left out."""
        loop, news = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            with suppress(RuntimeError):  # the listener's loop is closed: nobody is there to be woken
                loop.call_soon_threadsafe(news.set)

        with self._lock:
            self._listeners.add(wake)
        seen = -1
        try:
            while True:
                with self._lock:
                    version, over, view = self._version, self.over, self.view
                if version != seen:
                    seen = version
                    yield view
                elif over:
                    return
                else:
                    await news.wait()
                    news.clear()
        finally:
            with self._lock:
                self._listeners.discard(wake)


class Jobs:
    """
    The running jobs, at most one for each session and ``limit`` in all; those that nobody listens to any more end.

    Args:
        limit: How many.
        present: Says whether a session is still there; without it, all are.
    """

    def __init__(self, limit: int = MAX_JOBS, present: Callable[[str], bool] | None = None) -> None:
        """Start with none."""
        self._limit, self._present = limit, present
        self._jobs: dict[str, SessionJob] = {}
        self._taken: OrderedDict[tuple[str, int], tuple[Order, SessionJob]] = OrderedDict()
        self._lock = threading.Lock()
        self._watching = False

    def submit(
        self,
        owner: str,
        kind: str,
        order: Order,
        view: View,
        heard: Callable[[View, View], View],
    ) -> tuple[SessionJob, bool]:
        """
        Begin a job, or put an order behind those of the same kind that the session has under way.

        Args:
            owner: The session.
            kind: ``make`` can wait behind itself; others are refused while something is under way.
            order: What to do.
            view: What is shown first.
            heard: As for :class:`SessionJob`.

        Returns:
            The job, and whether it is new.

        Raises:
            PictureError: When the session or all sessions together have too much under way.
        """
        with self._lock:
            job = self._jobs.get(owner)
            if job is not None:
                if kind != "make" or job.kind != kind:
                    raise PictureError(_UNDER_WAY.get(job.kind, _MADE.format("Make")))
                if len(job.orders) >= MAX_WAITING:
                    raise PictureError(
                        f"{MAX_WAITING} of yours wait already: take one out, or wait until one begins."
                    )
                job.orders.append(order)
                job.changed()
                return job, False
            if len(self._jobs) >= self._limit:
                raise PictureError(
                    f"The device has work for {self._limit} sessions already; try again when some are finished."
                )
            job = self._jobs[owner] = SessionJob(owner, kind, view, heard)
            job.orders.append(order)
            if self._present is not None and not self._watching:
                self._watching = True
                threading.Thread(target=self._watch, name="absent sessions", daemon=True).start()
        start_computing(self._run, f"work of {owner[:8]}", (job,))
        return job, True

    async def result(self, owner: str, kind: str, label: str, work: Callable[[SessionJob], Any]) -> Any:
        """
        Do one piece of work as a job of its own and wait for it, in no thread of the page's handlers.

        Returns:
            What the work returns.

        Raises:
            PictureError: When it failed, was stopped, or too much is under way.
        """
        view: View = {"state": "queued"}
        job, _ = self.submit(owner, kind, Order(label, work), view, lambda _, event: event)
        async for view in job.follow():  # noqa: B007 -- the last one counts
            pass
        if view["state"] == "error":
            raise FieldError(view["message"], view["field"])
        if view["state"] != "done":
            raise PictureCancelled("stopped")
        return view.get("result")

    def of(self, owner: str) -> SessionJob | None:
        """Return the session's job, or None."""
        with self._lock:
            return self._jobs.get(owner)

    def stop(self, owner: str) -> bool:
        """Stop what is being made for a session within one step; true where there was something."""
        job = self.of(owner)
        if job is not None:
            job.stop.set()
        return job is not None

    def rearrange(self, owner: str, number: int, to: int | None) -> bool:
        """Move a waiting order of the session to a place, or take it out where that is None; false where it waits no more."""
        with self._lock:
            job = self._jobs.get(owner)
            order = next((each for each in job.orders if each.number == number), None) if job else None
            if job is None or order is None:
                return False
            job.orders.remove(order)
            if to is not None:
                job.orders.insert(max(0, to), order)
            else:
                self._taken[owner, number] = (order, job)
                while len(self._taken) > MAX_TAKEN:
                    self._taken.popitem(last=False)
        job.changed()
        return True

    def put_back(self, owner: str, number: int, to: int) -> bool:
        """
        Put an order that was taken out where it was, or begin with it where nothing is under way any more.

        Returns:
            Whether a new job began with it, which somebody has to follow.

        Raises:
            PictureError: When it is not known any more, or too much is under way.
        """
        with self._lock:
            taken = self._taken.pop((owner, number), None)
        if taken is None:
            raise PictureError("What was taken out of the queue is not known any more; press Make again.")
        order, job = taken
        try:
            _, fresh = self.submit(owner, job.kind, order, job.first, job.heard)
        except PictureError:
            with self._lock:
                self._taken[owner, number] = taken
            raise
        if not fresh:
            self.rearrange(owner, number, to)
        return fresh

    def _next(self, job: SessionJob) -> Order | None:
        with self._lock:
            if job.orders:
                job.stop.clear()
                return job.orders.popleft()
            self._jobs.pop(job.owner, None)
            job.over = True
        job.changed()
        return None

    def _run(self, job: SessionJob) -> None:
        while (order := self._next(job)) is not None:
            try:
                job.tell({"state": "done", "result": order.work(job)})
            except PictureCancelled:
                job.tell({"state": "stopped"})
            except LoraMixerError as error:
                job.tell({"state": "error", **told(error)})
            except Exception as error:  # noqa: BLE001 -- said on the page and in the log, whatever it is
                _log.exception("a picture could not be made")
                job.tell({"state": "error", **told(PictureError(unexpected(error)))})

    def _watch(self) -> None:
        while True:
            time.sleep(_LOOK_EVERY)
            with self._lock:
                if not self._jobs:
                    self._watching = False
                    return
                jobs = list(self._jobs.values())
            now = time.monotonic()
            for job in jobs:
                if self._present is None or self._present(job.owner.partition("/")[0]):
                    job.seen = now
                elif now - job.seen > GRACE:
                    with self._lock:
                        job.orders.clear()
                    job.stop.set()


class Clock:
    """How long the rest takes, by the steps done so far."""

    def __init__(self, steps: int) -> None:
        """Count steps in all."""
        self.total, self.done = steps, 0
        self._spent, self._since = 0.0, time.perf_counter()

    def resume(self) -> None:
        """Go on after a wait, which is not counted."""
        self._since = time.perf_counter()

    def step(self) -> None:
        """Count one step."""
        now = time.perf_counter()
        self.done, self._spent, self._since = self.done + 1, self._spent + now - self._since, now

    @property
    def left(self) -> float:
        """Seconds that the other steps take."""
        return self._spent / max(1, self.done) * max(0, self.total - self.done)


def make_all(
    app: AppState,
    job: SessionJob,
    requests: Sequence[PictureRequest],
    tell: Tell,
    *,
    maker: Callable[[], PictureMaker] | None = None,
    batch: int = 1,
    model: int | None = None,
) -> list[tuple[Picture, str]]:
    """
    Make pictures, each batch in a turn of its own, and keep each as soon as it is finished.

    Args:
        app: Where.
        job: Whose; its ``stop`` is looked at in each step.
        requests: What.
        tell: Takes what changes: places in the queue, steps with previews, finished pictures.
        maker: Returns the maker; the page's own where None.
        batch: How many share a turn.
        model: Of which model they were asked, by its number; that of now where None.

    Returns:
        The pictures in the order of the requests, with their ids.

    Raises:
        PictureCancelled: When the job was stopped; pictures finished by then are kept.
        LoraMixerError: When something cannot be made.
    """
    number = app.models.number if model is None else model
    app.models.wait(tell, job.stop.is_set)
    full = [app.tagged(request) for request in requests]
    for request in full:
        if request.width is None or request.height is None:
            raise PictureError(
                problems=[
                    Problem(name, "expected a whole number of pixels")
                    for name in ("width", "height")
                    if getattr(request, name) is None
                ]
            )
    clock = Clock(sum(request.steps or app.defaults["steps"] for request in full))
    made: dict[int, tuple[Picture, str]] = {}
    for start in range(0, len(full), batch):
        part = full[start : start + batch]

        def waiting(ahead: int, start: int = start) -> None:
            tell({"state": "queued", "ahead": ahead, "queue": len(app.queue), "number": start + 1})

        with app.queue.turn(job.owner, on_move=waiting, stopped=job.stop.is_set):
            app.models.same(number)
            app.ready(dict.fromkeys(name for request in part for name in request.adapters))
            clock.resume()
            watch = _watcher(job, clock, tell, start, len(full), len(part))
            for picture in (maker() if maker else app.maker).make(part, on_step=watch):
                name = gallery.keep(app, picture)
                made[start + picture.index] = (picture, name)
                tell(
                    {
                        "state": "picture",
                        "index": start + picture.index,
                        "card": gallery.card(app, name, picture.image)
                        | {"seed": str(picture.request.seed), "mix": picture.request.mix.to_text()},
                    }
                )
        if start == 0:  # not before the first picture, which somebody waits for
            app.count_uses(full)
    return [made[index] for index in sorted(made)]


def _watcher(
    job: SessionJob, clock: Clock, tell: Tell, start: int, count: int, size: int
) -> Callable[[StepProgress], None]:
    last = 0.0

    def watch(report: StepProgress) -> None:
        nonlocal last
        if job.stop.is_set():
            raise PictureCancelled("stopped")
        for _ in report.indices:
            clock.step()
        event = {
            "state": "running",
            "number": start + report.indices[0] + 1,
            "count": count,
            "batch": size,
            "step": report.step,
            "steps": report.steps,
            "done": clock.done,
            "total": clock.total,
            "left": clock.left,
        }
        now = time.perf_counter()
        if now - last >= PREVIEW_EVERY and report.step < report.steps:
            event["previews"] = [data_uri(image, PREVIEW_SIDE, quality=70) for image in report.previews()]
            event["indices"] = [start + index for index in report.indices]
            last = time.perf_counter()
        tell(event)

    return watch
