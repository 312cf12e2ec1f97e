"""What a failure costs: an adapter, a picture, the disk, the device, the runner itself."""

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

import pytest

from lora_mixer import PictureMaker, atomic
from lora_mixer.batches import check_plan, read_manifest, run_plan
from lora_mixer.errors import PictureError, SaveError
from tests.batch_plans import GRID, hashes, plan_for, statuses

ROOT = Path(__file__).resolve().parent.parent


def test_an_adapter_that_goes_missing_or_breaks_costs_its_own_pictures_only(model_folder, tmp_path):
    plan = plan_for(model_folder, tmp_path / "out", [GRID], run={"retries": 2})
    plan["adapters"]["a"] = str(tmp_path / "a.safetensors")
    plan["adapters"]["b"] = str(tmp_path / "b.safetensors")
    for name in "ab":
        (tmp_path / f"{name}.safetensors").write_bytes((model_folder / f"{name}.safetensors").read_bytes())
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
        (tmp_path / f"{name}.safetensors").write_bytes((model_folder / f"{name}.safetensors").read_bytes())
    assert statuses(plan) == {"done": 6, "kept": 2, "failed": 0}


def test_of_a_batch_only_the_picture_that_cannot_be_made_fails(model_folder, tmp_path, monkeypatch):
    call = PictureMaker._call

    def failing(self, batch, *rest):
        if any(request.seed == 3 for request in batch):
            raise RuntimeError("no such luck")
        return call(self, batch, *rest)

    monkeypatch.setattr(PictureMaker, "_call", failing)

    results = list(
        run_plan(plan_for(model_folder, tmp_path, [{"grid": {"seed": "1..4"}}], run={"batch_size": 4}))
    )

    assert sorted((result.request.seed, result.status) for result in results) == [
        (1, "done"), (2, "done"), (3, "failed"), (4, "done"),
    ]  # fmt: skip
    (error,) = (result.error for result in results if result.error)
    assert error.startswith("RuntimeError: no such luck")


def test_a_full_disk_ends_the_run_clearly_and_the_next_one_goes_on(
    model_folder, whole_grid, tmp_path, monkeypatch
):
    plan = plan_for(model_folder, tmp_path, [GRID])
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
    assert hashes(tmp_path) == hashes(whole_grid)


def test_a_place_that_cannot_be_written_to_is_told_before_anything_is_made(model_folder, tmp_path):
    (tmp_path / "file").write_text("x")
    events = []

    with pytest.raises(SaveError, match="cannot write to"):
        list(run_plan(plan_for(model_folder, tmp_path / "file" / "out", [{}]), on_event=events.append))

    assert events == []


def test_a_device_that_is_not_there_is_an_error_of_the_run(model_folder, tmp_path):
    with pytest.raises(PictureError, match="cannot be used here"):
        list(run_plan(plan_for(model_folder, tmp_path, [{}], run={"device": "nowhere"})))


def test_a_runner_killed_at_any_moment_goes_on_to_the_same_pictures(model_folder, whole_grid, tmp_path):
    plan = tmp_path / "plan.json"
    out = tmp_path / "out"
    plan.write_text(json.dumps(plan_for(model_folder, out, [GRID])))
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
    assert hashes(out) == hashes(whole_grid)
    records = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    made = [record["index"] for record in records if record["status"] == "done"]  # others say what was begun
    assert sorted(made) == list(range(8))


@pytest.mark.parametrize("folder", ["github://x", "zip://x::/etc/hostname", "out\0put", "nothing://x"])
def test_places_that_no_file_system_takes_are_refused_by_the_packages_own_error(folder: str) -> None:
    """fsspec's file systems raise what they like: TypeError for what is missing, BadZipFile, ValueError for a zero byte."""
    from lora_mixer.batches.storage import Storage

    with pytest.raises(SaveError, match="cannot write to"):
        Storage(folder).check()
