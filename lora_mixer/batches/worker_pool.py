"""Workers as one: who is idle, who is at what, who was lost and comes back; where they run is for a backend to know."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from lora_mixer.batches.worker import Reply, Worker, memory_in_use
from lora_mixer.errors import WorkersError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from lora_mixer.batches.order import Task
    from lora_mixer.batches.worker import Outcome
    from lora_mixer.pictures import PictureRequest

STARTS_AT_MOST = 5
"""How often in a row a worker may be lost before it has done anything."""


class WorkerGoneError(Exception):
    """A worker ended without an answer; the message says what is known."""


@dataclass(frozen=True)
class Ready:
    """
    A worker that can begin.

    Attributes:
        pid: Its process.
        batch_size: How many pictures it makes at once.
        is_on_gpu: Whether its pipeline is on an accelerator.
        memory: Bytes that its process has in memory.
    """

    pid: int
    batch_size: int
    is_on_gpu: bool
    memory: int


def ready(worker: Worker, requests: Sequence[PictureRequest]) -> Ready:
    """Say what a worker can do; called where the worker is."""
    return Ready(os.getpid(), worker.batch_size(requests), worker.is_on_gpu, memory_in_use())


class Backend(Protocol):
    """Where workers run."""

    @property
    def count(self) -> int:
        """How many there are."""

    def launch(self, worker: int) -> Any:
        """Start a worker, anew where it was lost; the handle's result is :class:`Ready`."""

    def send(self, worker: int, task: Task | None, ahead: Sequence[str]) -> Any:
        """Give a worker a task, or none to hear of the last pictures; the result is :class:`~lora_mixer.batches.worker.Reply`."""

    def poll(self, handles: Sequence[Any], seconds: float) -> Iterable[Any]:
        """Wait until at least one handle is done, or the time is over, and give those that are."""

    def result(self, handle: Any) -> Any:
        """Return a handle's result, or raise WorkerGoneError."""

    def close(self, *, at_once: bool = False) -> None:
        """End all workers, after what they are at or in the middle of it."""


@dataclass(frozen=True)
class Event:
    """
    Something happened to a worker.

    Attributes:
        worker: Its number.
        result: What it gave, or why it is gone.
        outcomes: What came of pictures, and the tasks that they are of.
        lost: What it was at when it was lost, and what it had made and not told of.
    """

    worker: int
    result: Ready | Reply | WorkerGoneError
    outcomes: tuple[tuple[Task, Outcome], ...] = ()
    lost: tuple[Task, ...] = ()


class WorkerPool:
    """
    The workers of a run.

    Args:
        backend: Where they run.
    """

    def __init__(self, backend: Backend) -> None:
        """Launch all."""
        self.backend = backend
        self._busy: dict[Any, int] = {}
        self._starting: set[int] = set()
        self._idle: set[int] = set()
        self._open: dict[int, dict[int, Task]] = {worker: {} for worker in range(backend.count)}
        self._failed_starts = dict.fromkeys(range(backend.count), 0)
        for worker in range(backend.count):
            self._launch(worker)

    @property
    def idle(self) -> list[int]:
        """Those that wait for work."""
        return sorted(self._idle)

    @property
    def working(self) -> int:
        """How many are at a task, or have made pictures that they have not told of."""
        at_work = {worker for worker in self._busy.values() if worker not in self._starting}
        return len(at_work | {worker for worker, pictures in self._open.items() if pictures})

    def submit(self, worker: int, task: Task, ahead: Sequence[str]) -> None:
        """Give an idle worker a task."""
        self._open[worker].update((picture.index, task) for picture in task.pictures)
        self._send(worker, task, ahead)

    def ask_the_idle(self) -> None:
        """Let workers that are idle say what came of pictures that they have not told of."""
        for worker in self.idle:
            if self._open[worker]:
                self._send(worker, None, ())

    def _send(self, worker: int, task: Task | None, ahead: Sequence[str]) -> None:
        self._idle.discard(worker)
        self._busy[self.backend.send(worker, task, ahead)] = worker

    def _launch(self, worker: int) -> None:
        self._starting.add(worker)
        self._busy[self.backend.launch(worker)] = worker

    def wait(self, seconds: float) -> list[Event]:
        """
        Wait for something to happen, for so long at most; a worker that is gone is launched again.

        Raises:
            WorkersError: When workers are lost again and again before they have done anything.
            LoraMixerError: What a worker met when it loaded the pipeline.
        """
        handles = list(self.backend.poll(list(self._busy), seconds)) if self._busy else []
        return [self._event(handle) for handle in handles]

    def _event(self, handle: Any) -> Event:
        worker = self._busy.pop(handle)
        starting = worker in self._starting
        self._starting.discard(worker)
        try:
            result = self.backend.result(handle)
        except WorkerGoneError as error:
            return self._gone(worker, error, starting=starting)
        self._idle.add(worker)
        if not isinstance(result, Reply):
            return Event(worker, result)
        self._failed_starts[worker] = 0
        open_tasks = self._open[worker]
        # one that was thought lost may tell of what others were given since
        known = [(task, x) for x in result.outcomes if (task := open_tasks.pop(x.picture.index, None))]
        return Event(worker, result, tuple(known))

    def _gone(self, worker: int, error: WorkerGoneError, *, starting: bool) -> Event:
        if starting:
            self._failed_starts[worker] += 1
        if self._failed_starts[worker] < STARTS_AT_MOST:
            self._launch(worker)
        elif not self._busy and not self._idle:
            raise WorkersError(
                f"all workers were lost {STARTS_AT_MOST} times in a row before they did anything; the last one: {error}"
            ) from error
        open_tasks, self._open[worker] = self._open[worker], {}
        # task by task, with those of its pictures that nothing is known of
        tasks = {id(task): task for task in open_tasks.values()}
        left = [
            replace(task, pictures=tuple(x for x in task.pictures if x.index in open_tasks))
            for task in tasks.values()
        ]
        return Event(worker, error, lost=tuple(left))
