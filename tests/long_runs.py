"""
Long runs: a page with people coming and going, and batches whose workers are killed; memory, handles, threads and files stay flat.

``python -m tests.long_runs page --pictures 2000`` makes a day's pictures of eight sessions at once, some of which leave in the
middle, while adapters come to the library and go; ``python -m tests.long_runs batch --engine ray --rounds 50`` runs a plan again
and again and kills a worker at random in each. Both print what they measured; the exit code says whether it was flat.
``python -m tests.long_runs calls --calls 5801`` calls one mixer from many threads and compares each picture with that of a single one.
``python -m tests.long_runs kills --rounds 20`` kills runners and workers of batches at any moment, and runs each plan to its end.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import itertools
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import torch

from lora_mixer import LoraMixer, demo_adapters
from lora_mixer.batches import run_plan
from tests.batch_plans import GRID, hashes, make_model, plan_for, statuses
from tests.browser import serving
from tests.models import tiny_sd
from tests.small_pipe import pairs_for, written

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SESSIONS = 8
LEAVES = 0.1
"""The share of pictures whose session goes away before they are there."""


@dataclass(frozen=True)
class Sample:
    """
    What a process holds at one time.

    Attributes:
        mib: Resident memory.
        handles: Open files and sockets.
        threads: Threads.
        temporary: Files in temporary folders.
    """

    mib: float
    handles: int
    threads: int
    temporary: int

    def __str__(self) -> str:
        """Lay it out."""
        return f"{self.mib:8.1f} MiB  {self.handles:4} handles  {self.threads:4} threads  {self.temporary:4} files"


MORE = Sample(mib=48.0, handles=6, threads=6, temporary=6)
"""What may come to be beside what is held already: pools, caches of a fixed size, a call that is just under way."""


def sample(*folders: Path) -> Sample:
    """Look at this process, and count the files in some folders."""
    gc.collect()
    status = Path("/proc/self/status").read_text().split("VmRSS:")[1]
    count = sum(1 for folder in folders for path in folder.rglob("*") if path.is_file())
    return Sample(
        int(status.split()[0]) / 1024,
        len(list(Path("/proc/self/fd").iterdir())),
        threading.active_count(),
        count,
    )


def growth(samples: Sequence[Sample]) -> Sample:
    """Tell by how much the last quarter is above the second: the first is what it takes to get warm."""
    quarter = max(1, len(samples) // 4)
    early, late = samples[quarter : 2 * quarter] or samples[:1], samples[-quarter:]
    return Sample(
        *(
            statistics.median(b) - statistics.median(a)
            for a, b in zip(
                zip(*map(astuple, early), strict=True), zip(*map(astuple, late), strict=True), strict=True
            )
        )
    )


def grown(samples: Sequence[Sample]) -> list[str]:
    """Name what has grown by more than :data:`MORE`."""
    found = growth(samples)
    return [
        f"{each.name} by {getattr(found, each.name):.1f}"
        for each in fields(Sample)
        if getattr(found, each.name) > getattr(MORE, each.name)
    ]


class Person:
    """A session of the page, without a browser."""

    def __init__(self, url: str, number: int, make: int) -> None:
        self.url, self.make, self.name = url, make, f"person{number}-{time.monotonic_ns()}"

    def picture(self, seed: int, *, leave: bool) -> str:
        """Ask for a picture and wait until it is there, or leave before."""
        data = ["a castle", "ink:0.5", seed, 2, 3.0, 64, 64, "", 1, "", "", 0]
        body = {"fn_index": self.make, "data": data, "session_hash": self.name, "trigger_id": 1}
        with httpx.Client(timeout=120) as client:
            client.post(f"{self.url}gradio_api/queue/join", json=body).raise_for_status()
            with client.stream(
                "GET", f"{self.url}gradio_api/queue/data", params={"session_hash": self.name}
            ) as lines:
                for line in lines.iter_lines():
                    if leave:
                        return "left"
                    if "process_completed" in line:
                        return "made" if "pictures/" in line else f"refused: {line[:300]}"
        return "nothing came"


def page(
    pictures: int,
    sessions: int,
    folder: Path,
    seed: int = 0,
    *,
    seconds: float = float("inf"),
    tell: Callable[[str], object] = lambda _: None,
) -> tuple[list[Sample], dict[str, int]]:
    """
    Let people make pictures on one page, while the library changes.

    Returns:
        A sample after every so many pictures, and how often each outcome came.
    """
    dice, samples, came = random.Random(seed), [], dict.fromkeys(("made", "left"), 0)
    end = time.monotonic() + seconds
    cache, library = folder / "cache", folder / "library"
    library.mkdir()
    files = [each.path for each in demo_adapters().values() if Path(each.path).is_file()]
    shutil.copy(next(path for path in files if Path(path).stem == "ink"), library / "ink.safetensors")
    with (
        serving(folder / "out", cache, loras=(library,)) as (url, app),
        ThreadPoolExecutor(sessions) as pool,
    ):
        found = httpx.get(f"{url}config", timeout=60).json()["dependencies"]
        make = next(each["id"] for each in found if each.get("api_name") == "make")
        people = [Person(url, number, make) for number in range(sessions)]
        every = max(sessions, pictures // 40)
        for start in range(0, pictures, sessions):
            if time.monotonic() > end:
                break
            turn = range(min(sessions, pictures - start))
            leaving = [dice.random() < LEAVES for _ in turn]
            for outcome in pool.map(lambda n, go: people[n].picture(start + n, leave=go), turn, leaving):  # noqa: B023
                came[outcome] = came.get(outcome, 0) + 1
            for number, gone in zip(turn, leaving, strict=True):
                if gone or dice.random() < 0.1:  # and somebody else comes
                    people[number] = Person(url, number, make)
            place = library / f"new{start % 7}.safetensors"
            place.unlink(missing_ok=True) if place.exists() else shutil.copy(dice.choice(files), place)
            app.scan(wait=30)
            for old in sorted(app.pictures.glob("*.png"))[:-64]:  # a day's pictures are the disk's matter
                old.unlink(missing_ok=True)
            if start // every != (start + sessions) // every:
                samples.append(sample(cache, folder / "out" / "downloads"))
                tell(f"{start + sessions:5} pictures  {samples[-1]}")
    return samples, came


def batch(
    engine: str,
    rounds: int,
    folder: Path,
    seed: int = 0,
    *,
    seconds: float = float("inf"),
    tell: Callable[[str], object] = lambda _: None,
) -> tuple[list[Sample], dict[str, int]]:
    """
    Run one plan again and again, each time from nothing, and kill a worker in the middle of each.

    Returns:
        A sample after each round, and how many runs there were, how many workers were killed, how many runs made the same.
    """
    dice, samples = random.Random(seed), []
    came = {"runs": 0, "killed": 0, "same": 0, "failed": 0}
    make_model(folder)
    statuses(plan_for(folder, folder / "wanted", [GRID]))
    wanted = hashes(folder / "wanted")
    temporary = folder / "tmp"
    temporary.mkdir()
    end = time.monotonic() + seconds
    for number in range(rounds):
        if time.monotonic() > end:
            break
        out, pids, victim = folder / f"out{number}", {}, dice.randrange(1, 7)
        made = itertools.count(1)

        def on_event(event: dict[str, Any], pids: Any = pids, made: Any = made, victim: int = victim) -> None:
            if event.get("state") == "ready":
                pids[event["worker"]] = event["pid"]
            if event["event"] == "picture" and next(made) == victim:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(dice.choice(sorted(pids.values())), signal.SIGKILL)
                    came["killed"] += 1

        results = list(run_plan(plan_for(folder, out, [GRID]), engine=engine, workers=2, on_event=on_event))
        came["runs"] += 1
        came["failed"] += sum(each.status == "failed" for each in results)
        came["same"] += hashes(out) == wanted
        shutil.rmtree(out)
        samples.append(sample(temporary))
        tell(f"{number + 1:5} rounds  {samples[-1]}  {came}")
    return samples, came


ROOT = Path(__file__).resolve().parent.parent
ENGINES = (("local", 1), ("processes", 2))


def kills(rounds: int, folder: Path, seed: int = 0) -> dict[str, int]:
    """
    Kill the runner of a plan, or one of its workers, at any moment, then run the plan to its end.

    Returns:
        How many were killed of each kind, and how often something was wrong: other pictures than without a kill, a process or a
        file left behind, a picture that failed, one that was made twice.
    """
    dice = random.Random(seed)
    came = dict.fromkeys(("runs", "same", "runner", "worker", "before any picture", "at the end"), 0)
    make_model(folder)
    statuses(plan_for(folder, folder / "wanted", [GRID]))
    wanted = hashes(folder / "wanted")
    for number in range(rounds):
        engine, workers = ENGINES[number % 2]
        kind = "runner" if engine == "local" or dice.random() < 0.5 else "worker"
        out, place = folder / f"out{number}", folder / f"plan{number}.json"
        name = dice.choice(("manifest.jsonl", "manifest.sqlite"))
        plan = plan_for(folder, out, [GRID], output={"manifest": str(out / name)})
        place.write_text(json.dumps(plan))
        pids, made, hit = _killed(place, engine, workers, kind, dice)
        came["runs"] += 1
        came[kind] += hit
        came["before any picture"] += hit and not made
        came["at the end"] += not hit
        alive = [pid for pid in pids if not _ends(pid)]
        counts = statuses(plan)
        odd = [path.name for path in out.rglob("*") if path.suffix == ".tmp" or ".tmp" in path.name]
        problems = {
            "left a process": bool(alive),
            "left a file": bool(odd),
            "failed": bool(counts["failed"]),
            "other pictures": hashes(out) != wanted,
            "made again": counts["kept"] < made - 1,  # the last may have been told and not noted
        }
        for problem, is_so in problems.items():
            if is_so:
                came[problem] = came.get(problem, 0) + 1
        came["same"] += hashes(out) == wanted
        print(f"{number:3} {engine:9} {name:16} {kind} killed after {made} pictures: {counts}", flush=True)  # noqa: T201
    return came


def _killed(
    place: Path, engine: str, workers: int, kind: str, dice: random.Random
) -> tuple[list[int], int, bool]:
    """Run a plan as a program and kill it, or a worker, at a moment; give its processes, how many pictures it told, whether it lived."""
    command = [sys.executable, "-m", "tests.batch_plans", str(place), engine, str(workers)]
    after, later = dice.randrange(8), dice.random() * 0.2
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as running:
        assert running.stdout is not None
        pids, made, hit = [running.pid], 0, False
        for line in running.stdout:
            event = json.loads(line)
            if event.get("state") == "ready" and "pid" in event:
                pids.append(event["pid"])
            made += event["event"] == "picture"
            if not hit and made >= after and (len(pids) > 1 or engine == "local"):
                time.sleep(later)  # so that it is any moment, also within a picture
                victim = running.pid if kind == "runner" else dice.choice(pids[1:])
                with contextlib.suppress(ProcessLookupError):
                    os.kill(victim, signal.SIGKILL)
                    hit = True
    return (
        list(dict.fromkeys(pids)),
        made,
        hit and (kind == "worker" or running.returncode == -signal.SIGKILL),
    )


def _ends(pid: int, seconds: float = 60.0) -> bool:
    """Whether a process ends by itself in some time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.1)
    return False


MIXES: tuple[dict[str, Any], ...] = (
    {},
    {"neon": 1.0},
    {"ink": 0.6, "neon": -0.4},
    {"ink": {"te": 0.5, "unet": 0.2}, "pixel": 0.7},
    {"neon": {"weight": 0.9, "schedule": "0@0,1@0.5"}},
    {"pixel": {"blocks": {"down": 1.0, "mid": 0.0, "up": 0.3}}},
)
KINDS = ("picture", "load", "switch", "ask")
ADAPTERS = ("neon", "ink", "pixel")


def calls(count: int, threads: int, seed: int, *, seconds: float = float("inf")) -> dict[str, int]:
    """
    Call one mixer from many threads: pictures in blocks of ``applied``, loads, deletions, switches and questions.

    Args:
        count: How many calls there are.
        threads: How many threads make them.
        seed: What is drawn goes by this.
        seconds: When to stop.

    Returns:
        How many were made, by kind; pictures ``unlike`` those of one thread, other ``wrong`` answers, values of the base that ``changed``.
    """
    pipe = tiny_sd()
    mixer = LoraMixer(pipe)
    files = {name: written(pairs_for(pipe, number)) for number, name in enumerate(ADAPTERS)}
    parts = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    base = [value.clone() for part in parts for value in part.state_dict().values()]
    for name, file in files.items():
        mixer.load_lora_weights(file, adapter_name=name)

    def picture(mix: int, noise: int) -> bytes:
        with mixer.applied(MIXES[mix]):
            made = pipe(
                "a castle", num_inference_steps=2, width=16, height=16, generator=torch.Generator().manual_seed(noise)
            )  # fmt: skip
        return bytes(made.images[0].tobytes())

    dice, came, lock = random.Random(seed), dict[str, int](), threading.Lock()
    jobs = [
        (dice.choice(("picture", *KINDS)), (dice.randrange(len(MIXES)), dice.randrange(4)), number)
        for number in range(count)
    ]
    wanted = {which: picture(*which) for which in sorted({each[1] for each in jobs if each[0] == "picture"})}
    assert len(set(wanted.values())) == len(wanted)
    end = time.monotonic() + seconds

    def call(job: tuple[str, tuple[int, int], int]) -> None:
        kind, (mix, noise), number = job
        if time.monotonic() > end:
            return
        right, wrong = True, "wrong"
        if kind == "picture":
            right, wrong = picture(mix, noise) == wanted[mix, noise], "unlike"
        elif kind == "load":
            own = f"own{number}"
            mixer.load_lora_weights(files[ADAPTERS[noise % 3]], adapter_name=own)
            right = own in mixer.adapters
            mixer.delete_adapters(own)
            right = right and own not in mixer.adapters
        elif kind == "switch":
            mixer.disable_lora() if noise == 0 else mixer.set_mix(MIXES[mix])
        else:
            right = set(ADAPTERS) <= set(mixer.adapters) and mixer.memory() is not None
        with lock:
            came[kind] = came.get(kind, 0) + 1
            if not right:
                came[wrong] = came.get(wrong, 0) + 1

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(call, jobs))
    mixer.unload_lora_weights()
    after = [value for part in parts for value in part.state_dict().values()]
    changed = sum(not torch.equal(a, b) for a, b in zip(base, after, strict=True))
    return came | ({"changed": changed} if changed else {})


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("page", "batch", "kills", "calls"))
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--sessions", type=int, default=SESSIONS)
    parser.add_argument("--engine", choices=("processes", "ray"), default="ray")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--calls", type=int, default=5801)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="when to stop")
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")
    if chosen.what == "calls":
        came = calls(chosen.calls, chosen.threads, chosen.seed, seconds=chosen.seconds)
        print(json.dumps({"calls": sum(came.get(kind, 0) for kind in KINDS), **came}))  # noqa: T201
        sys.exit(bool(set(came) - set(KINDS)))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        if chosen.what == "kills":
            came = kills(chosen.rounds, folder, chosen.seed)
            print(json.dumps(came))  # noqa: T201
            fine = {"runs", "same", "runner", "worker", "before any picture", "at the end"}
            sys.exit(came["runs"] != came["same"] or bool(set(came) - fine))
        if chosen.what == "page":
            samples, came = page(
                chosen.pictures, chosen.sessions, folder, chosen.seed, seconds=chosen.seconds, tell=_say
            )
        else:
            if chosen.engine == "ray":
                import ray

                ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
            os.environ["TMPDIR"] = str(folder / "tmp")
            samples, came = batch(
                chosen.engine, chosen.rounds, folder, chosen.seed, seconds=chosen.seconds, tell=_say
            )
    print(json.dumps(came))  # noqa: T201
    wrong = grown(samples)
    print("grown: " + ", ".join(wrong) if wrong else f"flat: {growth(samples)}")  # noqa: T201
    odd = came.get("runs", 0) != came.get("same", 0) or came.get("failed") or set(came) - {
        "made", "left", "runs", "same", "killed", "failed"
    }  # fmt: skip
    sys.exit(bool(wrong or odd))


if __name__ == "__main__":
    main()
