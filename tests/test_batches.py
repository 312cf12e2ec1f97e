"""Plans carried out in one process: what is made, kept, made again, and what a failure costs."""

from __future__ import annotations

import errno
import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from typer.testing import CliRunner

from lora_mixer import LoraMixer, PictureMaker, PictureRequest
from lora_mixer.batches import check_plan, dry_run, read_manifest, run_plan
from lora_mixer.batches.cache import AdapterCache
from lora_mixer.batches.order import Task, TaskQueue
from lora_mixer.cli import app
from lora_mixer.errors import SaveError, SourceNotFoundError
from lora_mixer.recall import read_picture
from lora_mixer.writing import atomic
from tests.batch_plans import hashes, make_model, plan_for

ROOT = Path(__file__).resolve().parent.parent
GRID = {"grid": {"mix": ["a:1", "b:0.5,schedule=window(0.5, 1)", "a:0.5, c:1", ""], "seed": "1..2"}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("model")
    make_model(place)
    return place


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """The grid, made without any interruption."""
    out = tmp_path_factory.mktemp("whole")
    results = list(run_plan(plan_for(folder, out, [GRID])))
    assert [result.status for result in results] == ["done"] * 8
    return out


def statuses(plan, **options):
    counts = {"done": 0, "kept": 0, "failed": 0}
    for result in run_plan(plan, **options):
        counts[result.status] += 1
    return counts


# --- what is made ------------------------------------------------------------------------------------------------------


def test_pictures_are_those_that_the_maker_makes(folder, whole):
    mixer = LoraMixer(DiffusionPipeline.from_pretrained(folder / "model"))
    for name in "ac":
        mixer.load_lora_weights(folder / f"{name}.safetensors", adapter_name=name)
    request = PictureRequest("a castle", seed=2, steps=2, width=32, height=32, mix="a:0.5, c:1")

    (picture,) = PictureMaker(mixer).make([request])

    with Image.open(whole / "00005-2.png") as image:
        assert np.array_equal(np.asarray(image), np.asarray(picture.image))
    assert len(set(hashes(whole).values())) == 8


def test_files_and_manifest_say_how_pictures_were_made(folder, whole):
    records = read_manifest(whole / "manifest.jsonl")
    recalled = read_picture(whole / "00002-1.png")

    assert [record["index"] for record in records] == list(range(8))
    assert {record["file"]: record["sha256"] for record in records} == hashes(whole)
    assert records[2]["mix"] == "b:0.5,schedule=window(0.5, 1)"
    assert records[2]["fingerprint"] == recalled.mix.fingerprint
    assert records[2]["versions"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert (recalled.prompt, recalled.seed, recalled.steps) == ("a castle", 1, 2)
    assert recalled.adapters[0].hash


def test_the_order_of_jobs_has_no_say_in_a_picture(folder, whole, tmp_path):
    job = {"grid": {"seed": "1..2", "mix": list(reversed(GRID["grid"]["mix"]))}}

    list(run_plan(plan_for(folder, tmp_path, [{"seed": 9}, job])))

    assert set(hashes(whole).values()) < set(hashes(tmp_path).values())


def test_results_are_told_once_each_and_can_be_opened(folder, tmp_path):
    told, events = [], []

    results = list(
        run_plan(plan_for(folder, tmp_path, [{"repeat": 3}]), on_image=told.append, on_event=events.append)
    )

    assert told == results
    assert sorted(result.index for result in results) == [0, 1, 2]
    assert results[0].open().size == (32, 32)
    assert [event["event"] for event in events] == ["start", "worker", "picture", "picture", "picture", "end"]
    assert {key: events[-1][key] for key in ("done", "kept", "failed", "left")} == {
        "done": 3, "kept": 0, "failed": 0, "left": 0,
    }  # fmt: skip


def test_batches_hold_pictures_of_one_shape_and_different_mixes(folder, tmp_path):
    plan = plan_for(folder, tmp_path, [GRID], run={"batch_size": 4, "mixed_batches": "always"})

    assert statuses(plan) == {"done": 8, "kept": 0, "failed": 0}
    first = hashes(tmp_path)
    assert len(set(first.values())) == 8


def test_names_formats_and_a_sheet(folder, tmp_path):
    output = {"name": "{job}/{prompt}-{seed}", "format": "webp", "quality": 80}
    job = {"grid": {"seed": [1, 2], "steps": [1, 2]}, "sheet": True, "name": "Look!"}

    list(
        run_plan(
            plan_for(
                folder, tmp_path, [{**job, "prompt": "x"}], output={**output, "name": "{name}/{index}-{seed}"}
            )
        )
    )

    assert sorted(hashes(tmp_path)) == [
        "look/0-1.webp", "look/1-1.webp", "look/2-2.webp", "look/3-2.webp", "sheets/000-look.png",
    ]  # fmt: skip
    assert read_picture(tmp_path / "look" / "0-1.webp").seed == 1


def test_the_callers_threads_are_as_before(folder, tmp_path):
    torch.set_num_threads(3)
    try:
        list(run_plan(plan_for(folder, tmp_path, [{}])))

        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(1)


def test_an_url_of_fsspec_can_hold_adapters_and_pictures(folder, whole):
    import fsspec

    memory = fsspec.filesystem("memory")
    for name in "abc":
        memory.pipe_file(f"/loras/{name}.safetensors", (folder / f"{name}.safetensors").read_bytes())
    plan = plan_for(folder, "memory://out/pictures", [GRID])
    plan["adapters"] = {name: f"memory://loras/{name}.safetensors" for name in "abc"}
    plan["output"]["manifest"] = str(whole.parent / "remote.jsonl")

    assert statuses(plan)["done"] == 8
    assert statuses(plan)["kept"] == 8
    made = memory.cat_file("/out/pictures/00005-2.png")
    assert made == (whole / "00005-2.png").read_bytes()
    assert len(memory.ls("/out/pictures", detail=False)) == 8


# --- again -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("manifest", ["manifest.jsonl", "manifest.sqlite"])
def test_what_is_whole_is_kept_and_the_rest_is_made_again(folder, tmp_path, manifest):
    plan = plan_for(folder, tmp_path, [GRID], output={"manifest": str(tmp_path / manifest)})
    list(run_plan(plan))
    made = hashes(tmp_path)
    (tmp_path / "00001-2.png").unlink()
    (tmp_path / "00003-2.png").write_bytes((tmp_path / "00003-2.png").read_bytes()[:-7])
    (tmp_path / ".00003-2.png.0123abcd.tmp").write_bytes(b"half")

    assert statuses(plan) == {"done": 2, "kept": 6, "failed": 0}
    assert hashes(tmp_path) == made
    assert not list(tmp_path.glob(".*.tmp"))
    assert statuses(plan) == {"done": 0, "kept": 8, "failed": 0}


def test_a_changed_job_is_made_again_and_the_others_are_kept(folder, tmp_path):
    list(run_plan(plan_for(folder, tmp_path, [{"seed": 1}, {"seed": 2}])))

    assert statuses(plan_for(folder, tmp_path, [{"seed": 1}, {"seed": 2, "mix": "a:1"}])) == {
        "done": 1, "kept": 1, "failed": 0,
    }  # fmt: skip
    assert [record["mix"] for record in read_manifest(tmp_path / "manifest.jsonl")] == ["", "a:1"]


def test_a_torn_last_line_of_the_manifest_is_cut_off(folder, tmp_path):
    plan = plan_for(folder, tmp_path, [{"repeat": 2}])
    list(run_plan(plan))
    path = tmp_path / "manifest.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1][:40])

    assert statuses(plan) == {"done": 1, "kept": 1, "failed": 0}
    assert [json.loads(line)["index"] for line in path.read_bytes().splitlines()] == [0, 1]


def test_a_run_that_is_told_to_stop_leaves_a_plan_that_goes_on(folder, whole, tmp_path):
    plan = plan_for(folder, tmp_path, [GRID])
    made = []

    first = list(run_plan(plan, on_image=made.append, stop=lambda: len(made) >= 3))

    assert [result.status for result in first] == ["done"] * 3
    assert statuses(plan) == {"done": 5, "kept": 3, "failed": 0}
    assert hashes(tmp_path) == hashes(whole)


def test_two_runs_do_not_share_a_manifest(folder, tmp_path):
    plan = plan_for(folder, tmp_path, [{"repeat": 2}])
    first = run_plan(plan)
    next(first)

    with pytest.raises(SaveError, match="in use by another run"):
        next(run_plan(plan))

    first.close()
    assert statuses(plan) == {"done": 1, "kept": 1, "failed": 0}


# --- failures ----------------------------------------------------------------------------------------------------------


def test_an_adapter_that_goes_missing_or_breaks_costs_its_own_pictures_only(folder, tmp_path):
    plan = plan_for(folder, tmp_path / "out", [GRID], run={"retries": 2})
    plan["adapters"]["a"] = str(tmp_path / "a.safetensors")
    plan["adapters"]["b"] = str(tmp_path / "b.safetensors")
    for name in "ab":
        (tmp_path / f"{name}.safetensors").write_bytes((folder / f"{name}.safetensors").read_bytes())
    checked = check_plan(plan)
    (tmp_path / "a.safetensors").unlink()
    (tmp_path / "b.safetensors").write_bytes(b"\0" * 64)

    results = list(run_plan(checked))

    failed = {result.index: result for result in results if result.status == "failed"}
    assert sorted(failed) == [0, 1, 2, 3, 4, 5]
    assert "neither a file or folder" in failed[0].error
    assert failed[2].attempts == 3
    records = read_manifest(tmp_path / "out" / "manifest.jsonl")
    assert [record["status"] for record in records] == ["failed"] * 6 + ["done"] * 2
    assert records[2]["error"] == failed[2].error

    for name in "ab":
        (tmp_path / f"{name}.safetensors").write_bytes((folder / f"{name}.safetensors").read_bytes())
    assert statuses(plan) == {"done": 6, "kept": 2, "failed": 0}


def test_of_a_batch_only_the_picture_that_cannot_be_made_fails(folder, tmp_path, monkeypatch):
    call = PictureMaker._call

    def failing(self, batch, *rest):
        if any(request.seed == 3 for request in batch):
            raise RuntimeError("no such luck")
        return call(self, batch, *rest)

    monkeypatch.setattr(PictureMaker, "_call", failing)

    results = list(run_plan(plan_for(folder, tmp_path, [{"grid": {"seed": "1..4"}}], run={"batch_size": 4})))

    assert sorted((result.request.seed, result.status) for result in results) == [
        (1, "done"), (2, "done"), (3, "failed"), (4, "done"),
    ]  # fmt: skip
    (error,) = (result.error for result in results if result.error)
    assert error.startswith("RuntimeError: no such luck")


def test_a_full_disk_ends_the_run_clearly_and_the_next_one_goes_on(folder, whole, tmp_path, monkeypatch):
    plan = plan_for(folder, tmp_path, [GRID])
    writes = itertools.count()

    def fsync(_):
        if next(writes) >= 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(atomic, "os", SimpleNamespace(fsync=fsync))  # of the pictures alone
        with pytest.raises(SaveError, match=r"No space left on device.*goes on from here"):
            list(run_plan(plan))

    assert len(hashes(tmp_path)) < 8
    assert not list(tmp_path.rglob("*.tmp"))
    assert statuses(plan)["failed"] == 0
    assert hashes(tmp_path) == hashes(whole)


def test_a_place_that_cannot_be_written_to_is_told_before_anything_is_made(folder, tmp_path):
    (tmp_path / "file").write_text("x")
    events = []

    with pytest.raises(SaveError, match="cannot write to"):
        list(run_plan(plan_for(folder, tmp_path / "file" / "out", [{}]), on_event=events.append))

    assert events == []


def test_a_device_that_is_not_there_is_an_error_of_the_run(folder, tmp_path):
    from lora_mixer.errors import PictureError

    with pytest.raises(PictureError, match="cannot be used here"):
        list(run_plan(plan_for(folder, tmp_path, [{}], run={"device": "nowhere"})))


def test_a_runner_killed_at_any_moment_goes_on_to_the_same_pictures(folder, whole, tmp_path):
    plan = tmp_path / "plan.json"
    out = tmp_path / "out"
    plan.write_text(json.dumps(plan_for(folder, out, [GRID])))
    running = subprocess.Popen(
        [sys.executable, "-m", "tests.batch_plans", str(plan), "local", "1"],
        cwd=ROOT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    made = 0
    for line in running.stdout:
        made += json.loads(line)["event"] == "picture"
        if made == 3:
            running.send_signal(signal.SIGKILL)
            break
    running.wait()
    running.stdout.close()

    counts = statuses(json.loads(plan.read_text()))

    assert counts["failed"] == 0
    assert counts["kept"] >= 3
    assert hashes(out) == hashes(whole)
    records = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    assert sorted(record["index"] for record in records) == list(range(8))


# --- cache and queue ---------------------------------------------------------------------------------------------------


def test_the_cache_keeps_no_more_adapters_than_it_may_and_those_used_last(folder):
    mixer = LoraMixer(DiffusionPipeline.from_pretrained(folder / "model"))
    places = check_plan(plan_for(folder, "out", [{}])).adapters
    cache = AdapterCache(mixer, places, most=2, most_bytes=1e9)

    for names in (["a"], ["b"], ["a"], ["c"]):
        cache.expect(names)
        cache.want(names)

    assert cache.resident == ("a", "c")
    assert sorted(mixer.adapters) == ["a", "c"]
    assert cache.loads == 3
    cache.want(["a", "b", "c"])  # what one picture needs is there, whatever the bound
    assert sorted(cache.resident) == ["a", "b", "c"]
    cache.close()


def test_the_cache_is_bounded_by_bytes(folder):
    mixer = LoraMixer(DiffusionPipeline.from_pretrained(folder / "model"))
    places = check_plan(plan_for(folder, "out", [{}])).adapters
    size = check_plan(plan_for(folder, "out", [{}])).infos["a"].bytes
    cache = AdapterCache(mixer, places, most=99, most_bytes=2.5 * size)

    for name in "abc":
        cache.want([name])

    assert cache.resident == ("b", "c")
    assert sum(mixer.memory().adapters.values()) == 2 * size
    cache.close()


def test_workers_keep_to_their_adapters_and_help_where_most_is_left():
    tasks = [Task((), names) for names in (("a",),) * 2 + (("b",),) * 4]
    queue = TaskQueue(tasks)

    first = [queue.take(0, ()).adapters, queue.take(1, ()).adapters]
    then = [queue.take(0, ("a",)).adapters, queue.take(0, ("a",)).adapters, queue.take(1, ("b",)).adapters]

    assert first == [("a",), ("b",)]
    assert then == [("a",), ("b",), ("b",)]
    assert len(queue) == 1


def test_a_worker_takes_up_first_what_it_has_in_memory():
    queue = TaskQueue([Task((), ("a",)), Task((), ("b",)), Task((), ("b", "c"))])

    assert queue.take(0, ("b", "c")).adapters == ("b",)
    assert queue.peek(0, ("b", "c")) == ("b", "c")


# --- command line ------------------------------------------------------------------------------------------------------


def batch(*arguments):
    return CliRunner().invoke(app, ["batch", *(str(argument) for argument in arguments)])


def test_the_command_makes_a_plan_and_keeps_it(folder, tmp_path):
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps(plan_for(folder, "pictures", [{"repeat": 2}])))

    first = batch(plan)
    second = batch(plan, "--json")

    assert first.exit_code == 0, first.output
    assert first.stdout.startswith("2 made, 0 kept, 0 failed, 0 left: ")
    assert len(hashes(tmp_path / "pictures")) == 2
    assert [json.loads(line)["event"] for line in second.stdout.splitlines()] == ["start", "end"]


def test_a_failed_picture_is_told_and_in_the_exit_code(folder, tmp_path, monkeypatch):
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps(plan_for(folder, "pictures", [{"repeat": 2}])))
    monkeypatch.setattr(PictureMaker, "_call", lambda *_: (_ for _ in ()).throw(RuntimeError("broken")))

    result = batch(plan)

    assert result.exit_code == 1
    assert "RuntimeError: broken" in result.stderr


def test_a_dry_run_makes_nothing_and_says_what_it_would_take(folder, tmp_path):
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps(plan_for(folder, "pictures", [GRID])))

    result = batch(plan, "--dry-run")
    told = json.loads(batch(plan, "--dry-run", "--json", "--no-trial").stdout)

    assert result.exit_code == 0, result.output
    assert "8 pictures (0: 8)" in result.stdout
    assert "expected: " in result.stdout
    assert told["pictures"] == 8
    assert told["seconds"] is None
    assert not (tmp_path / "pictures").exists()


def test_the_trial_of_a_dry_run_gives_time_and_memory(folder):
    found = dry_run(plan_for(folder, "out", [GRID]))

    assert found.seconds > 0
    assert found.memory > sum(adapter["bytes"] for adapter in found.adapters.values())


def test_a_bad_plan_is_a_message_with_lines(tmp_path):
    plan = tmp_path / "plan.yaml"
    plan.write_text("jobs:\n- prompt: x\n  steps: none\n")

    result = batch(plan)

    assert result.exit_code == 2
    assert "error: plan.yaml cannot be made:" in result.stderr
    assert "line 3: jobs[0].steps: expected a valid integer, got 'none'" in result.stderr


def test_the_schema_is_printed():
    assert json.loads(batch("--schema").stdout)["title"] == "A plan of lora-mixer batch"


def test_the_command_wants_a_plan(tmp_path):
    assert batch().exit_code == 2
    assert isinstance(batch(tmp_path / "gone.yaml").exception, SystemExit)
    with pytest.raises(SourceNotFoundError):
        run_plan(tmp_path / "gone.yaml")
