"""Plans carried out in one process: what is made, what is kept, and what is made again."""

from __future__ import annotations

import json
import threading

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from lora_mixer import LoraMixer, PictureMaker, PictureRequest
from lora_mixer.batches import read_manifest, run_plan
from lora_mixer.batches.in_process import InProcess
from lora_mixer.batches.storage import Storage
from lora_mixer.errors import SaveError
from lora_mixer.picture_metadata import read_picture
from tests.batch_plans import GRID, hashes, plan_for, statuses

# --- what is made ----------------------------------------------------------------------------------------------------


def test_pictures_are_those_that_the_maker_makes(model_folder, whole_grid):
    mixer = LoraMixer(DiffusionPipeline.from_pretrained(model_folder / "model"))
    for name in "ac":
        mixer.load_lora_weights(model_folder / f"{name}.safetensors", adapter_name=name)
    request = PictureRequest("a castle", seed=2, steps=2, width=32, height=32, mix="a:0.5, c:1")

    (picture,) = PictureMaker(mixer).make([request])

    with Image.open(whole_grid / "00005-2.png") as image:
        assert np.array_equal(np.asarray(image), np.asarray(picture.image))
    assert len(set(hashes(whole_grid).values())) == 8


def test_files_and_manifest_say_how_pictures_were_made(model_folder, whole_grid):
    records = read_manifest(whole_grid / "manifest.jsonl")
    recalled = read_picture(whole_grid / "00002-1.png")

    assert [record["index"] for record in records] == list(range(8))
    assert {record["file"]: record["sha256"] for record in records} == hashes(whole_grid)
    assert records[2]["mix"] == "b:0.5,schedule=window(0.5, 1)"
    assert records[2]["fingerprint"] == recalled.mix.fingerprint
    assert records[2]["versions"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert (recalled.prompt, recalled.seed, recalled.steps) == ("a castle", 1, 2)
    assert recalled.adapters[0].hash


def test_the_order_of_jobs_has_no_say_in_a_picture(model_folder, whole_grid, tmp_path):
    job = {"grid": {"seed": "1..2", "mix": list(reversed(GRID["grid"]["mix"]))}}

    list(run_plan(plan_for(model_folder, tmp_path, [{"seed": 9}, job])))

    assert set(hashes(whole_grid).values()) < set(hashes(tmp_path).values())


def test_results_are_told_once_each_and_can_be_opened(model_folder, tmp_path):
    told, events = [], []

    results = list(
        run_plan(
            plan_for(model_folder, tmp_path, [{"repeat": 3}]), on_image=told.append, on_event=events.append
        )
    )

    assert told == results
    assert sorted(result.index for result in results) == [0, 1, 2]
    assert results[0].open().size == (32, 32)
    assert [event["event"] for event in events] == ["start", "worker", "picture", "picture", "picture", "end"]
    assert {key: events[-1][key] for key in ("done", "kept", "failed", "left")} == {
        "done": 3, "kept": 0, "failed": 0, "left": 0,
    }  # fmt: skip


def test_batches_hold_pictures_of_one_shape_and_different_mixes(model_folder, tmp_path):
    plan = plan_for(model_folder, tmp_path, [GRID], run={"batch_size": 4, "mixed_batches": "always"})

    assert statuses(plan) == {"done": 8, "kept": 0, "failed": 0}
    first = hashes(tmp_path)
    assert len(set(first.values())) == 8


def test_names_formats_and_a_sheet(model_folder, tmp_path):
    output = {"name": "{job}/{prompt}-{seed}", "format": "webp", "quality": 80}
    job = {"grid": {"seed": [1, 2], "steps": [1, 2]}, "sheet": True, "name": "Look!"}

    list(
        run_plan(
            plan_for(
                model_folder,
                tmp_path,
                [{**job, "prompt": "x"}],
                output={**output, "name": "{name}/{index}-{seed}"},
            )
        )
    )

    assert sorted(hashes(tmp_path)) == [
        "look/0-1.webp", "look/1-1.webp", "look/2-2.webp", "look/3-2.webp", "sheets/000-look.png",
    ]  # fmt: skip
    assert read_picture(tmp_path / "look" / "0-1.webp").seed == 1


def test_the_callers_threads_are_as_before(model_folder, tmp_path):
    torch.set_num_threads(3)
    try:
        list(run_plan(plan_for(model_folder, tmp_path, [{}])))

        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(1)


def test_an_url_of_fsspec_can_hold_adapters_and_pictures(model_folder, whole_grid):
    import fsspec

    memory = fsspec.filesystem("memory")
    for name in "abc":
        memory.pipe_file(f"/loras/{name}.safetensors", (model_folder / f"{name}.safetensors").read_bytes())
    plan = plan_for(model_folder, "memory://out/pictures", [GRID])
    plan["adapters"] = {name: f"memory://loras/{name}.safetensors" for name in "abc"}
    plan["output"]["manifest"] = str(whole_grid.parent / "remote.jsonl")

    assert statuses(plan)["done"] == 8
    assert statuses(plan)["kept"] == 8
    made = memory.cat_file("/out/pictures/00005-2.png")
    assert made == (whole_grid / "00005-2.png").read_bytes()
    assert len(memory.ls("/out/pictures", detail=False)) == 8


# --- again -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("manifest", ["manifest.jsonl", "manifest.sqlite"])
def test_what_is_whole_is_kept_and_the_rest_is_made_again(model_folder, tmp_path, manifest):
    plan = plan_for(model_folder, tmp_path, [GRID], output={"manifest": str(tmp_path / manifest)})
    list(run_plan(plan))
    made = hashes(tmp_path)
    (tmp_path / "00001-2.png").unlink()
    (tmp_path / "00003-2.png").write_bytes((tmp_path / "00003-2.png").read_bytes()[:-7])
    (tmp_path / ".00003-2.png.0123abcd.tmp").write_bytes(b"half")

    assert statuses(plan) == {"done": 2, "kept": 6, "failed": 0}
    assert hashes(tmp_path) == made
    assert not list(tmp_path.glob(".*.tmp"))
    assert statuses(plan) == {"done": 0, "kept": 8, "failed": 0}


def test_a_changed_job_is_made_again_where_that_is_allowed_and_the_others_are_kept(model_folder, tmp_path):
    list(run_plan(plan_for(model_folder, tmp_path, [{"seed": 1}, {"seed": 2}])))
    before = hashes(tmp_path)
    changed = [{"seed": 1}, {"seed": 2, "mix": "a:1"}]

    with pytest.raises(SaveError, match=r"1 files in .* would be lost: 00001-2\.png\."):
        statuses(plan_for(model_folder, tmp_path, changed))
    assert hashes(tmp_path) == before
    assert statuses(plan_for(model_folder, tmp_path, changed, output={"replace": True})) == {
        "done": 1, "kept": 1, "failed": 0,
    }  # fmt: skip
    assert [record["mix"] for record in read_manifest(tmp_path / "manifest.jsonl")] == ["", "a:1"]


def test_a_torn_last_line_of_the_manifest_is_cut_off(model_folder, tmp_path):
    plan = plan_for(model_folder, tmp_path, [{"repeat": 2}])
    list(run_plan(plan))
    path = tmp_path / "manifest.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]) + lines[-1][:40])

    assert statuses(plan) == {"done": 1, "kept": 1, "failed": 0}
    assert [record["index"] for record in read_manifest(path)] == [0, 1]
    assert all(json.loads(line) for line in path.read_bytes().splitlines())


def test_a_run_that_is_told_to_stop_leaves_a_plan_that_goes_on(model_folder, whole_grid, tmp_path):
    plan = plan_for(model_folder, tmp_path, [GRID])
    made = []

    first = list(run_plan(plan, on_image=made.append, stop=lambda: len(made) >= 3))

    assert {result.status for result in first} == {"done"}
    assert len(first) in (3, 4)  # one more may have been on its way to the disk
    assert statuses(plan) == {"done": 8 - len(first), "kept": len(first), "failed": 0}
    assert hashes(tmp_path) == hashes(whole_grid)


def test_workers_finish_what_they_are_at_unless_nobody_would_record_it(model_folder, tmp_path, monkeypatch):
    closed = []
    monkeypatch.setattr(InProcess, "close", lambda _, at_once: closed.append(at_once))
    plan = plan_for(model_folder, tmp_path, [{"repeat": 6}])
    made = []

    list(run_plan(plan, on_image=made.append, stop=lambda: bool(made)))
    left = run_plan(plan)
    next(result for result in left if result.status == "done")
    left.close()
    list(run_plan(plan))

    assert closed == [False, True, False]


def test_two_runs_do_not_share_a_manifest(model_folder, tmp_path):
    plan = plan_for(model_folder, tmp_path, [{"repeat": 2}])
    first = run_plan(plan)
    next(first)

    with pytest.raises(SaveError, match="in use by another run"):
        next(run_plan(plan))

    first.close()
    assert statuses(plan) == {"done": 1, "kept": 1, "failed": 0}


def test_a_picture_is_written_while_the_next_one_is_made(model_folder, tmp_path, monkeypatch):
    next_begun, seen = threading.Event(), []
    save, make = Storage.save, PictureMaker.make

    def slow(storage, name, *arguments):
        if not seen:
            seen.append(next_begun.wait(60))
        return save(storage, name, *arguments)

    def noted(maker, requests, **more):
        if any(request.seed == 1 for request in requests):
            next_begun.set()
        return make(maker, requests, **more)

    monkeypatch.setattr(Storage, "save", slow)
    monkeypatch.setattr(PictureMaker, "make", noted)
    plan = plan_for(model_folder, tmp_path, [{"seed": 0}, {"seed": 1}])

    assert statuses(plan) == {"done": 2, "kept": 0, "failed": 0}
    assert seen == [True]
