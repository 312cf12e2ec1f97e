"""A plan is carried out: what is there is kept, the rest is handed to workers, and everything that comes back is recorded."""

from __future__ import annotations

import io
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Literal

from lora_mixer import __version__
from lora_mixer.batches.checking import CheckedPlan, check_plan
from lora_mixer.batches.engines import WORKER_ENGINES
from lora_mixer.batches.manifest import BEGUN, SHEET, open_manifest
from lora_mixer.batches.order import Task, TaskQueue, make_tasks
from lora_mixer.batches.sheets import make_sheets, sheet_names
from lora_mixer.batches.storage import Storage
from lora_mixer.batches.worker import Outcome, Reply, WorkSpec
from lora_mixer.batches.worker_pool import Event, Ready, WorkerGoneError, WorkerPool
from lora_mixer.errors import PlanError, SaveError
from lora_mixer.problem import Problem, Remedy
from lora_mixer.wording import first_of, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from PIL.Image import Image

    from lora_mixer.batches.expansion import PlannedPicture
    from lora_mixer.batches.manifest import Manifest, Record
    from lora_mixer.batches.worker_pool import Backend
    from lora_mixer.pictures import PictureRequest

LOSSES_AT_MOST = 5
"""How many workers a picture may cost before it counts as one that cannot be made."""
_LOOK_SECONDS = 0.5  # how often a run that waits looks whether it shall stop


_WAYS_OUT = (
    "Choose another folder (output.folder), move them away, or say that they may go (output.replace: true)"
)


@dataclass(frozen=True)
class BatchResult:
    """
    What came of one picture of a plan.

    Attributes:
        index: Its place in the plan.
        job: Its job's number.
        file: Its file, in full.
        status: ``done``, ``kept`` (it was there already) or ``failed``.
        request: What was asked for.
        sha256: Of the file; empty where it failed.
        seconds: Its share of the pipeline call.
        attempts: How often it was tried in this run.
        error: Why it failed.

    Example:
        >>> from lora_mixer import PictureRequest
        >>> result = BatchResult(0, 0, "pictures/0.png", "failed", PictureRequest("a cat"), error="out of memory")
        >>> try:
        ...     result.open()
        ... except SaveError as error:
        ...     print(error)
        pictures/0.png: is not there (failed)
    """

    index: int
    job: int
    file: str
    status: Literal["done", "kept", "failed"]
    request: PictureRequest
    sha256: str = ""
    seconds: float = 0.0
    attempts: int = 0
    error: str = ""

    def open(self) -> Image:
        """
        Read the picture from its file.

        Returns:
            The picture (PIL).

        Raises:
            SaveError: When it is not there.
        """
        from PIL import Image

        folder, _, name = self.file.rpartition("/")
        raw = Storage(folder).read(name)
        if raw is None:
            raise SaveError(f"is not there ({self.status})", file=str(self.file))
        return Image.open(io.BytesIO(raw))


def run_plan(
    plan: Any,
    *,
    engine: str = "local",
    workers: int | None = None,
    address: str | None = None,
    on_image: Callable[[BatchResult], object] | None = None,
    on_event: Callable[[dict[str, Any]], object] | None = None,
    stop: Callable[[], bool] | None = None,
) -> Iterator[BatchResult]:
    """
    Make the pictures of a plan; what an earlier run made is kept after its hash is checked.

    The plan is checked as a whole at once; pictures are made while the results are taken.

    Args:
        plan: A file, the values, a plan, or what :func:`check_plan` gave.
        engine: One of :data:`~lora_mixer.batches.WORKER_ENGINES`: ``local`` is this process; ``processes`` one process per GPU, or
            per ``threads`` cores; ``ray`` a cluster.
        workers: How many; None is one per GPU, or as many as the cores allow.
        address: Of the Ray cluster; None is the one that runs on this machine, or a new one, and ``local`` always a new one.
        on_image: Called with each picture that was made.
        on_event: Called with a dict at each thing that happens: ``start``, ``worker``, ``picture``, ``sheet``, ``end``.
        stop: Asked now and then; once it says so, pictures in hand are finished and no others begun.

    Returns:
        Each picture of the plan once: first those that are kept, then the others as they come.

    Raises:
        PlanError: With everything that is wrong with the plan.
        SaveError: When the disk refuses; what was made is kept, and the next run goes on.
        WorkersError: When the workers cannot be had.

    Example:
        >>> for result in run_plan("plan.yaml", engine="processes"):  # doctest: +SKIP
        ...     print(result.file, result.status)
    """
    if engine not in WORKER_ENGINES:
        raise PlanError(
            f"engine must be one of {', '.join(WORKER_ENGINES)}, got {engine!r}", argument="engine"
        )
    if workers is not None and workers < 1:
        raise PlanError(f"workers must be 1 or more, got {shown(workers)}", argument="workers")
    checked = plan if isinstance(plan, CheckedPlan) else check_plan(plan)
    run = _BatchRun(checked, on_image or _nothing, on_event or _nothing, stop or (lambda: False))
    return run.results(engine, workers, address)


def _nothing(_: Any) -> None:
    """Do nothing with it."""


class _BatchRun:
    def __init__(
        self,
        checked: CheckedPlan,
        on_image: Callable[[BatchResult], object],
        on_event: Callable[[dict[str, Any]], object],
        stop: Callable[[], bool],
    ) -> None:
        self.checked, self.plan = checked, checked.plan
        self.on_image, self.on_event, self.stop = on_image, on_event, stop
        self.storage = Storage(checked.folder)
        self.counts: Counter[str] = Counter()
        self.was_lost = False  # whether any worker was
        self.versions = _versions()

    def results(self, engine: str, workers: int | None, address: str | None) -> Iterator[BatchResult]:
        start = time.perf_counter()
        self.storage.check()
        manifest = open_manifest(self.checked.manifest)
        lock = None
        try:
            lock = self.storage.lock()
            self.storage.remove_stale()
            records = manifest.records()
            kept = self._kept(records)
            self._refuse_foreign(records, {picture.index for picture, _ in kept})
            self._tell("start", pictures=len(self.checked.pictures), kept=len(kept), engine=engine)
            for picture, record in kept:
                self.counts["kept"] += 1
                yield self._result(picture, "kept", sha256=record["sha256"])
            there = {picture.index for picture, _ in kept}
            todo = [picture for picture in self.checked.pictures if picture.index not in there]
            if todo and not self.stop():
                yield from self._make(todo, manifest, engine, workers, address)
            if not self.stop() and not self.counts["failed"]:
                for file in make_sheets(self.checked, self.storage, manifest):
                    self._tell("sheet", file=self.storage.where(file))
            self._tell(
                "end",
                **{status: self.counts[status] for status in ("done", "kept", "failed")},
                left=len(self.checked.pictures) - sum(self.counts.values()),
                seconds=round(time.perf_counter() - start, 3),
            )
        finally:
            if lock is not None:
                lock.release()
            manifest.close()

    def _refuse_foreign(self, records: Mapping[str, Record], kept: set[int]) -> None:
        """
        See that no file is in the way that this plan did not make itself.

        Raises:
            SaveError: With the first of those that would be lost.
        """
        if self.plan.output.replace:
            return
        wanted = {x.file: self.checked.key(x) for x in self.checked.pictures if x.index not in kept}
        sheets = dict.fromkeys(sheet_names(self.checked), SHEET)
        lost = []
        for file in self.storage.there({**wanted, **sheets}):
            record = records.get(file)
            known = record is not None and (
                record.get("status") == SHEET if file in sheets else record.get("key") == wanted[file]
            )
            if not known or self.storage.is_link(file):
                lost.append(file)
        if lost:
            raise SaveError(
                f"{len(lost)} files in it are of another plan or of an earlier form of this one, and would be lost: "
                f"{first_of(lost, 3)}.",
                file=str(self.checked.folder),
                problems=[
                    Problem(name, "is of another plan or of an earlier form of this one") for name in lost
                ],
                remedy=Remedy(_WAYS_OUT, f"{_WAYS_OUT}; the options are --out and --replace"),
            )

    def _begin(self, task: Task, manifest: Manifest) -> None:
        """Note what is going to be made: if the run ends between a picture's file and its record, the file is known."""
        for number, picture in enumerate(task.pictures, 1):
            record = {
                "file": picture.file,
                "index": picture.index,
                "status": BEGUN,
                "key": self.checked.key(picture),
            }
            manifest.add(record, at_once=number == len(task.pictures))

    def _tell(self, event: str, **facts: Any) -> None:
        self.on_event({"event": event, **facts})

    # --- what is there already ---------------------------------------------------------------------------------------

    def _kept(self, records: Mapping[str, Record]) -> list[tuple[PlannedPicture, Record]]:
        hopeful = [
            (picture, record)
            for picture in self.checked.pictures
            if (record := records.get(picture.file)) is not None
            and record.get("status") == "done"
            and record.get("key") == self.checked.key(picture)
        ]
        with ThreadPoolExecutor(4) as pool:
            digests = pool.map(lambda pair: self.storage.digest(pair[0].file), hopeful)
            return [
                pair for pair, digest in zip(hopeful, digests, strict=True) if digest == pair[1].get("sha256")
            ]

    # --- what is to be made --------------------------------------------------------------------------------------------

    def _make(
        self,
        todo: Sequence[PlannedPicture],
        manifest: Manifest,
        engine: str,
        workers: int | None,
        address: str | None,
    ) -> Iterator[BatchResult]:
        backend = self._backend(engine, workers, address, _one_of_each_shape(todo))
        residents: dict[int, tuple[str, ...]] = {}
        queue: TaskQueue | None = None
        at_once = True  # after an error, or when nobody takes results any more, what is in hand would not be recorded
        try:
            pool = WorkerPool(backend)
            while queue is None or len(queue) or pool.working:
                stopping = self.stop()
                if stopping and not pool.working:
                    break
                if queue is not None and not stopping:
                    self._hand_out(queue, pool, residents, manifest)
                pool.ask_the_idle()
                for event in pool.wait(_LOOK_SECONDS):
                    if queue is None and isinstance(event.result, Ready):
                        queue = self._queue(todo, event.result)
                    self._tell_of_worker(event)
                    if queue is not None:
                        yield from self._take(event, queue, residents, manifest)
            at_once = False
        finally:
            backend.close(at_once=at_once)
            if self.was_lost:
                self.storage.remove_stale()  # what a worker was writing when it was lost; nobody writes any more

    def _hand_out(
        self, queue: TaskQueue, pool: WorkerPool, residents: Mapping[int, tuple[str, ...]], manifest: Manifest
    ) -> None:
        for worker in pool.idle:
            resident = residents.get(worker, ())
            task = queue.take(worker, resident)
            if task is None:
                return
            self._begin(task, manifest)
            pool.submit(worker, task, queue.peek(worker, resident))

    def _tell_of_worker(self, event: Event) -> None:
        if isinstance(event.result, Ready):
            self._tell("worker", worker=event.worker, state="ready", pid=event.result.pid)
        elif isinstance(event.result, WorkerGoneError):
            self.was_lost = True
            self._tell("worker", worker=event.worker, state="lost", reason=str(event.result))

    def _take(
        self, event: Event, queue: TaskQueue, residents: dict[int, tuple[str, ...]], manifest: Manifest
    ) -> Iterator[BatchResult]:
        if isinstance(event.result, WorkerGoneError):
            residents.pop(event.worker, None)
            queue.leave(event.worker)
            for task in event.lost:
                yield from self._after_loss(task, str(event.result), queue, manifest)
        elif isinstance(event.result, Reply):
            residents[event.worker] = event.result.resident
            extra = {"worker": event.worker, "memory": event.result.memory}
            for task, outcome in event.outcomes:
                yield from self._after(outcome, task, queue, manifest, extra)

    def _backend(
        self, engine: str, workers: int | None, address: str | None, shapes: Sequence[PictureRequest]
    ) -> Backend:
        plan = self.plan
        spec = WorkSpec(
            plan.options,
            self.checked.adapters,
            plan.run,
            self.checked.folder,
            plan.output.quality,
            plan.run.device,
        )
        return WORKER_ENGINES[engine].start(spec, shapes, workers, address)

    def _queue(self, todo: Sequence[PlannedPicture], facts: Ready) -> TaskQueue:
        wanted = self.plan.run.mixed_batches
        mixed = wanted == "always" or (wanted == "auto" and facts.is_on_gpu)
        return TaskQueue(make_tasks(todo, facts.batch_size, mixed=mixed))

    # --- what came back ------------------------------------------------------------------------------------------------

    def _after(
        self, outcome: Outcome, task: Task, queue: TaskQueue, manifest: Manifest, extra: Mapping[str, Any]
    ) -> Iterator[BatchResult]:
        if outcome.fatal:
            raise SaveError(
                f"{outcome.error}; {self.counts['done']} pictures were made, and the same command goes on from here",
                file=outcome.file,
            )
        if not outcome.error:
            yield self._record(outcome, task, manifest, extra)
        elif len(task.pictures) > 1:  # who of them it was shows when each is made alone
            for each in task.alone():
                if each.pictures[0].index == outcome.picture.index:
                    queue.put(each)
        elif task.failures < self.plan.run.retries:
            queue.put(task.alone(failures=task.failures + 1)[0])
        else:
            yield self._record(outcome, task, manifest, extra)

    def _after_loss(
        self, task: Task, reason: str, queue: TaskQueue, manifest: Manifest
    ) -> Iterator[BatchResult]:
        for each in task.alone(losses=task.losses + 1):
            if each.losses < LOSSES_AT_MOST:
                queue.put(each)
            else:
                error = f"{LOSSES_AT_MOST} workers were lost over it; the last one: {reason}"
                yield self._record(Outcome(each.pictures[0], error=error), each, manifest, {})

    def _record(
        self, outcome: Outcome, task: Task, manifest: Manifest, extra: Mapping[str, Any]
    ) -> BatchResult:
        picture = outcome.picture
        status: Literal["done", "failed"] = "failed" if outcome.error else "done"
        result = self._result(
            picture,
            status,
            sha256=outcome.sha256,
            seconds=round(outcome.seconds, 4),
            attempts=task.failures + task.losses + 1,
            error=outcome.error,
        )
        request = picture.request
        manifest.add(
            {
                "file": picture.file,
                "index": picture.index,
                "status": status,
                "sha256": outcome.sha256,
                "key": self.checked.key(picture),
                "job": picture.name,
                "seed": request.seed,
                "mix": request.mix.to_text(),
                "fingerprint": request.mix.fingerprint,
                "size": [outcome.width, outcome.height],
                "seconds": result.seconds,
                "attempts": result.attempts,
                **({"error": outcome.error} if outcome.error else {}),
                "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                "versions": self.versions,
            }
        )
        self.counts[status] += 1
        facts = {"index": picture.index, "file": result.file, "status": status, "seconds": result.seconds}
        self._tell("picture", **facts, **({"error": outcome.error} if outcome.error else {}), **extra)
        if status == "done":
            self.on_image(result)
        return result

    def _result(
        self, picture: PlannedPicture, status: Literal["done", "kept", "failed"], **facts: Any
    ) -> BatchResult:
        return BatchResult(
            picture.index, picture.job, self.storage.where(picture.file), status, picture.request, **facts
        )


def _one_of_each_shape(pictures: Sequence[PlannedPicture]) -> tuple[PictureRequest, ...]:
    shapes = {(x.request.width, x.request.height): x.request for x in pictures}
    return tuple(shapes.values())


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    versions = {"lora_mixer": __version__}
    for name in ("torch", "diffusers", "transformers"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions
