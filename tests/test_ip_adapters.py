"""IP-Adapters from requests, plans and commands: diffusers' own pictures, with the same mix."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
from typer.testing import CliRunner

from lora_mixer import LoraMixer, PictureError, PictureMaker, PictureRequest, load_pipeline
from lora_mixer.batches import check_plan
from lora_mixer.cli._app import app
from lora_mixer.errors import LoraMixerError, SourceNotFoundError
from lora_mixer.picture_metadata import read_picture
from lora_mixer.pictures import read_checkpoint
from tests.models import tiny_sd, tiny_sdxl
from tests.test_prompting import lora

PIPES = {"sd": tiny_sd, "sdxl": tiny_sdxl}
WIDTH, TOKENS = 24, 4


def write_adapter(pipe, folder):
    """Write an IP-Adapter for a pipeline, in the names of its authors, with its image encoder beside it."""
    torch.manual_seed(11)
    texts = pipe.unet.config.cross_attention_dim
    tensors = {
        "image_proj.proj.weight": torch.randn(TOKENS * texts, WIDTH) * 0.3, "image_proj.proj.bias": torch.zeros(TOKENS * texts),
        "image_proj.norm.weight": torch.ones(texts), "image_proj.norm.bias": torch.zeros(texts),
    }  # fmt: skip
    names = [name for name in pipe.unet.attn_processors if name.endswith("attn2.processor")]
    for number, name in enumerate(names):
        heads = pipe.unet.get_submodule(name.removesuffix(".processor")).to_k.weight.shape[0]
        for leaf in "kv":
            tensors[f"ip_adapter.{2 * number + 1}.to_{leaf}_ip.weight"] = torch.randn(heads, texts)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "ip.safetensors")
    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=16,
        projection_dim=WIDTH,
    )  # fmt: skip
    CLIPVisionModelWithProjection(config).save_pretrained(folder / "image_encoder")
    return folder / "ip.safetensors"


@pytest.fixture(scope="module", params=PIPES)
def prepared(request, tmp_path_factory):
    """Return the folder of a model, its adapter, and two images."""
    folder = tmp_path_factory.mktemp("ip")
    pipe = PIPES[request.param]()
    pipe.save_pretrained(folder / "model")
    file = write_adapter(pipe, folder / "adapter")
    noise = np.random.default_rng(5)
    for name in ("face", "other"):
        pixels = noise.integers(0, 255, (48, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return folder, file


def mixer_of(prepared):
    folder, file = prepared
    mixer = LoraMixer(load_pipeline(str(folder / "model"), ip_adapter=str(file), device="cpu"))
    mixer.load_lora_weights(lora(mixer.pipe, 0), adapter_name="a")
    mixer.set_mix({})
    return mixer


def request(prepared, **fields):
    given = {
        "ip_adapter_image": str(prepared[0] / "face.png"),
        "ip_adapter_scale": 0.7,
        "mix": {"a": 0.8},
        **fields,
    }
    return PictureRequest("a castle", seed=3, steps=3, width=32, height=32, guidance_scale=5.0, **given)


def pixels(mixer, *requests, **options):
    made = sorted(PictureMaker(mixer, **options).make(requests), key=lambda picture: picture.index)
    return [np.asarray(picture.image).astype(int) for picture in made]


def test_the_picture_is_diffusers_own_with_the_mix(prepared):
    mixer = mixer_of(prepared)
    asked = request(prepared)

    got, weaker, other, unmixed = pixels(
        mixer, asked, replace(asked, ip_adapter_scale=0.0),
        replace(asked, ip_adapter_image=str(prepared[0] / "other.png")), replace(asked, mix={}),
    )  # fmt: skip
    mixer.pipe.set_ip_adapter_scale(0.7)
    with mixer.applied({"a": 0.8}):
        expected = mixer.pipe(
            "a castle", num_inference_steps=3, width=32, height=32, guidance_scale=5.0,
            generator=torch.Generator().manual_seed(3), ip_adapter_image=Image.open(prepared[0] / "face.png"),
        ).images[0]  # fmt: skip

    assert np.abs(got - np.asarray(expected).astype(int)).max() <= 1
    for different in (weaker, other, unmixed):
        assert np.abs(got - different).max() > 1


def test_the_strength_is_as_before_afterwards_and_1_where_nothing_is_said(prepared):
    mixer = mixer_of(prepared)
    mixer.pipe.set_ip_adapter_scale(0.25)

    plain, whole = pixels(
        mixer, request(prepared, ip_adapter_scale=None), request(prepared, ip_adapter_scale=1.0)
    )

    assert (plain == whole).all()
    scales = {
        tuple(each.scale) for each in mixer.pipe.unet.attn_processors.values() if hasattr(each, "scale")
    }
    assert scales == {(0.25,)}


def test_pictures_share_a_call_where_they_show_the_same_image_alone(prepared):
    mixer = mixer_of(prepared)
    asked = [
        request(prepared),
        replace(request(prepared), seed=4),
        request(prepared, ip_adapter_image=str(prepared[0] / "other.png")),
    ]

    together = sorted(PictureMaker(mixer, batch_size=4).make(asked), key=lambda picture: picture.index)

    assert [picture.batch for picture in together] == [2, 2, 1]
    alone = pixels(mixer, *asked)
    assert all(
        np.abs(np.asarray(a.image).astype(int) - b).max() <= 1 for a, b in zip(together, alone, strict=True)
    )


def test_it_goes_with_an_image_to_start_from_emphasis_and_a_second_pass(prepared):
    mixer = mixer_of(prepared)
    start = str(prepared[0] / "other.png")

    first, changed = pixels(
        mixer,
        request(prepared, image=start, strength=0.6),
        request(prepared, image=start, strength=0.6, ip_adapter_scale=0.0),
    )
    (large,) = pixels(mixer, replace(request(prepared, second_pass=1.5), prompt="a (castle:1.3)"))

    assert np.abs(first - changed).max() > 1
    assert large.shape == (48, 48, 3)


def test_what_cannot_be_is_one_sentence(prepared, tmp_path):
    folder, file = prepared
    mixer = mixer_of(prepared)
    plain = LoraMixer(load_pipeline(str(folder / "model"), device="cpu"))
    cases = [
        (
            mixer,
            {"ip_adapter_image": None, "ip_adapter_scale": None},
            "ip_adapter_image: the model has an IP-Adapter, which needs one",
        ),
        (mixer, {"ip_adapter_image": str(folder / "gone.png")}, "cannot be read"),
        (plain, {"mix": {}}, "name one with ip_adapter="),
        (plain, {"mix": {}, "ip_adapter_image": None}, "ip_adapter_scale: needs"),
    ]
    for owner, fields, message in cases:
        with pytest.raises(PictureError, match=message):
            PictureMaker(owner).make([request(prepared, **fields)])

    other = tiny_sdxl() if (folder / "model" / "text_encoder_2").is_dir() is False else tiny_sd()
    wrong = write_adapter(other, tmp_path / "wrong")
    alone = tmp_path / "alone" / "ip.safetensors"
    alone.parent.mkdir()
    alone.write_bytes(file.read_bytes())
    save_file({"lora_unet_x.lora_down.weight": torch.zeros(1, 1)}, tmp_path / "lora.safetensors")
    for given, error, message in (
        (wrong, PictureError, "made for another base"),
        (alone, SourceNotFoundError, "image_encoder="),
        (tmp_path / "lora.safetensors", SourceNotFoundError, "expected an IP-Adapter, got an adapter"),
        (tmp_path / "gone.safetensors", SourceNotFoundError, "is not there"),
    ):
        with pytest.raises(error, match=message):
            load_pipeline(str(folder / "model"), ip_adapter=str(given), device="cpu")
    with pytest.raises(LoraMixerError, match="got an IP-Adapter; give it beside a model, with ip_adapter="):
        load_pipeline(str(file), device="cpu")
    assert read_checkpoint(file).kind == "ip-adapter"


def test_plans_and_the_command_take_it(prepared, tmp_path):
    folder, file = prepared
    model = {"source": "model", "ip_adapter": "adapter/ip.safetensors"}
    job = {"prompt": "a castle", "ip_adapter_image": "face.png", "steps": 2, "seed": 1, "size": "32x32"}
    (folder / "plan.json").write_text(json.dumps({"model": model, "jobs": [job]}))

    checked = check_plan(folder / "plan.json")
    result = CliRunner().invoke(app, [
        "generate", "--model", str(folder / "model"), "--ip-adapter", str(file), "--ip-adapter-image", str(folder / "face.png"),
        "--ip-adapter-scale", "0.5", "--prompt", "a castle", "--steps", "2", "--seed", "1", "--width", "32", "--height", "32",
        "--out", str(tmp_path / "x.png"),
    ])  # fmt: skip

    assert checked.plan.options.ip_adapter == str(file)
    assert checked.pictures[0].request.ip_adapter_image == str(folder / "face.png")
    assert result.exit_code == 0, result.stderr
    settings = read_picture(tmp_path / "x.png")
    assert settings.ip_adapter_scale == 0.5
    assert settings.ip_adapter_image == "face.png"  # no folder of ours
