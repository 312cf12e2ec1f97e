"""Where the workers of a batch run: a row for each engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_mixer.batches.in_process import InProcess
from lora_mixer.batches.on_ray import RayActors
from lora_mixer.batches.processes import Processes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lora_mixer.batches.worker import WorkSpec
    from lora_mixer.batches.worker_pool import Backend
    from lora_mixer.pictures import PictureRequest


@dataclass(frozen=True)
class WorkerEngine:
    """
    An engine of batches.

    Attributes:
        name: What ``run_plan(engine=...)`` and ``--engine`` call it.
        summary: Where its workers run, as the help has it.
        start: Makes its workers of what they have to know, one request of each shape, how many are wanted (None: as many as the
            machine has room for) and the address of a cluster (None: this machine's); nothing of torch is imported before.

    Example:
        >>> WORKER_ENGINES["local"].summary
        'this process'
    """

    name: str
    summary: str
    start: Callable[[WorkSpec, Sequence[PictureRequest], int | None, str | None], Backend]


WORKER_ENGINES: dict[str, WorkerEngine] = {
    row.name: row
    for row in (
        WorkerEngine("local", "this process", lambda spec, shapes, *_: InProcess(spec, shapes)),
        WorkerEngine(
            "processes",
            "processes of this machine, one for each GPU",
            lambda spec, shapes, workers, _: Processes(spec, shapes, workers),
        ),
        WorkerEngine("ray", "a Ray cluster", RayActors),
    )
}
"""All engines of batches, by name."""
