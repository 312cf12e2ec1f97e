"""
Workers as actors of a Ray cluster.

Ray places them (one per GPU, or per so many cores), starts them again where they or their node died, and moves what they
are told and answer; here is only who gets which pictures next.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lora_mixer.batches.worker import Reply, Worker, WorkSpec
from lora_mixer.batches.worker_pool import Ready, WorkerGoneError, ready
from lora_mixer.errors import WorkersError
from lora_mixer.extras import require
from lora_mixer.wording import first_line

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from lora_mixer.batches.order import Task
    from lora_mixer.pictures import PictureRequest


_END_SECONDS = 10.0
"""How long the end of a run waits for actors to tidy up."""


class RayWorker:
    """What lives in an actor; the pipeline is loaded by ``begin``, so that a failure of it comes back as itself."""

    def __init__(self) -> None:
        """Wait for ``begin``, also after a restart."""
        self._worker: Worker | None = None

    def begin(self, spec: WorkSpec, requests: Sequence[PictureRequest]) -> Ready:
        """Load the pipeline."""
        if self._worker is None:
            self._worker = Worker(spec)
        return ready(self._worker, requests)

    def work(self, task: Task | None, ahead: Sequence[str]) -> Reply:
        """Make the pictures of a task."""
        if self._worker is None:
            raise WorkerGoneError("the actor was started anew and has no pipeline yet")
        return self._worker.work(task, ahead)

    def end(self) -> None:
        """Remove what was downloaded."""
        if self._worker is not None:
            self._worker.cache.discard()


class RayActors:
    """
    Workers on a cluster.

    Args:
        spec: What they have to know.
        requests: One of each shape.
        workers: How many; None is one per GPU, or as many as the cores allow.
        address: The cluster's; None is the one that this process or ``RAY_ADDRESS`` knows, or a new one here.

    Raises:
        MissingExtraError: When Ray is not installed.
        WorkersError: When the cluster cannot be reached.
    """

    def __init__(
        self, spec: WorkSpec, requests: Sequence[PictureRequest], workers: int | None, address: str | None
    ) -> None:
        """Connect."""
        self._ray: Any = require("ray", "ray")
        ray = self._ray
        self._ours = not ray.is_initialized()
        if self._ours:
            try:
                ray.init(address=address, include_dashboard=False, log_to_driver=False)
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise WorkersError(
                    f"the Ray cluster at {address or 'this machine'} cannot be reached: {error}"
                ) from error
        have = ray.cluster_resources()
        gpus = int(have.get("GPU", 0)) if spec.device in ("auto", "cuda") else 0
        needs = {"num_gpus": 1} if gpus else {"num_cpus": spec.run.threads}
        self.count = workers or (gpus or max(1, int(have.get("CPU", 1)) // spec.run.threads))
        spec = replace(spec, device="cuda" if gpus else spec.device)
        # What was in hand is done by whoever is free first, not by the actor once it is back; but a start waits for that,
        # and Ray takes a while to see that a node is gone. One that dies twice is replaced by a new one, up to a limit.
        ray.method(max_task_retries=-1)(RayWorker.begin)
        self._actor = ray.remote(**needs, max_restarts=1, max_task_retries=0)(RayWorker)
        self._arguments = (ray.put(spec), ray.put(tuple(requests)))
        self._actors: dict[int, Any] = {}
        self._of: dict[Any, int] = {}
        self._begun: set[int] = set()

    def launch(self, worker: int) -> Any:
        """Ask an actor to begin: a new one, or the one that Ray starts again."""
        if worker not in self._actors:
            self._actors[worker] = self._actor.remote()
        return self._remember(worker, self._actors[worker].begin.remote(*self._arguments))

    def send(self, worker: int, task: Task | None, ahead: Sequence[str]) -> Any:
        """Hand a task over."""
        return self._remember(worker, self._actors[worker].work.remote(task, tuple(ahead)))

    def _remember(self, worker: int, handle: Any) -> Any:
        self._of[handle] = worker
        return handle

    def poll(self, handles: Sequence[Any], seconds: float) -> Iterable[Any]:
        """Wait for the first."""
        done, _ = self._ray.wait(list(handles), num_returns=1, timeout=seconds)
        answers: list[Any] = done
        return answers

    def result(self, handle: Any) -> Any:
        """Return the result."""
        errors = self._ray.exceptions
        worker = self._of.pop(handle)
        self._begun.discard(worker)
        try:
            answer = self._ray.get(handle)
        except errors.ActorUnavailableError as error:
            raise WorkerGoneError(f"its actor is being started again: {first_line(error)}") from error
        except errors.RayActorError as error:
            self._actors.pop(worker, None)  # for good; the next one is new
            raise WorkerGoneError(f"its actor died: {first_line(error)}") from error
        except errors.RayTaskError as error:
            cause = error.cause if isinstance(error.cause, Exception) else error
            raise cause from error
        except (errors.NodeDiedError, errors.WorkerCrashedError, errors.ObjectLostError) as error:
            raise WorkerGoneError(f"its node is gone: {first_line(error)}") from error
        else:
            self._begun.add(worker)
            return answer

    def close(self, *, at_once: bool = False) -> None:
        """End the actors, and Ray where it was started here."""
        tidying = [] if at_once else [self._actors[worker].end.remote() for worker in self._begun]
        if tidying:
            self._ray.wait(tidying, num_returns=len(tidying), timeout=_END_SECONDS)
        for actor in self._actors.values():
            self._ray.kill(actor)
        self._actors.clear()
        if self._ours:
            self._ray.shutdown()
