"""Workers in processes and on Ray: the same pictures as one process makes, and a dead one costs only what it had in hand."""

from __future__ import annotations

import os
import signal

import pytest

from lora_mixer.batches import check_plan, run_plan
from lora_mixer.batches.processes import Processes
from lora_mixer.batches.worker import WorkSpec
from lora_mixer.batches.worker_pool import WorkerGoneError
from lora_mixer.errors import PictureError, PlanError
from tests.batch_plans import GRID, hashes, plan_for


@pytest.fixture(scope="module")
def cluster():
    """One small Ray for the tests of this module, whatever else runs on this machine."""
    ray = pytest.importorskip("ray")
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()


def run_and_kill_one(plan, engine, workers, half=None):
    """
    Kill the worker that makes the third picture once that is there; give the results and what became of workers.

    ``half`` is the file that it was writing.
    """
    pids, made, states = {}, [], []

    def on_event(event):
        if event["event"] == "worker":
            states.append(event["state"])
        if event.get("state") == "ready":
            pids[event["worker"]] = event["pid"]
        if event["event"] == "picture":
            made.append(event)
            if len(made) == 3:
                os.kill(pids[event["worker"]], signal.SIGKILL)
        if event.get("state") == "lost" and half is not None:
            half.write_bytes(b"half of a picture")

    return list(run_plan(plan, engine=engine, workers=workers, on_event=on_event)), states


@pytest.mark.filterwarnings("ignore")
def test_a_killed_process_is_replaced_and_its_picture_made_again(model_folder, whole_grid, tmp_path):
    half = tmp_path / ".00003-4.png.6e294a1f.tmp"
    results, states = run_and_kill_one(plan_for(model_folder, tmp_path, [GRID]), "processes", 1, half)

    assert sorted(result.index for result in results) == list(range(8))
    assert {result.status for result in results} == {"done"}
    assert states == ["ready", "lost", "ready"]
    assert hashes(tmp_path) == hashes(whole_grid)
    assert not half.exists()


@pytest.mark.filterwarnings("ignore")
def test_a_killed_actor_costs_no_picture(model_folder, whole_grid, tmp_path, cluster):
    results, states = run_and_kill_one(plan_for(model_folder, tmp_path, [GRID]), "ray", 2)

    assert sorted(result.index for result in results) == list(range(8))
    assert {result.status for result in results} == {"done"}
    assert "lost" in states
    assert hashes(tmp_path) == hashes(whole_grid)
    assert cluster.is_initialized()  # it was there before, and is left alone


def test_a_process_that_still_loads_when_the_run_ends_is_not_waited_for(model_folder, tmp_path):
    checked = check_plan(plan_for(model_folder, tmp_path, [{}]))
    plan = checked.plan
    backend = Processes(WorkSpec(plan.options, checked.adapters, plan.run, checked.folder, None), (), 1)

    loading = backend.launch(0)
    backend.close()

    with pytest.raises(WorkerGoneError):
        backend.result(loading)


@pytest.mark.filterwarnings("ignore")
def test_what_a_worker_meets_when_it_loads_comes_back_as_itself(model_folder, tmp_path):
    plan = plan_for(model_folder, tmp_path, [{}], run={"device": "nowhere"})

    with pytest.raises(PictureError, match="'nowhere' cannot be used here"):
        list(run_plan(plan, engine="processes", workers=1))


def test_an_unknown_engine_or_no_worker_is_refused(model_folder, tmp_path):
    plan = plan_for(model_folder, tmp_path, [GRID])

    with pytest.raises(PlanError, match="local, processes, ray"):
        run_plan(plan, engine="threads")
    with pytest.raises(PlanError, match="workers"):
        run_plan(plan, engine="processes", workers=0)
