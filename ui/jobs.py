"""Pictures made for one session: its turns in the queue, what is told while they form, and how they are stopped."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lora_mixer.errors import LoraMixerError, PictureCancelled, PictureError

from . import gallery
from .thumbs import data_uri

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from lora_mixer import Picture, PictureMaker, PictureRequest, StepProgress

    from .app_state import AppState

PREVIEW_EVERY = 0.3
"""Seconds between previews; the first comes with the first step."""
PREVIEW_SIDE = 384
_OVERTAKEN = ("running", "queued")
_log = logging.getLogger(__name__)


@dataclass
class Job:
    """Work that a session waits for."""

    owner: str
    stop: threading.Event = field(default_factory=threading.Event)


class Jobs:
    """The running jobs, at most one for each session."""

    def __init__(self) -> None:
        """Start with none."""
        self._jobs: dict[str, Job] = {}
        self._lock = threading.Lock()

    def start(self, owner: str) -> Job:
        """
        Take the session's one place.

        Raises:
            PictureError: When it has a job already.
        """
        with self._lock:
            if owner in self._jobs:
                raise PictureError("pictures are still being made: wait for them, or stop them first")
            self._jobs[owner] = Job(owner)
            return self._jobs[owner]

    def stop(self, owner: str) -> bool:
        """Stop the session's job within one step; true where there was one."""
        with self._lock:
            job = self._jobs.get(owner)
        if job is not None:
            job.stop.set()
        return job is not None

    def end(self, job: Job) -> None:
        """Give the place back."""
        with self._lock:
            if self._jobs.get(job.owner) is job:
                del self._jobs[job.owner]


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
    job: Job,
    requests: Sequence[PictureRequest],
    tell: Callable[[dict[str, Any]], None],
    *,
    maker: PictureMaker | None = None,
    batch: int = 1,
) -> list[tuple[Picture, str]]:
    """
    Make pictures, each batch in a turn of its own, and keep each as soon as it is finished.

    Args:
        app: Where.
        job: Whose; its ``stop`` is looked at in each step.
        requests: What.
        tell: Takes what changes: places in the queue, steps with previews, finished pictures.
        maker: The app's own where None.
        batch: How many share a turn.

    Returns:
        The pictures in the order of the requests, with their ids.

    Raises:
        PictureCancelled: When the job was stopped; pictures finished by then are kept.
        LoraMixerError: When something cannot be made.
    """
    maker = maker or app.maker
    full = [app.tagged(request) for request in requests]
    for request in full:
        if request.width is None or request.height is None:
            raise PictureError("width and height: expected whole numbers of pixels")
    clock = Clock(sum(request.steps or app.defaults["steps"] for request in full))
    made: dict[int, tuple[Picture, str]] = {}
    for start in range(0, len(full), batch):
        part = full[start : start + batch]

        def waiting(ahead: int, start: int = start) -> None:
            tell({"state": "queued", "ahead": ahead, "queue": len(app.queue), "number": start + 1})

        with app.queue.turn(job.owner, on_move=waiting, stopped=job.stop.is_set):
            app.ready(dict.fromkeys(name for request in part for name in request.adapters))
            clock.resume()
            watch = _watcher(job, clock, tell, start, len(full), len(part))
            for picture in maker.make(part, on_step=watch):
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
    job: Job, clock: Clock, tell: Callable[[dict[str, Any]], None], start: int, count: int, size: int
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


class Mailbox:
    """Events on their way to a page: what a slow page has not fetched yet is overtaken by what came later."""

    def __init__(self) -> None:
        """Start empty; used within one event loop only."""
        self._events: deque[dict[str, Any]] = deque()
        self._news = asyncio.Event()
        self._closed = False

    def put(self, event: dict[str, Any]) -> None:
        """Add an event; a step or a place in the queue takes the place of the one before, whose preview it keeps."""
        if self._events and event["state"] == self._events[-1]["state"] and event["state"] in _OVERTAKEN:
            last = self._events.pop()
            event = {**{key: last[key] for key in ("previews", "indices") if key in last}, **event}
        self._events.append(event)
        self._news.set()

    def close(self) -> None:
        """Say that nothing more comes."""
        self._closed = True
        self._news.set()

    async def __aiter__(self) -> AsyncIterator[dict[str, Any]]:
        """Give the events in their order, until it is closed and empty."""
        while True:
            while self._events:
                yield self._events.popleft()
            if self._closed:
                return
            self._news.clear()
            await self._news.wait()


async def stream(
    work: Callable[[Callable[[dict[str, Any]], None]], Any], jobs: Jobs, job: Job
) -> AsyncIterator[dict[str, Any]]:
    """
    Run work in a thread of its own and give what it tells; whoever stops listening stops it.

    Args:
        work: Takes ``tell``.
        jobs: Where the job's place is given back.
        job: The job.

    Returns:
        What was told, those that were overtaken left out, and at the end ``done``, ``stopped`` or ``error``.
    """
    loop = asyncio.get_running_loop()
    told = Mailbox()

    def tell(event: dict[str, Any]) -> None:
        loop.call_soon_threadsafe(told.put, event)

    def run() -> None:
        try:
            result = work(tell)
            tell({"state": "done", "result": result})
        except PictureCancelled:
            tell({"state": "stopped"})
        except LoraMixerError as error:
            tell({"state": "error", "message": str(error)})
        except Exception as error:  # noqa: BLE001 -- said on the page and in the log, whatever it is
            _log.exception("a picture could not be made")
            text = f"{type(error).__name__}: {error}"
            tell({"state": "error", "message": f"This should not have happened. {text[:500]}"})
        finally:
            jobs.end(job)
            loop.call_soon_threadsafe(told.close)

    threading.Thread(target=run, name=f"pictures of {job.owner[:8]}", daemon=True).start()
    try:
        async for event in told:
            yield event
    finally:
        job.stop.set()
