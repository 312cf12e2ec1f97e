"""
Pictures a second of the runner against a plain loop on diffusers + PEFT, what the runner adds, and its memory.

``python -m benchmarks.batch_speed speed --pictures 12``: the demo, three adapters at weights that change at every picture.
``python -m benchmarks.batch_speed memory``: 2,000 pictures and 500 adapters through a cache of 10, on a tiny random
pipeline at one step (what could leak is the same, and it takes minutes).
``python -m benchmarks.batch_speed costs``: what the runner itself does for each picture.
``--model FOLDER --device cuda`` times another pipeline, with adapters named by ``--lora`` (three or more).
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import shutil
import tempfile
import threading
import time
import warnings
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch

from lora_mixer import LoraMixer, demo_adapters
from lora_mixer.batches import check_plan, run_plan
from lora_mixer.batches.cache import AdapterCache
from lora_mixer.batches.manifest import open_manifest
from lora_mixer.batches.order import Task, make_tasks
from lora_mixer.batches.storage import Storage
from lora_mixer.batches.worker import Outcome, Reply
from lora_mixer.pictures import load_pipeline
from tests.batch_plans import make_model, plan_for

if TYPE_CHECKING:
    from collections.abc import Iterator

AT_ONCE = 3
STYLES = ("pixel", "watercolor", "ink", "halftone")  # which diffusers can load, too


def jobs_for(names: list[str], pictures: int) -> list[dict[str, Any]]:
    """Make jobs whose mixes all differ."""
    return [
        {
            "prompt": "a castle on a hill",
            "seed": i,
            "mix": {
                names[(i + j) % len(names)]: round(0.2 + 0.05 * ((i + j) % 7), 3) for j in range(AT_ONCE)
            },
        }
        for i in range(pictures)
    ]


class Clock:
    """
    Seconds of this process by what they were spent on, measured around methods.

    They are of CPU, where what other threads do counts as well; on a GPU they are of wall time, and what other threads do
    meanwhile is told apart.
    """

    def __init__(self, device: str) -> None:
        """Start at nothing."""
        self.on_cpu = device == "cpu"
        self.now = time.process_time if self.on_cpu else time.perf_counter
        self.kind = "CPU" if self.on_cpu else "wall time"
        self.seconds: Counter[str] = Counter()
        self.beside: Counter[str] = Counter()
        self.start = self.end = self.now()

    @contextmanager
    def around(self, **places: tuple[Any, str]) -> Iterator[None]:
        """Measure calls of the methods named, by what to call them."""
        with ExitStack() as stack:
            for label, (owner, name) in places.items():
                stack.enter_context(mock.patch.object(owner, name, self._timed(label, getattr(owner, name))))
            yield

    def _timed(self, label: str, call: Any) -> Any:
        @functools.wraps(call)
        def wrapper(*arguments: Any, **more: Any) -> Any:
            alone = torch.get_num_threads() == 1 or threading.current_thread() is not threading.main_thread()
            now = time.thread_time if self.on_cpu and alone else self.now
            meanwhile = not self.on_cpu and threading.current_thread() is not threading.main_thread()
            start = now()
            try:
                return call(*arguments, **more)
            finally:
                (self.beside if meanwhile else self.seconds)[label] += now() - start

        return wrapper

    def told(self, pictures: int, rest: str) -> str:
        """Say what a picture took, and the share of each part."""
        total = self.end - self.start
        left = total - sum(self.seconds.values())
        shares = {**self.seconds, rest: left}
        return (
            f"{1e3 * total / pictures:.1f} ms of {self.kind}: "
            + ", ".join(
                f"{label} {1e3 * seconds / pictures:.1f} ms ({100 * seconds / total:.2f} %)"
                for label, seconds in shares.items()
            )
            + "".join(f", meanwhile {x} {1e3 * s / pictures:.1f} ms" for x, s in self.beside.items())
        )


def peer_loop(
    pipe: Any, jobs: list[dict[str, Any]], steps: int, guidance: float, out: Path
) -> tuple[float, Clock]:
    """Do the same with set_adapters and plain calls, saved as PNG; seconds without loading, and what they went on."""
    clock = Clock(str(pipe.device.type))
    with clock.around(pipeline=(type(pipe), "__call__"), mix=(pipe, "set_adapters")):
        start = time.perf_counter()
        for job in jobs:
            pipe.set_adapters(list(job["mix"]), list(job["mix"].values()))
            generator = torch.Generator("cpu").manual_seed(job["seed"])
            image = pipe(
                job["prompt"], num_inference_steps=steps, guidance_scale=guidance, generator=generator
            ).images[0]
            image.save(out / f"{job['seed']}.png")
        clock.end = clock.now()
        return time.perf_counter() - start, clock


def runner(plan: dict[str, Any], engine: str, workers: int) -> tuple[float, Clock]:
    """Run a plan; seconds from when all workers are ready, and what those of this process went on."""
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    clock, ready = Clock(plan["run"]["device"]), []

    def on_event(event: dict[str, Any]) -> None:
        if event.get("state") == "ready":
            ready.append(time.perf_counter())
            clock.start = clock.now()

    kind = StableDiffusionPipeline if plan["model"] == "demo" else StableDiffusionXLPipeline
    with clock.around(
        pipeline=(kind, "__call__"),
        mix=(LoraMixer, "set_mix"),
        loading=(AdapterCache, "want"),
        saving=(Storage, "save"),
    ):
        end = 0.0
        for result in run_plan(plan, engine=engine, workers=workers, on_event=on_event):  # type: ignore[arg-type]
            if result.status == "failed":
                raise RuntimeError(result.error)
            end = time.perf_counter()
            clock.end = clock.now()
    return end - min(ready), clock


def speed(options: argparse.Namespace) -> None:
    """Time both sides over the same jobs, with one thread and with as many as torch takes."""
    files = {Path(x).stem: x for x in options.lora or ()} or {
        name: str(demo_adapters()[name].path) for name in STYLES
    }
    jobs = jobs_for(list(files), options.pictures)
    steps, guidance = options.steps, 3.0 if options.model == "demo" else 5.0
    all_threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rates: dict[str, float] = {}
        kinds = (
            [("local", 1, 1)]
            if options.device == "cuda"
            else [("local", 1, 1), ("local", 1, all_threads), ("processes", all_threads, 1)]
        )
        for batch in (1, *options.batches):
            for engine, workers, threads in kinds if batch == 1 else kinds[:1]:
                run = {"device": options.device, "threads": threads, "batch_size": batch}
                label = f"runner, {engine}, {workers} x {threads} threads, batches of {batch}"
                plan = {
                    "model": options.model, "adapters": files, "jobs": jobs, "run": run,
                    "defaults": {"steps": steps, "guidance_scale": guidance}, "output": {"folder": str(folder / label)},
                }  # fmt: skip
                seconds, clock = runner(plan, engine, workers)
                rates[label] = len(jobs) / seconds
                print(f"{label}: {rates[label]:.3f} pictures/s", flush=True)
                if engine == "local":
                    print(f"  {clock.told(len(jobs), 'the runner itself')}", flush=True)
        pipe = load_pipeline(options.model, device=options.device)
        pipe.set_progress_bar_config(disable=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for adapter, path in files.items():
                pipe.load_lora_weights(path, adapter_name=adapter)
        for threads in (1,) if options.device == "cuda" else dict.fromkeys((1, all_threads)):
            torch.set_num_threads(threads)
            peer_loop(pipe, jobs[:1], 2, guidance, folder)
            seconds, clock = peer_loop(pipe, jobs, steps, guidance, folder)
            rate = len(jobs) / seconds
            print(f"diffusers + PEFT, {threads} threads: {rate:.3f} pictures/s", flush=True)
            print(f"  {clock.told(len(jobs), 'saving')}", flush=True)
            for label, ours in rates.items():
                print(f"  {label}: {ours / rate:.2f} times")


def memory(pictures: int, adapters: int, cache: int) -> None:
    """Stream adapters through a small cache, and print what the process has in memory."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder)
        (folder / "loras").mkdir()
        for i in range(adapters):
            shutil.copy(folder / f"{'abc'[i % 3]}.safetensors", folder / "loras" / f"s{i:03}.safetensors")
        each = pictures // adapters
        jobs = [{"mix": f"s{i:03}:0.7", "repeat": each} for i in range(adapters)]
        plan = plan_for(
            folder,
            folder / "out",
            jobs,
            run={"cache_adapters": cache},
            adapter_folders=[str(folder / "loras")],
        )
        plan["defaults"]["steps"] = 1
        seen: list[int] = []
        start = time.perf_counter()
        for _ in run_plan(
            plan, on_event=lambda e: seen.append(e["memory"]) if e["event"] == "picture" else None
        ):
            if len(seen) % (pictures // 10) == 0:
                print(
                    f"{len(seen)} pictures, {seen[-1] / 1e6:.1f} MB, {time.perf_counter() - start:.0f} s",
                    flush=True,
                )
        tenth = len(seen) // 10
        early, late = sum(seen[tenth : 2 * tenth]) / tenth, sum(seen[-tenth:]) / tenth
        print(f"{len(seen)} pictures, {adapters} adapters through a cache of {cache}: second tenth {early / 1e6:.1f} MB, "
              f"last tenth {late / 1e6:.1f} MB, {(late - early) / (8 * tenth):.0f} bytes a picture")  # fmt: skip


def _echo(task: Task, ahead: tuple[str, ...]) -> Reply:
    return Reply(tuple(Outcome(picture, sha256="0" * 64) for picture in task.pictures), ahead)


def costs(count: int = 2000) -> None:
    """Time what the runner itself does for each picture: writing the plan out, dispatch, the record."""
    with tempfile.TemporaryDirectory() as name:
        start = time.perf_counter()
        checked = check_plan(
            {"adapters": {"ink": "demo:ink"}, "jobs": [{"prompt": "x", "mix": "ink:1", "repeat": count}]}
        )
        print(f"checking and writing out {count} pictures: {(time.perf_counter() - start) * 1e3:.0f} ms")
        tasks = make_tasks(checked.pictures, 1, mixed=False)
        for suffix in ("jsonl", "sqlite"):
            manifest = open_manifest(Path(name) / f"m.{suffix}")
            start = time.perf_counter()
            for picture in checked.pictures:
                manifest.add(
                    {
                        "file": picture.file,
                        "index": picture.index,
                        "key": checked.key(picture),
                        "x": "x" * 400,
                    }
                )
            print(f"record, {suffix}: {(time.perf_counter() - start) / count * 1e3:.3f} ms")
            manifest.close()
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            pool.submit(_echo, tasks[0], ()).result()
            start = time.perf_counter()
            for task in tasks:
                pool.submit(_echo, task, ("ink",)).result()
            print(f"task to a process and back: {(time.perf_counter() - start) / count * 1e3:.3f} ms")
        print(f"task to an actor of Ray and back: {_ray_seconds(tasks) / count * 1e3:.3f} ms")


class _Echo:
    def work(self, task: Task, ahead: tuple[str, ...]) -> Reply:
        return _echo(task, ahead)


def _ray_seconds(tasks: list[Task]) -> float:
    import ray

    ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        actor = ray.remote(num_cpus=1)(_Echo).remote()
        ray.get(actor.work.remote(tasks[0], ()))
        start = time.perf_counter()
        for task in tasks:
            ray.get(actor.work.remote(task, ("ink",)))
        return time.perf_counter() - start
    finally:
        ray.shutdown()


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("what", choices=("speed", "memory", "costs"))
    parser.add_argument("--pictures", type=int, default=None)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--lora", action="append", help="A file; give three or more.")
    parser.add_argument("--batches", type=int, nargs="*", default=[], help="Further batch sizes to time.")
    parser.add_argument("--adapters", type=int, default=500)
    parser.add_argument("--cache", type=int, default=10)
    options = parser.parse_args()
    if options.what == "memory":
        memory(options.pictures or 2000, options.adapters, options.cache)
    elif options.what == "costs":
        costs()
    else:
        options.pictures = options.pictures or 12
        speed(options)


if __name__ == "__main__":
    main()
