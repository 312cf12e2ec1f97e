"""Workers in processes and on Ray: the same pictures as one process makes, and a dead one costs only what it had in hand."""

from __future__ import annotations

import os
import signal

import pytest

from lora_mixer.batches import run_plan
from lora_mixer.batches.crew import STARTS_AT_MOST, Crew, WorkerGoneError
from lora_mixer.errors import PlanError, SourceNotFoundError, WorkersError
from tests.batch_plans import hashes, make_model, plan_for

GRID = {"grid": {"mix": ["a:1", "b:0.5,schedule=window(0.5, 1)", "a:0.5, c:1", ""], "seed": "1..3"}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("model")
    make_model(place)
    return place


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    list(run_plan(plan_for(folder, out, [GRID])))
    return hashes(out)


@pytest.fixture(scope="module")
def cluster():
    """One small Ray for all tests of this module."""
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()


def run_and_kill_one(plan, engine):
    """Kill the worker that makes the third picture once that is there, and give the results and the losses."""
    pids, made, losses = {}, [], []

    def on_event(event):
        if event.get("state") == "ready":
            pids[event["worker"]] = event["pid"]
        if event.get("state") == "lost":
            losses.append(event["worker"])
        if event["event"] == "picture":
            made.append(event)
            if len(made) == 3:
                os.kill(pids[event["worker"]], signal.SIGKILL)

    return list(run_plan(plan, engine=engine, workers=2, on_event=on_event)), losses


@pytest.mark.filterwarnings("ignore")
def test_a_killed_process_is_replaced_and_its_picture_made_again(folder, whole, tmp_path):
    results, losses = run_and_kill_one(plan_for(folder, tmp_path, [GRID]), "processes")

    assert sorted(result.index for result in results) == list(range(12))
    assert {result.status for result in results} == {"done"}
    assert len(losses) == 1
    assert hashes(tmp_path) == whole


@pytest.mark.filterwarnings("ignore")
def test_a_killed_actor_is_replaced_and_its_picture_made_again(folder, whole, tmp_path, cluster):
    results, losses = run_and_kill_one(plan_for(folder, tmp_path, [GRID]), "ray")

    assert sorted(result.index for result in results) == list(range(12))
    assert {result.status for result in results} == {"done"}
    assert len(losses) >= 1
    assert hashes(tmp_path) == whole
    assert cluster.is_initialized()  # it was there before, and is left alone


class Dying:
    """Workers that never begin."""

    count = 2

    def launch(self, worker):
        return object()

    def poll(self, handles, seconds):
        return handles

    def result(self, handle):
        raise WorkerGoneError("killed")

    def close(self):
        """There is nothing to end."""


def test_workers_that_never_begin_end_the_run():
    crew = Crew(Dying())

    def work():
        for _ in range(99):
            crew.wait(0)

    with pytest.raises(WorkersError, match=rf"{STARTS_AT_MOST} times in a row.*killed"):
        work()


def test_an_unknown_engine_or_no_worker_is_refused(folder, tmp_path):
    plan = plan_for(folder, tmp_path, [GRID])

    with pytest.raises(PlanError, match="local, processes, ray"):
        run_plan(plan, engine="threads")
    with pytest.raises(PlanError, match="workers"):
        run_plan(plan, engine="processes", workers=0)


@pytest.mark.filterwarnings("ignore")
def test_what_a_worker_meets_when_it_loads_comes_back_as_itself(folder, tmp_path, monkeypatch):
    plan = plan_for(folder, tmp_path / "out", [{}])
    run = run_plan(plan, engine="processes", workers=1)  # checked by now
    (folder / "model" / "unet" / "config.json").rename(tmp_path / "config.json")
    try:
        with pytest.raises(SourceNotFoundError, match="could not be loaded"):
            list(run)
    finally:
        (tmp_path / "config.json").rename(folder / "model" / "unet" / "config.json")
