"""What people give to ``generate`` by mistake: one sentence with the way out, from the command and from plans, and no picture."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from lora_mixer.cli._app import app
from tests import single_files
from tests.models import tiny_sd, tiny_sdxl


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Return a folder with a small model and everything that is none."""
    import diffusers

    folder = tmp_path_factory.mktemp("bad")
    pipe = tiny_sd()
    whole = single_files.write_checkpoint(pipe, folder / "model.safetensors").read_bytes()
    for name, tensors in {
        "lora": {"lora_unet_x.lora_down.weight": (4, 8), "lora_unet_x.lora_up.weight": (8, 4)},
        "locon": {"lora_unet_x.hada_w1_a": (4, 8), "lora_unet_x.hada_w1_b": (8, 4)},
        "peft": {"base_model.model.x.lora_A.weight": (4, 8), "base_model.model.x.lora_B.weight": (8, 4)},
        "vae": {"encoder.conv_in.weight": (4, 3, 3, 3), "decoder.up.0.block.0.conv1.weight": (4, 4, 3, 3)},
        "controlnet": {"control_model.input_blocks.0.0.weight": (4, 4, 3, 3)},
        "clip": {"text_model.encoder.layers.0.mlp.fc1.weight": (4, 4)},
        "t5": {"encoder.block.0.layer.0.SelfAttention.q.weight": (4, 4)},
        "inversion": {"emb_params": (2, 768)},
        "unet": {"model.diffusion_model.input_blocks.0.0.weight": (4, 4, 3, 3)},
        "strange": {"layer.weight": (2, 2)},
    }.items():
        made = {key: torch.zeros(shape) for key, shape in tensors.items()}
        single_files.save(made, folder / f"{name}.safetensors")
    torch.save({"state_dict": {"a": torch.zeros(1)}}, folder / "old.ckpt")
    for name, content in {
        "half": whole[: len(whole) // 2], "header": whole[:5], "empty": b"", "page": b"<html>moved</html>",
        "long": whole + b"\0" * 9,
    }.items():  # fmt: skip
        (folder / f"{name}.safetensors").write_bytes(content)
        if name in ("half", "long"):  # with a configuration, so that only the file is at fault
            (folder / name).symlink_to(folder / "model")
    other = tiny_sdxl()
    diffusers.ControlNetModel.from_unet(other.unet).save_pretrained(folder / "net-of-sdxl")
    Image.new("RGB", (32, 32)).save(folder / "start.png")
    Image.new("L", (32, 16)).save(folder / "mask.png")
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


@dataclass(frozen=True)
class Case:
    """
    A mistake: fields of the request, of the model, and what the sentence must say.

    Files in braces are those of the folder. ``planned`` is False where a plan cannot even say it.
    """

    says: tuple[str, ...]
    picture: dict[str, object] = field(default_factory=dict)
    model: dict[str, object] = field(default_factory=dict)
    run: dict[str, object] = field(default_factory=dict)


def of_model(name, *says):
    return Case(says, model={"source": f"{{{name}}}"})


LONG = " ".join(["castle"] * 10_000)
CASES = {
    "a LoRA as model": of_model("lora.safetensors", "an adapter, not a model", "--lora"),
    "a LoHa as model": of_model("locon.safetensors", "an adapter, not a model", "--lora"),
    "a PEFT file as model": of_model("peft.safetensors", "an adapter, not a model", "--lora"),
    "a VAE as model": of_model("vae.safetensors", "a VAE alone", "--vae"),
    "a ControlNet as model": of_model("controlnet.safetensors", "a ControlNet", "--controlnet"),
    "a CLIP as model": of_model("clip.safetensors", "a text encoder alone"),
    "a T5 as model": of_model("t5.safetensors", "a text encoder alone"),
    "an inversion as model": of_model("inversion.safetensors", "a textual inversion"),
    "a UNet as model": of_model("unet.safetensors", "a denoiser alone", "--config"),
    "something else as model": of_model("strange.safetensors", "nothing that is known as a model"),
    "a pickle as model": of_model("old.ckpt", "a pickle", "--allow-pickle"),
    "a half-downloaded model": of_model("half.safetensors", "half.safetensors"),
    "a model cut in its header": of_model("header.safetensors", "header.safetensors"),
    "an empty model": of_model("empty.safetensors", "empty.safetensors"),
    "a page in place of a model": of_model("page.safetensors", "page.safetensors"),
    "a model with something behind it": of_model("long.safetensors", "long.safetensors"),
    "no such model": of_model("gone.safetensors", "is not there"),
    "a LoRA as VAE": Case(("expected a VAE, got an adapter",), model={"vae": "{lora.safetensors}"}),
    "a LoRA as ControlNet": Case(
        ("expected a ControlNet, got an adapter",), {"control_image": "{start.png}"}, {"controlnet": "{lora.safetensors}"}
    ),
    "a ControlNet of another base": Case(
        ("made for another base",), {"control_image": "{start.png}"}, {"controlnet": "{net-of-sdxl}"}
    ),
    "a sampler that is none": Case(("DPM++ 2N", "did you mean"), {"sampler": "DPM++ 2N"}),
    "a schedule that the sampler cannot carry": Case(
        ("cannot carry karras",), {"sampler": "PLMS", "schedule": "karras"}
    ),
    "a sampler of flow matching": Case(("flow matching",), {"sampler": "Flow Euler"}),
    "emphasis that does not close": Case(("is not closed",), {"prompt": "a (castle:1.2"}),
    "brackets that do not close": Case(("is not closed",), {"prompt": "an [old castle"}),
    "a prompt of 10,000 tokens": Case(("make it shorter",), {"prompt": LONG}),
    "the same as negative prompt": Case(("make it shorter",), {"negative_prompt": LONG}),
    "a mask of another size": Case(
        ("32x16 pixels, expected the 32x32",), {"image": "{start.png}", "mask_image": "{mask.png}"}
    ),
    "a mask without an image": Case(("needs an image",), {"mask_image": "{mask.png}"}),
    "a broken image": Case(("cannot be read",), {"image": "{broken.png}"}),
    "a control image without a ControlNet": Case(("--controlnet",), {"control_image": "{start.png}"}),
    "a device that is not there": Case(("'cuda:97' cannot be used here",), run={"device": "cuda:97"}),
    "a device that is none": Case(("'toaster' cannot be used here",), run={"device": "toaster"}),
    "offloading without a GPU": Case(("on the CPU they are there already",), run={"offload": "group", "device": "cpu"}),
}  # fmt: skip

IN_A_PLAN = {
    "--lora": "among the plan's adapters",
    "--vae": "the model's entry vae",
    "--controlnet": "the model's entry controlnet",
    "--config": "the model's entry config",
    "--allow-pickle": "the model's entry allow_pickle",
}
"""What a plan calls it."""


def filled(values, files):
    return {
        key: str(files / value[1:-1]) if isinstance(value, str) and value.startswith("{") else value
        for key, value in values.items()
    }


@pytest.mark.parametrize("name", CASES)
def test_the_command_says_one_sentence_and_makes_nothing(name, files, tmp_path):
    case = CASES[name]
    given = {"prompt": "a castle", "steps": 1, "seed": 1, **filled(case.picture, files), **case.run}
    model = {"source": str(files / "model.safetensors"), **filled(case.model, files)}
    given |= {"model" if key == "source" else key: value for key, value in model.items()}
    arguments = [x for key, value in given.items() for x in (f"--{key.replace('_', '-')}", str(value))]

    result = CliRunner().invoke(app, ["generate", *arguments, "--out", str(tmp_path / "x.png")])

    said = " ".join(result.stderr.split())
    assert result.exit_code == 2, said[-500:]
    assert "Traceback" not in said
    assert said.count("error: ") <= 1
    assert len(said) < 900
    assert [word for word in case.says if word not in said.replace("│ ", "").replace(" │", "")] == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", CASES)
def test_a_plan_says_it_and_makes_nothing(name, files, tmp_path):
    case = CASES[name]
    job = {"prompt": "a castle", "steps": 1, "seed": 1, **filled(case.picture, files)}
    model = {"source": str(files / "model.safetensors"), **filled(case.model, files)}
    plan = {"model": model, "run": case.run, "jobs": [job], "output": {"folder": str(tmp_path / "out")}}
    (tmp_path / "plan.json").write_text(json.dumps(plan))

    result = CliRunner().invoke(app, ["batch", str(tmp_path / "plan.json")])

    said = " ".join((result.stderr + result.stdout).split())
    assert result.exit_code in (1, 2), said[-500:]
    assert "Traceback" not in said
    assert [word for word in case.says if IN_A_PLAN.get(word, word) not in said] == []
    assert not list(tmp_path.rglob("*.png"))
