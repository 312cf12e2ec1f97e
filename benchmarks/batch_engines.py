"""
The same pictures from every engine, and after every kill.

``python -m benchmarks.batch_engines same --steps 20``: 200 pictures of the demo, with grids and schedules, through this
process, two processes and two Ray actors; their hashes are compared.
``python -m benchmarks.batch_engines kills --count 20 --seed 0``: kill -9 of the runner, a worker process, a Ray actor and
a Ray node in turn, at random moments of a plan of 24 pictures of a tiny pipeline.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from lora_mixer.batches import run_plan
from tests.batch_plans import hashes, make_model, plan_for

Event = dict[str, Any]
KINDS = ("runner", "worker", "actor", "node")


def demo_plan(out: Path, steps: int, threads: int = 1) -> dict[str, Any]:
    """Make the plan of 200 pictures."""
    styles = ("pixel", "watercolor", "neon", "ink", "blueprint", "halftone", "lumo")
    return {
        "adapters": {name: f"demo:{name}" for name in styles},
        "defaults": {"steps": steps},
        "wildcards": {"animal": ["cat", "owl", "fox"]},
        "output": {"folder": str(out)},
        "run": {"threads": threads},
        "jobs": [
            {"prompt": "a castle", "grid": {"mix": [f"{name}:0.8" for name in styles], "seed": "1..10"}},
            {"prompt": "an __animal__", "grid": {"weight ink": [0, 0.5, 1], "weight neon": [0, 0.5, 1], "seed": "1..6"}},
            {"prompt": "a house", "mix": "watercolor:1,schedule=window(0.5, 1), pixel:0.7,schedule=1@0;0@1", "repeat": 26},
            {"prompt": "a boat <lora:lumo:0.5> <lora:halftone:0.4:0.9>", "grid": {"guidance_scale": [1, 3], "seed": "1..25"}},
        ],
    }  # fmt: skip


def same(steps: int) -> bool:
    """Run the plan through three engines."""
    first: dict[str, str] = {}
    right = True
    with tempfile.TemporaryDirectory() as name:
        for engine, workers in (("local", 1), ("processes", 2), ("ray", 2)):
            out = Path(name) / engine
            start = time.perf_counter()
            results = list(run_plan(demo_plan(out, steps), engine=engine, workers=workers))  # type: ignore[arg-type]
            found = hashes(out)
            first = first or found
            right &= found == first and len(found) == 200 and all(x.status == "done" for x in results)
            print(f"{engine}, {workers} workers: {len(found)} pictures in {time.perf_counter() - start:.1f} s, "
                  f"{sum(found[x] == first.get(x) for x in found)} hashes as from the first", flush=True)  # fmt: skip
    return right


def _verdict(out: Path, whole: dict[str, str]) -> str:
    records = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    done = sorted(record["index"] for record in records if record["status"] == "done")
    left = list(out.rglob("*.tmp"))
    if hashes(out) != whole:
        return "other pictures or hashes"
    if done != list(range(len(whole))):
        return f"recorded: {done}"
    return f"left over: {left}" if left else "right"


def _kill_runner(plan: dict[str, Any], folder: Path, rng: random.Random) -> int:
    """Kill the process that runs the plan after some pictures and a moment; then go on here."""
    file = folder / "plan.json"
    file.write_text(json.dumps(plan))
    running = subprocess.Popen(
        [sys.executable, "-m", "tests.batch_plans", str(file), "local", "1"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert running.stdout is not None  # noqa: S101 -- it is piped
    after, made = rng.randrange(24), 0
    for line in running.stdout:
        made += json.loads(line)["event"] == "picture"
        if made >= after:
            break
    time.sleep(rng.random() * 0.2)
    running.kill()
    running.wait()
    return sum(1 for result in run_plan(plan) if result.status == "kept")


def _kill_worker(plan: dict[str, Any], engine: str, rng: random.Random) -> int:
    """Kill one of two workers at a moment after some pictures; the run goes on by itself."""
    pids: dict[int, int] = {}
    after, state, losses = rng.randrange(1, 20), {"made": 0, "killed": False}, []

    def on_event(event: Event) -> None:
        if event["event"] == "worker" and event["state"] == "ready":
            pids[event["worker"]] = event["pid"]
        losses.extend([event] if event.get("state") == "lost" else [])
        state["made"] += event["event"] == "picture"
        if state["made"] >= after and not state["killed"]:
            state["killed"] = True
            victim = pids[rng.choice(sorted(pids))]
            threading.Timer(rng.random() * 0.1, os.kill, (victim, signal.SIGKILL)).start()

    for _ in run_plan(plan, engine=engine, workers=2, on_event=on_event):  # type: ignore[arg-type]
        pass
    return len(losses)


def _kill_node(plan: dict[str, Any], rng: random.Random) -> int:
    """Take one of two nodes away without a word after some pictures; another joins."""
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    ray.init(address=cluster.address, log_to_driver=False)
    after, state, losses = rng.randrange(1, 20), {"made": 0, "killed": False}, []

    def on_event(event: Event) -> None:
        losses.extend([event] if event.get("state") == "lost" else [])
        state["made"] += event["event"] == "picture"
        if state["made"] >= after and not state["killed"]:
            state["killed"] = True
            cluster.remove_node(nodes[rng.randrange(2)], allow_graceful=False)
            cluster.add_node(num_cpus=1)

    try:
        for _ in run_plan(plan, engine="ray", workers=2, on_event=on_event):
            pass
    finally:
        ray.shutdown()
        cluster.shutdown()
    return len(losses)


def kills(count: int, seed: int, only: str | None) -> bool:
    """Kill so many times, and compare what is there afterwards with an uninterrupted run."""
    right = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder)
        job = {"grid": {"mix": ["a:1", "b:0.5,schedule=window(0.5, 1)", "a:0.5, c:1", ""], "seed": "1..6"}}
        list(run_plan(plan_for(folder, folder / "whole", [job])))
        whole = hashes(folder / "whole")
        for number in range(count):
            kind = only or KINDS[number % len(KINDS)]
            rng = random.Random(seed * 1000 + number)  # noqa: S311 -- moments, not secrets
            out = folder / f"out{number}"
            plan = plan_for(folder, out, [job])
            if kind == "runner":
                told = f"{_kill_runner(plan, folder, rng)} pictures kept"
            elif kind == "node":
                told = f"{_kill_node(plan, rng)} workers lost"
            else:
                told = f"{_kill_worker(plan, 'ray' if kind == 'actor' else 'processes', rng)} workers lost"
            verdict = _verdict(out, whole)
            right += verdict == "right"
            print(f"{number}: {kind} killed, {told}: {verdict}", flush=True)
    print(f"{right} of {count} right: the {len(whole)} planned pictures, each once, none torn, equal hashes")
    return right == count


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("what", choices=("same", "kills"))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=KINDS)
    options = parser.parse_args()
    right = (
        same(options.steps) if options.what == "same" else kills(options.count, options.seed, options.only)
    )
    sys.exit(not right)


if __name__ == "__main__":
    main()
