"""One worker, in this process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_mixer.batches.worker import Worker, WorkSpec
from lora_mixer.batches.worker_pool import ready

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from lora_mixer.batches.order import Task
    from lora_mixer.pictures import PictureRequest


class InProcess:
    """
    One worker in this process.

    Args:
        spec: What it has to know.
        requests: One of each shape.
    """

    count = 1

    def __init__(self, spec: WorkSpec, requests: Sequence[PictureRequest]) -> None:
        """Load nothing yet."""
        self._spec, self._requests = spec, requests
        self._worker: Worker | None = None

    def launch(self, worker: int) -> Any:
        """Load the pipeline."""
        del worker
        self._worker = Worker(self._spec)
        made = ready(self._worker, self._requests)
        return lambda: made

    def send(self, worker: int, task: Task | None, ahead: Sequence[str]) -> Any:
        """Keep the task for when somebody waits for it."""
        del worker
        assert self._worker is not None  # noqa: S101 -- the pool launches before it sends
        made = self._worker
        return lambda: made.work(task, ahead)

    def poll(self, handles: Sequence[Any], seconds: float) -> Iterable[Any]:
        """Everything is done when its result is asked for."""
        del seconds
        return handles

    def result(self, handle: Any) -> Any:
        """Do it."""
        return handle()

    def close(self, *, at_once: bool = False) -> None:
        """Give the base back."""
        del at_once  # nothing goes on here that nobody waits for
        if self._worker is not None:
            self._worker.close()
