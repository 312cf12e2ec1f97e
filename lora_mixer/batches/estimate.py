"""What a plan will take, before it runs: its pictures, adapters and order from the plan, time and memory from a trial."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from itertools import groupby
from statistics import median
from typing import TYPE_CHECKING, Any

from lora_mixer.batches.checking import CheckedPlan, check_plan
from lora_mixer.batches.order import make_tasks
from lora_mixer.batches.worker import memory_in_use
from lora_mixer.mixes import Mix
from lora_mixer.pictures import PictureMaker, load_pipeline

if TYPE_CHECKING:
    from lora_mixer.batches.expansion import PlannedPicture


@dataclass(frozen=True)
class DryRun:
    """
    What a plan will take.

    Attributes:
        pictures: How many.
        jobs: Pictures by job.
        adapters: What each adapter is: source, base, algorithms, ranks, bytes, and in how many pictures it is.
        order: Runs of pictures with the same adapters, as they will be made: names and how many.
        rewrites: How often weights are written.
        loads: How often an adapter is read, by one worker.
        seconds: Expected time of one worker; None where no trial was made.
        memory: Expected bytes of one worker: on its GPU, or of its whole process on a CPU; None as above.

    Example:
        >>> dry_run({"jobs": [{"prompt": "a cat"}]}, trial=False).seconds is None
        True
    """

    pictures: int
    jobs: dict[str, int]
    adapters: dict[str, dict[str, Any]]
    order: list[tuple[tuple[str, ...], int]]
    rewrites: int
    loads: int
    seconds: float | None
    memory: int | None


def dry_run(source: Any, *, trial: bool = True) -> DryRun:
    """
    Check a plan and say what it will take.

    Args:
        source: A file, the values, a plan, or what :func:`check_plan` gave.
        trial: Load the pipeline and make pictures of one and two steps, for time and memory.

    Returns:
        Counts, the order of work and, after a trial, time and memory.

    Raises:
        PlanError: With everything that is wrong.

    Example:
        >>> found = dry_run({"jobs": [{"prompt": "a cat", "repeat": 3}]}, trial=False)
        >>> found.pictures, found.order, found.rewrites
        (3, [((), 3)], 0)
    """
    checked = source if isinstance(source, CheckedPlan) else check_plan(source)
    pictures = checked.pictures
    ordered = [task.pictures[0] for task in make_tasks(pictures, 1, mixed=False)]
    runs = [(names, len(list(group))) for names, group in groupby(ordered, key=_names)]
    mixes = [key for key, _ in groupby(picture.request.mix_key for picture in ordered)]
    empty = sum(1 for names, _ in runs if not names)
    jobs: dict[str, int] = {}
    for picture in pictures:
        jobs[picture.name] = jobs.get(picture.name, 0) + 1
    seconds, memory = _trial(checked) if trial else (None, None)
    return DryRun(
        len(pictures),
        jobs,
        _adapters(checked),
        runs,
        len(mixes) - empty,
        _loads(checked, runs),
        seconds,
        memory,
    )


def _names(picture: PlannedPicture) -> tuple[str, ...]:
    return tuple(sorted(picture.request.adapters))


def _adapters(checked: CheckedPlan) -> dict[str, dict[str, Any]]:
    uses = dict.fromkeys(checked.infos, 0)
    for picture in checked.pictures:
        for name in picture.request.adapters:
            uses[name] += 1
    return {
        name: {
            "source": checked.adapters[name].source,
            "base": info.base,
            "algorithms": list(info.algorithms),
            "ranks": list(info.ranks),
            "bytes": info.bytes,
            "pictures": uses[name],
        }
        for name, info in checked.infos.items()
    }


def _loads(checked: CheckedPlan, runs: list[tuple[tuple[str, ...], int]]) -> int:
    """Play the cache through."""
    run = checked.plan.run
    resident: dict[str, int] = {}
    loads = 0
    for names, _ in runs:
        for name in names:
            if name in resident:
                resident[name] = resident.pop(name)
                continue
            loads += 1
            size = checked.infos[name].bytes
            for old in list(resident):
                full = len(resident) >= run.cache_adapters
                if not full and sum(resident.values()) + size <= run.cache_gb * 1e9:
                    break
                if old not in names:
                    del resident[old]
            resident[name] = size
    return loads


def _trial(checked: CheckedPlan) -> tuple[float, int]:
    """Time one step and what comes with it for each size, with the base alone: merged mixes cost no more."""
    import torch

    from lora_mixer.mixer import LoraMixer

    plan = checked.plan
    threads = torch.get_num_threads()
    torch.set_num_threads(plan.run.threads)
    try:
        pipe = load_pipeline(plan.options)
        maker = PictureMaker(LoraMixer(pipe))
        shapes: dict[tuple[object, ...], list[PlannedPicture]] = {}
        for picture in checked.pictures:
            request = picture.request
            shapes.setdefault((request.width, request.height, request.guidance_scale), []).append(picture)
        total = 0.0
        for pictures in shapes.values():
            base = replace(pictures[0].request, mix=Mix(), negative_mix=None)
            list(maker.make([replace(base, steps=1)]))  # warm
            one, three = (
                median(_timed(maker, replace(base, steps=steps)) for _ in range(2)) for steps in (1, 3)
            )
            step = max(three - one, 0.0) / 2
            for picture in pictures:
                steps = (
                    maker.resolve(replace(picture.request, mix=Mix(), negative_mix=None, prompt="x")).steps
                    or 1
                )
                total += max(one - step, 0.0) + step * steps
        on_gpu = pipe.device.type == "cuda"
        used = torch.cuda.max_memory_allocated() if on_gpu else memory_in_use()
    finally:
        torch.set_num_threads(threads)
    return total, used + _of_adapters(checked, pipe)


def _timed(maker: PictureMaker, request: Any) -> float:
    start = time.perf_counter()
    list(maker.make([request]))
    return time.perf_counter() - start


_KEPT = {"device": 1.0, "auto": 1.0, "patch": 0.125}
"""What bases take beside the weights, in parts of these."""


def _of_adapters(checked: CheckedPlan, pipe: Any) -> int:
    """Count what adapters add: themselves up to the cache's bounds, and a copy of the weights that they touch."""
    run = checked.plan.run
    used = {name for picture in checked.pictures for name in picture.request.adapters}
    sizes = sorted((checked.infos[name].bytes for name in used), reverse=True)[: run.cache_adapters]
    modules = [part for name, part in pipe.components.items() if name in ("unet", "transformer")]
    copies = sum(p.numel() * p.element_size() for module in modules for p in module.parameters())
    kept = copies * _KEPT.get(run.keep_base, 0.0) if used else 0
    return int(min(sum(sizes), run.cache_gb * 1e9) + kept)
