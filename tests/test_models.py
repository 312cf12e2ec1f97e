"""Models by name: single-file checkpoints, folders, the demo; what other files are is said in one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from lora_mixer import LoraMixerError, PictureError, SourceNotFoundError, load_pipeline
from lora_mixer.cli._app import app
from lora_mixer.errors import CorruptFileError
from lora_mixer.pictures import ModelOptions, find_models, load_outline, read_checkpoint
from lora_mixer.pictures.base_configs import write_config_folder
from lora_mixer.pictures.checkpoints import Checkpoint
from tests import single_files
from tests.models import tiny_sd, tiny_sdxl


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {
        "sd": single_files.write_checkpoint(tiny_sd(), folder / "sd.safetensors"),
        "sdxl": single_files.write_checkpoint(tiny_sdxl(), folder / "sdxl.safetensors"),
    }


def weights(pipe):
    parts = [name for name in ("unet", "vae", "text_encoder", "text_encoder_2") if hasattr(pipe, name)]
    return {
        f"{part}.{key.removeprefix('text_model.')}": value
        for part in parts
        for key, value in getattr(pipe, part).state_dict().items()
        if "position_ids" not in key
    }


@pytest.mark.parametrize(("name", "make"), [("sd", tiny_sd), ("sdxl", tiny_sdxl)])
def test_a_single_file_is_the_pipeline_that_it_was_written_from(made, name, make):
    loaded, source = load_pipeline(str(made[name]), device="cpu"), make()

    assert type(loaded) is type(source)
    expected, got = weights(source), weights(loaded)
    assert set(got) == set(expected)
    assert all(torch.equal(got[key], expected[key]) for key in expected)
    image, same = (
        pipe(
            "a castle", num_inference_steps=2, output_type="np", generator=torch.Generator().manual_seed(1)
        ).images
        for pipe in (source, loaded)
    )
    assert (
        np.abs(image - same).max() < 1e-5
    )  # weights that lie elsewhere in memory may be summed in another order


def test_a_single_file_needs_no_network_and_leaves_no_folder(made, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    load_pipeline(str(made["sd"]), device="cpu")

    assert list(tmp_path.iterdir()) == []


def test_a_config_can_be_named_and_lies_elsewhere(made, tmp_path):
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes(made["sd"].read_bytes())

    pipe = load_pipeline(str(alone), config=str(made["sd"].with_suffix("")), device="cpu")

    assert torch.equal(pipe.unet.conv_in.weight, tiny_sd().unet.conv_in.weight)
    with pytest.raises(SourceNotFoundError, match="diffusers folder"):
        load_pipeline(str(alone), config=str(tmp_path), device="cpu")


@pytest.mark.parametrize("form", ["ldm file", "bare ldm file", "folder", "diffusers file"])
def test_a_vae_of_its_own_is_taken(made, form, tmp_path):
    vae = tiny_sd().vae
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.mul_(1.5)
    if form == "folder":
        vae.save_pretrained(tmp_path / "vae")
        place = tmp_path / "vae"
    elif form == "diffusers file":
        place = single_files.save(vae.state_dict(), tmp_path / "vae.safetensors")
    else:
        prefix = "first_stage_model." if form == "ldm file" else ""
        place = single_files.save(single_files.vae_tensors(vae, prefix), tmp_path / "vae.safetensors")

    tiny_sd().save_pretrained(tmp_path / "model")
    for model in (str(made["sd"]), str(tmp_path / "model")):
        loaded = load_pipeline(model, vae=str(place), device="cpu").vae.state_dict()

        assert all(torch.equal(loaded[key], value) for key, value in vae.state_dict().items())


def test_weights_are_loaded_in_the_dtype_asked_for(made):
    pipe = load_pipeline(str(made["sd"]), dtype="bfloat16", device="cpu")

    assert {part.dtype for part in (pipe.unet, pipe.vae, pipe.text_encoder)} == {torch.bfloat16}


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_the_outline_of_a_single_file_has_the_modules_without_weights(made, name):
    outline = load_outline(str(made[name]))

    assert set(outline.components) == {"unet", "text_encoder"} | (
        {"text_encoder_2"} if name == "sdxl" else set()
    )
    assert all(p.device.type == "meta" for p in outline.components["unet"].parameters())
    pipe = load_pipeline(str(made[name]), device="cpu")
    assert {k: v.shape for k, v in outline.components["unet"].state_dict().items()} == {
        k: v.shape for k, v in pipe.unet.state_dict().items()
    }


OTHERS = {
    "adapter": {"lora_unet_x.lora_down.weight": (4, 8), "lora_unet_x.lora_up.weight": (8, 4)},
    "vae": {"encoder.conv_in.weight": (4, 3, 3, 3), "decoder.up.0.block.0.conv1.weight": (4, 4, 3, 3)},
    "controlnet": {"control_model.input_blocks.0.0.weight": (4, 4, 3, 3)},
    "text encoder": {"text_model.encoder.layers.0.mlp.fc1.weight": (4, 4)},
    "embedding": {"emb_params": (2, 768)},
    "denoiser": {"model.diffusion_model.input_blocks.0.0.weight": (4, 4, 3, 3)},
    "unknown": {"layer.weight": (2, 2)},
}


@pytest.mark.parametrize("kind", OTHERS)
def test_files_of_other_kinds_are_told_apart_and_refused_by_name(kind, tmp_path):
    path = single_files.save(
        {key: torch.zeros(shape) for key, shape in OTHERS[kind].items()}, tmp_path / "x.safetensors"
    )

    assert read_checkpoint(path).kind == kind
    with pytest.raises(SourceNotFoundError) as caught:
        load_pipeline(str(path), device="cpu")
    assert len(str(caught.value)) < 400
    what = {"adapter": "load_lora_weights", "vae": "vae=", "controlnet": "controlnet=", "denoiser": "config="}
    assert what.get(kind, "") in str(caught.value)


def cut(raw):
    return raw[: len(raw) // 2]


@pytest.mark.parametrize(
    ("content", "error"),
    [(cut, CorruptFileError), (lambda _: b"", CorruptFileError), (lambda _: b"<html>", CorruptFileError),
     (lambda raw: raw + b"\0" * 8, CorruptFileError), (lambda _: b"\xff" * 4096, CorruptFileError)],
)  # fmt: skip
def test_half_downloaded_files_are_refused_by_their_header(made, content, error, tmp_path):
    path = tmp_path / "half.safetensors"
    path.write_bytes(content(made["sd"].read_bytes()))

    with pytest.raises(error, match="half"):
        load_pipeline(str(path), device="cpu")


def test_a_pickle_is_opened_only_when_asked_for(tmp_path, made):
    path = tmp_path / "old.ckpt"
    torch.save({"state_dict": single_files.pipeline_tensors(tiny_sd())}, path)
    folder = str(made["sd"].with_suffix(""))

    with pytest.raises(SourceNotFoundError, match="allow_pickle="):
        load_pipeline(str(path), config=folder, device="cpu")
    pipe = load_pipeline(str(path), config=folder, device="cpu", allow_pickle=True)

    assert torch.equal(pipe.unet.conv_in.weight, tiny_sd().unet.conv_in.weight)


def test_a_pickle_with_code_runs_none(tmp_path):
    class Bad:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"state_dict": {"x": Bad()}}, tmp_path / "bad.ckpt")

    with pytest.raises(CorruptFileError):
        load_pipeline(str(tmp_path / "bad.ckpt"), device="cpu", allow_pickle=True)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("family", "width", "channels", "task", "pipeline"),
    [
        ("SD 1.x", 768, 4, "text", "StableDiffusionPipeline"),
        ("SD 1.x", 768, 9, "inpainting", "StableDiffusionInpaintPipeline"),
        ("SD 2.x", 1024, 4, "text", "StableDiffusionPipeline"),
        ("SDXL", 2048, 4, "text", "StableDiffusionXLPipeline"),
        ("SDXL", 2048, 9, "inpainting", "StableDiffusionXLInpaintPipeline"),
    ],
)
def test_the_base_shows_in_the_header_and_its_config_is_at_hand(
    family, width, channels, task, pipeline, tmp_path
):
    from lora_mixer.pictures.checkpoints import describe_checkpoint

    shapes = {
        "model.diffusion_model.input_blocks.0.0.weight": (320, channels, 3, 3),
        "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": (640, width),
        "first_stage_model.quant_conv.weight": (8, 8, 1, 1),
        "cond_stage_model.x" if width < 2048 else "conditioner.embedders.0.x": (1,),
    }

    held = describe_checkpoint(Path("x"), shapes)
    folder = write_config_folder(held, tmp_path)

    assert (held.kind, held.family, held.task) == ("pipeline", family, task)
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"] == pipeline
    outline = load_outline(str(folder))
    unet = outline.components["unet"]
    assert (unet.config.in_channels, unet.config.cross_attention_dim) == (channels, width)


def test_prediction_and_zero_snr_come_from_the_file(tmp_path):
    folder = write_config_folder(
        Checkpoint(Path("x"), "pipeline", "SDXL", prediction="v_prediction", zero_snr=True), tmp_path
    )

    values = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    assert (values["prediction_type"], values["rescale_betas_zero_snr"]) == ("v_prediction", True)


def test_the_tokenizer_that_comes_along_is_clips(tmp_path):
    from transformers import CLIPTokenizer

    write_config_folder(Checkpoint(Path("x"), "pipeline", "SD 1.x"), tmp_path)
    words = CLIPTokenizer.from_pretrained(tmp_path / "tokenizer")

    # the ids that CLIP's own documentation shows for this sentence
    assert words("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert (len(words), words.model_max_length) == (49408, 77)


def test_find_models_lists_folders_and_whole_checkpoints_only(made, tmp_path):
    tiny_sd().save_pretrained(tmp_path / "a folder")
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "one.safetensors").write_bytes(made["sd"].read_bytes())
    single_files.save({"lora_x.lora_down.weight": torch.zeros(1, 1)}, tmp_path / "lora.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"x")

    found = [str(Path(name).relative_to(tmp_path)) for name in find_models(tmp_path)]

    assert found == ["a folder", "deep/er/one.safetensors"]


@pytest.mark.parametrize(
    "options", [{"dtype": "float8"}, {"device": ""}, {"model": " "}, {"dtype": 7}], ids=repr
)
def test_options_that_make_no_sense_are_refused(options):
    with pytest.raises(PictureError):
        ModelOptions(**options)


@pytest.mark.parametrize("name", ["nope.safetensors", "no/such/folder/x", "."])
def test_models_that_are_not_there_are_one_sentence(name, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    with pytest.raises(LoraMixerError) as caught:
        load_pipeline(name, device="cpu")
    assert name in str(caught.value)


def test_generate_takes_a_single_file_and_a_vae(made, tmp_path):
    vae = single_files.save(single_files.vae_tensors(tiny_sd().vae), tmp_path / "vae.safetensors")
    arguments = ["--prompt", "a castle", "--seed", "1", "--steps", "2", "--out", str(tmp_path / "x.png")]

    result = CliRunner().invoke(app, ["generate", "--model", str(made["sd"]), "--vae", str(vae), *arguments])

    assert result.exit_code == 0, result.stderr
    assert (tmp_path / "x.png").is_file()


def test_plans_name_a_single_file_and_a_vae_as_seen_from_their_folder(made, tmp_path):
    from lora_mixer import run_plan
    from lora_mixer.batches import check_plan

    (tmp_path / "m.safetensors").write_bytes(made["sd"].read_bytes())
    tiny_sd().save_pretrained(tmp_path / "m")
    vae = tiny_sd().vae
    with torch.no_grad():
        vae.decoder.conv_in.weight.mul_(3)
    single_files.save(single_files.vae_tensors(vae), tmp_path / "v.safetensors")
    plan = tmp_path / "plan.json"
    job = {"prompt": "a castle", "steps": 1, "size": "64x64"}
    plain = {"model": "m.safetensors", "jobs": [job]}
    other = {"model": {"source": "m.safetensors", "vae": "v.safetensors"}, "jobs": [job]}

    pictures, keys = [], []
    for number, values in enumerate((plain, other)):
        plan.write_text(json.dumps({**values, "output": {"folder": f"out{number}"}}))
        checked = check_plan(plan)
        keys.append(checked.key(checked.pictures[0]))
        (result,) = run_plan(checked)
        pictures.append(np.asarray(result.open()))

    assert keys[0] != keys[1]
    assert not np.array_equal(*pictures)
    (tmp_path / "v.safetensors").write_bytes(made["sd"].read_bytes())
    changed = check_plan(plan)
    assert changed.key(changed.pictures[0]) != keys[1]
