"""Options for small machines, folders of adapters, ``show`` and JSON on the command line."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from lora_mixer import PictureError, PictureMaker, PictureRequest, load_pipeline
from lora_mixer.batches import check_plan
from lora_mixer.cli._app import app
from lora_mixer.demo import demo_adapters
from lora_mixer.pictures import ModelOptions


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("loras")
    for name in ("ink", "neon"):
        source = demo_adapters()[name].path
        file = source if source.is_file() else next(source.glob("*.safetensors"))
        (place / f"{name}_x.safetensors").write_bytes(file.read_bytes())
    (place / "broken.safetensors").write_bytes(b"x")
    return place


def test_adapters_that_a_prompt_names_come_from_the_folder_and_no_others(folder, tmp_path):
    out = tmp_path / "x.png"

    result = run("generate", "--model", "demo", "--prompt", "a castle <lora:ink_x:0.7>", "--loras", folder, "--steps", 1,
                 "--seed", 1, "--out", out, "--json")  # fmt: skip
    shown = run("show", out, "--json")

    assert result.exit_code == 0, result.stderr
    row = json.loads(result.stdout)
    assert (row["file"], row["seed"], row["mix"]) == (str(out), 1, "ink_x:0.7")
    facts = json.loads(shown.stdout)
    assert [(each["name"], each["weight"]) for each in facts["adapters"]] == [("ink_x", 0.7)]
    assert (facts["prompt"], facts["steps"], facts["mix"], facts["unused"]) == (
        "a castle",
        1,
        "ink_x:0.7",
        [],
    )
    assert "broken" not in result.stdout


def test_a_mix_may_name_adapters_of_a_folder_and_unknown_ones_are_told(folder, tmp_path):
    named = run("generate", "--model", "demo", "--prompt", "x", "--mix", "neon_x:0.5", "--loras", folder, "--steps", 1,
                "--seed", 1, "--out", tmp_path / "x.png")  # fmt: skip
    unknown = run("generate", "--model", "demo", "--prompt", "x <lora:oil:1>", "--loras", folder, "--seed", 1)
    nowhere = run("generate", "--model", "demo", "--prompt", "x", "--loras", folder / "no", "--seed", 1)

    assert named.exit_code == 0, named.stderr
    assert "neon_x:0.5" in run("show", tmp_path / "x.png").stdout
    assert unknown.exit_code == nowhere.exit_code == 2
    assert 'no adapter "oil"' in unknown.stderr
    assert "--loras: there is no folder" in nowhere.stderr


def test_show_says_what_is_no_picture(tmp_path):
    (tmp_path / "x.png").write_bytes(b"no picture")

    assert run("show", tmp_path / "x.png").exit_code == 2
    assert run("show", tmp_path / "gone.png").exit_code == 2


def test_tiling_and_slicing_are_on_where_they_are_asked_for():
    pipe = load_pipeline("demo", vae_tiling=True, vae_slicing=True, device="cpu")

    assert pipe.vae.use_tiling
    assert pipe.vae.use_slicing
    assert not load_pipeline("demo", device="cpu").vae.use_tiling


def test_offload_needs_a_gpu_and_a_known_way():
    for way in ("model", "group", "sequential"):
        with pytest.raises(PictureError, match="off a GPU"):
            load_pipeline("demo", offload=way, device="cpu")
    with pytest.raises(PictureError, match="offload: must be one of none, model, group, sequential"):
        ModelOptions(offload="all")


def test_plans_hand_the_options_on_and_keys_know_what_changes_pixels():
    def key(**run_options):
        checked = check_plan({"run": run_options, "jobs": [{"prompt": "x"}]})
        return checked.plan.options, checked.key(checked.pictures[0])

    options, plain = key()
    tiled, other = key(vae_tiling=True)
    moved, same = key(offload="model")

    assert (options.offload, tiled.vae_tiling, moved.offload) == ("none", True, "model")
    assert plain != other
    assert plain == same


def test_a_picture_that_does_not_fit_says_what_takes_less(monkeypatch):
    from lora_mixer import LoraMixer

    mixer = LoraMixer(load_pipeline("demo", device="cpu"))
    maker = PictureMaker(mixer, smaller="none")

    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(type(mixer.pipe.unet), "forward", full)
    with pytest.raises(
        PictureError, match=r"the memory of cpu is too small for 128x64; take, in this order: vae_tiling=True"
    ):
        list(maker.make([PictureRequest("x", steps=1, width=128, height=64)]))


def test_doctor_counts_the_model_and_says_what_fits():
    result = run("doctor", "--json")

    assert result.exit_code == 0, result.stderr
    facts = json.loads(result.stdout)
    pipe = load_pipeline("demo", device="cpu")
    assert facts["model"]["parts"]["unet"] == sum(p.numel() for p in pipe.unet.parameters()) * 4
    assert facts["devices"]["cpu"]["total"] >= facts["devices"]["cpu"]["free"] > 0
    assert facts["extras"]["batch"] is True
    assert "cpu: fits as it is" in facts["advice"]
    assert "diffusers" in run("doctor").stdout


@pytest.mark.parametrize(
    ("free", "advice"),
    [(20e9, "fits as it is"), (8e9, "--offload model"), (3e9, "--offload sequential"), (0, "is not told")],
)
def test_doctor_proposes_the_first_option_that_is_enough(free, advice):
    from lora_mixer.cli._doctor import _advice

    model = {"parts": {"unet": 5e9, "text_encoder": 0.3e9, "text_encoder_2": 1.4e9}}

    (line,) = _advice({"cuda:0": {"free": free, "total": 24e9, "name": "x"}}, model)

    assert line.startswith("cuda:0: ")
    assert advice in line
