"""One worker: a warm pipeline, its adapters, and pictures on disk; the same code in every engine."""

from __future__ import annotations

import os
import time
import traceback
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from lora_mixer.batches.storage import Storage
from lora_mixer.errors import LoraMixerError, SaveError
from lora_mixer.problem import Surface

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_mixer.batches.cache import AdapterPlace
    from lora_mixer.batches.expansion import PlannedPicture
    from lora_mixer.batches.order import Task
    from lora_mixer.batches.plan import RunOptions
    from lora_mixer.pictures import ModelOptions, Picture, PictureRequest

_SHARE_OF_FREE = 0.8
_BATCH_AT_MOST = 64
_SAVERS = 2
_PATIENCE = 0.01
"""The share of a task's time that is waited for its own pictures to be written."""


@dataclass(frozen=True)
class WorkSpec:
    """
    What a worker has to know, all of it plain values.

    Attributes:
        model: The pipeline, and how it is loaded.
        adapters: Where adapters are.
        run: How pictures are made.
        folder: Where they go.
        quality: Of JPEG and WebP.
        device: The worker's own device; ``auto`` is the model's.
    """

    model: ModelOptions
    adapters: Mapping[str, AdapterPlace]
    run: RunOptions
    folder: str
    quality: int | None
    device: str = "auto"


@dataclass(frozen=True)
class Outcome:
    """
    What came of one picture.

    Attributes:
        picture: What was asked for.
        sha256: Of its file; empty where it could not be made.
        width: As made.
        height: As made.
        seconds: Its share of the pipeline call.
        error: Why it could not be made, in a sentence.
        fatal: Whether nothing else can be made either: the disk is full, say.
        file: What could not be written, where it is fatal; the sentence is without it.
    """

    picture: PlannedPicture
    sha256: str = ""
    width: int = 0
    height: int = 0
    seconds: float = 0.0
    error: str = ""
    fatal: bool = False
    file: str | None = None


@dataclass(frozen=True)
class Reply:
    """
    What a worker gives back.

    Attributes:
        outcomes: What came of pictures since the last reply: of this task, and of those before.
        resident: The adapters that it has in memory now.
        seconds: The time that all of it took.
        memory: Bytes that the process has in memory.
    """

    outcomes: tuple[Outcome, ...]
    resident: tuple[str, ...] = ()
    seconds: float = 0.0
    memory: int = 0


@dataclass
class _Process:
    """What a worker changes in its process, to put it back where the process is the caller's own."""

    threads: int = 0
    deterministic: bool = False
    flags: dict[str, Any] = field(default_factory=dict)


class Worker:
    """
    Makes pictures.

    Args:
        spec: What it has to know.

    Raises:
        LoraMixerError: When the pipeline cannot be loaded here.
    """

    def __init__(self, spec: WorkSpec) -> None:
        """Load the pipeline."""
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before CUDA starts; strict needs it
        import torch

        from lora_mixer.batches.cache import AdapterCache
        from lora_mixer.mixer import LoraMixer
        from lora_mixer.pictures import PictureMaker, load_pipeline

        self.spec = spec
        self._before = _Process(torch.get_num_threads(), torch.are_deterministic_algorithms_enabled())
        torch.set_num_threads(spec.run.threads)
        if spec.run.strict:
            torch.use_deterministic_algorithms(True)
            torch.backends.cudnn.benchmark = False
            torch.backends.cudnn.allow_tf32 = False
            torch.backends.cuda.matmul.allow_tf32 = False
        pipe = load_pipeline(spec.model if spec.device == "auto" else replace(spec.model, device=spec.device))
        self.mixer = LoraMixer(pipe, keep_base=spec.run.keep_base)
        self.cache = AdapterCache(self.mixer, spec.adapters, spec.run.cache_adapters, spec.run.cache_gb * 1e9)
        self.maker = PictureMaker(self.mixer, batch_size=_BATCH_AT_MOST, smaller="same_pixels")
        self.storage = Storage(spec.folder)
        self._saver = ThreadPoolExecutor(_SAVERS, "save")
        self._saving: list[Future[Outcome]] = []

    @property
    def is_on_gpu(self) -> bool:
        """Whether its pipeline is on an accelerator."""
        return str(self.mixer.pipe.device.type) != "cpu"

    def batch_size(self, requests: Sequence[PictureRequest]) -> int:
        """
        Find how many pictures of these kinds fit into memory at once.

        Args:
            requests: One of each shape.
        """
        if self.spec.run.strict:
            return 1
        wanted = self.spec.run.batch_size
        if wanted != "auto":
            return wanted
        # On a CPU a batch takes as long as its pictures one by one (docs/batches.md).
        return min((self._fits(request) for request in requests), default=1) if self.is_on_gpu else 1

    def _fits(self, request: PictureRequest) -> int:
        """Measure what one picture more takes, and divide the free memory by it."""
        import torch

        if self.mixer.pipe.device.type != "cuda":
            return 1
        from lora_mixer.mixes import Mix

        peaks = []
        for count in (1, 2):
            torch.cuda.reset_peak_memory_stats()
            trial = replace(request, steps=1, mix=Mix(), negative_mix=None)
            list(self.maker.make([trial] * count))
            peaks.append(torch.cuda.max_memory_allocated())
        torch.cuda.empty_cache()
        free = torch.cuda.mem_get_info()[0] * _SHARE_OF_FREE
        each = max(peaks[1] - peaks[0], 1)
        return max(1, min(_BATCH_AT_MOST, int(free // each)))

    def work(self, task: Task | None, ahead: Sequence[str] = ()) -> Reply:
        """
        Make the pictures of a task; what goes wrong with one is told, not raised.

        Pictures are written while the next ones are made: what is not on the disk soon is told in a later reply.

        Args:
            task: What to make; None only waits until all is written.
            ahead: The adapters that will be needed next.
        """
        start = time.perf_counter()
        before, self._saving = self._saving, []
        failed: list[Outcome] = []
        made: set[int] = set()
        if task is not None:
            try:
                self.cache.want(task.adapters)
                self.cache.expect(ahead)
                self._make(task, made)
            except Exception as error:  # noqa: BLE001 -- one picture's failure costs that picture
                failed = [_failed(x, error) for number, x in enumerate(task.pictures) if number not in made]
        outcomes = [future.result() for future in before]
        wait(self._saving, _PATIENCE * (time.perf_counter() - start))
        outcomes += [future.result() for future in self._saving if future.done()]
        self._saving = [future for future in self._saving if not future.done()]
        seconds = time.perf_counter() - start
        return Reply((*outcomes, *failed), self.cache.resident, seconds, memory_in_use())

    def _make(self, task: Task, done: set[int]) -> None:
        """Make pictures and have them written; ``done`` tells which, also where this raises."""
        requests = [picture.request for picture in task.pictures]
        mixes = {request.mix_key for request in requests}
        mix = requests[0].mix
        if requests[0].negative_mix is None and len(mixes) == 1 and mix != self.mixer.mix:
            self.mixer.set_mix(mix)  # stays in effect, so that the next picture of this mix rewrites nothing
        elif len(mixes) > 1:
            self.mixer.set_mix({})
        for made in self.maker.make(requests):
            hashes = self.cache.hashes(made.request.adapters)
            self._saving.append(self._saver.submit(self._saved, task.pictures[made.index], made, hashes))
            done.add(made.index)

    def _saved(
        self, planned: PlannedPicture, made: Picture, hashes: Mapping[str, Mapping[str, str]]
    ) -> Outcome:
        from lora_mixer.picture_metadata import PictureSettings

        settings = PictureSettings.of_request(made.request, model=self.spec.model.title)
        try:
            digest = self.storage.save(planned.file, made.image, settings, hashes, self.spec.quality)
        except SaveError as error:
            return _failed(planned, error, fatal=isinstance(error.__cause__, OSError))
        except Exception as error:  # noqa: BLE001 -- it costs this picture
            return _failed(planned, error)
        return Outcome(planned, digest, made.image.width, made.image.height, made.seconds)

    def close(self) -> None:
        """Give the base back, and leave the process as it was found."""
        import torch

        self._saver.shutdown(wait=True)
        self.cache.close()
        self.mixer.unload_lora_weights()
        torch.set_num_threads(self._before.threads)
        torch.use_deterministic_algorithms(self._before.deterministic)


def _failed(picture: PlannedPicture, error: BaseException, *, fatal: bool = False) -> Outcome:
    file = error.file if fatal and isinstance(error, LoraMixerError) else None
    if isinstance(error, LoraMixerError):
        reason = error.reason_on(Surface.PLAN) if file else error.text_on(Surface.PLAN)
    else:
        last = traceback.extract_tb(error.__traceback__)[-1:]
        place = f" ({os.path.basename(last[0].filename)}, line {last[0].lineno})" if last else ""  # noqa: PTH119
        reason = f"{type(error).__name__}: {error}{place}"
    return Outcome(picture, error=" ".join(reason.split())[:2000], fatal=fatal, file=file)


def memory_in_use() -> int:
    """Return the bytes of memory that this process has now; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm", encoding="ascii") as stream:  # noqa: PTH123 -- at each picture
            return int(stream.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return 0
