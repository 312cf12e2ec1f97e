"""``lora-mixer generate``: pictures that the library itself would make, with their settings inside."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from lora_mixer import LoraMixer, Mix, read_adapter
from lora_mixer.cli._app import app
from lora_mixer.cli._output import OutputError, picture_paths
from lora_mixer.picture_metadata import read_picture

SIZE = 32


@pytest.fixture(scope="module")
def files(shared_data):
    folder = shared_data / "generated" / "diffusers_peft"
    return shared_data / "tiny-sd", folder / "sd_lora_r4_unet_te.safetensors"


def generate(model, *arguments):
    fixed = ["--model", model, "--prompt", "a castle", "--steps", 2, "--width", SIZE, "--height", SIZE]
    return CliRunner().invoke(app, ["generate", *(str(argument) for argument in (*fixed, *arguments))])


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def test_the_picture_is_what_the_library_makes(files, tmp_path):
    model, lora = files
    out = tmp_path / "new" / "castle.png"

    result = generate(model, "--lora", f"{lora}:te=0.2,unet=0.9", "--seed", 7, "--out", out)

    assert result.exit_code == 0, result.stderr
    mixer = LoraMixer(DiffusionPipeline.from_pretrained(model))
    mixer.load_lora_weights(lora, adapter_name="x")
    mixer.set_adapters("x", {"unet": 0.9, "text_encoder": 0.2})
    image = mixer.pipe(
        "a castle", num_inference_steps=2, width=SIZE, height=SIZE, generator=torch.Generator().manual_seed(7)
    ).images[0]
    assert np.array_equal(pixels(out), np.asarray(image))


def test_adapters_change_the_picture_and_weight_zero_does_not(files, tmp_path):
    model, lora = files
    for name, arguments in {
        "base": [],
        "with": ["--lora", f"{lora}:3"],
        "zero": ["--lora", f"{lora}:0"],
    }.items():
        assert generate(model, "--seed", 1, "--out", tmp_path / f"{name}.png", *arguments).exit_code == 0

    assert not np.array_equal(pixels(tmp_path / "base.png"), pixels(tmp_path / "with.png"))
    assert np.array_equal(pixels(tmp_path / "base.png"), pixels(tmp_path / "zero.png"))


def test_the_png_says_how_it_was_made(files, tmp_path):
    model, lora = files

    generate(
        model, "--lora", f"{lora}:0.5", "--lora", f"{lora}:-0.25", "--seed", 7, "--negative-prompt", "rain",
        "--guidance-scale", 4.5, "--out", tmp_path / "x.png",
    )  # fmt: skip

    with Image.open(tmp_path / "x.png") as image:
        lines = image.text["parameters"].splitlines()
    assert lines[:2] == [
        "a castle <lora:sd_lora_r4_unet_te:0.5> <lora:sd_lora_r4_unet_te_2:-0.25>", "Negative prompt: rain",
    ]  # fmt: skip
    assert lines[2].startswith("Steps: 2, Sampler: ")
    assert "CFG scale: 4.5, Seed: 7, Size: 32x32, Model: tiny-sd, Lora hashes: " in lines[2]
    hashes = read_adapter(lora).hashes
    assert f"sd_lora_r4_unet_te: {hashes['autov3']}, sd_lora_r4_unet_te_2: {hashes['autov3']}" in lines[2]
    settings = read_picture(tmp_path / "x.png")
    assert settings.mix == Mix.of("sd_lora_r4_unet_te:0.5, sd_lora_r4_unet_te_2:-0.25")
    assert settings.adapters[0].hashes["sha256"] == hashes["sha256"]


def test_each_adapter_gets_its_report(files, tmp_path):
    model, lora = files

    result = generate(model, "--lora", lora, "--seed", 1, "--out", tmp_path / "x.png")

    assert "sd_lora_r4_unet_te: " in result.stdout
    assert "unet" in result.stdout
    assert "text_encoder" in result.stdout
    assert f"{tmp_path / 'x.png'}  (seed 1)" in result.stdout


def test_several_pictures_have_seeds_of_their_own_and_can_be_made_alone(files, tmp_path):
    model, _ = files

    result = generate(model, "--seed", 5, "--count", 2, "--out", f"{tmp_path}/")
    generate(model, "--seed", 6, "--out", tmp_path / "alone.png")

    assert result.exit_code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["5.png", "6.png", "alone.png"]
    assert np.array_equal(pixels(tmp_path / "6.png"), pixels(tmp_path / "alone.png"))
    assert not np.array_equal(pixels(tmp_path / "5.png"), pixels(tmp_path / "6.png"))


def test_without_a_seed_the_one_taken_is_told(files, tmp_path):
    model, _ = files

    result = generate(model, "--out", f"{tmp_path}/{{seed}}.png")

    (path,) = tmp_path.iterdir()
    assert f"(seed {path.stem})" in result.stdout


def test_a_partial_match_warns_and_strict_refuses(files, tmp_path):
    model, lora = files
    other = tmp_path / "partial.safetensors"
    tensors = load_file(lora) | {
        "unet.nowhere.lora_A.weight": torch.ones(4, 8),
        "unet.nowhere.lora_B.weight": torch.ones(8, 4),
    }
    save_file(tensors, other)

    loose = generate(model, "--lora", other, "--seed", 1, "--out", tmp_path / "x.png")
    strict = generate(model, "--lora", other, "--seed", 1, "--out", tmp_path / "y.png", "--strict")

    assert loose.exit_code == 0
    assert "warning: " in loose.stderr
    assert "nowhere" in loose.stdout
    assert strict.exit_code == 2
    assert not (tmp_path / "y.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lora", "nope.safetensors"], "error: nope.safetensors: is neither"),
        (
            ["--out", "x.gif"],
            "error: --out must be a folder or a path that ends with .png, .jpg, .jpeg, .webp",
        ),
        (["--out", "{name}.png"], "error: --out knows the fields"),
        (["--out", "{seed.png"], "error: --out '{seed.png' is not a path or template"),
        (["--device", "nowhere"], "error: --device: 'nowhere' cannot be used here"),
    ],
)
def test_what_cannot_work_is_told_in_one_line(files, arguments, message):
    result = generate(files[0], "--seed", 1, *arguments)

    assert result.exit_code == 2
    assert message in result.stderr


def test_a_folder_without_a_pipeline_is_refused(tmp_path):
    result = generate(tmp_path, "--seed", 1)

    assert result.exit_code == 2
    assert f"{tmp_path}: must be" in result.stderr
    assert "model_index.json" in result.stderr


@pytest.mark.parametrize(
    ("template", "seeds", "expected"),
    [
        ("a.png", [7], ["a.png"]),
        ("a.png", [7, 8], ["a-0.png", "a-1.png"]),
        ("a.b.JPG", [7, 8], ["a.b-0.JPG", "a.b-1.JPG"]),
        ("a-{seed}.png", [7, 8], ["a-7.png", "a-8.png"]),
        ("{index:03}.png", [7], ["000.png"]),
        ("{{a}}.png", [7], ["{a}.png"]),
    ],
)
def test_templates_name_every_picture(template, seeds, expected):
    assert [str(path) for path in picture_paths(template, seeds)] == expected


def test_templates_reach_nothing_but_their_fields():
    with pytest.raises(OutputError, match="fields"):
        picture_paths("{seed.__class__}.png", [7])
