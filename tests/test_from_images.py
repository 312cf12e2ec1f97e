"""img2img, inpainting, ControlNet and a second pass: diffusers' own pictures, with the same mix, from requests, plans and commands."""

from __future__ import annotations

import dataclasses
import json

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from lora_mixer import LoraMixer, PictureError, PictureMaker, PictureRequest, PlanError, load_pipeline
from lora_mixer.batches import check_plan
from lora_mixer.cli._app import app
from lora_mixer.errors import SourceNotFoundError
from lora_mixer.picture_metadata import read_picture
from tests import single_files
from tests.models import tiny_sd, tiny_sdxl
from tests.test_prompting import lora

PIPES = {"sd": tiny_sd, "sdxl": tiny_sdxl}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    noise = np.random.default_rng(0)
    Image.fromarray(noise.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(folder / "start.png")
    mask = np.zeros((32, 32), dtype=np.uint8)
    mask[:, 16:] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    Image.fromarray(mask[:16]).save(folder / "other.png")
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


def prepared(pipe):
    mixer = LoraMixer(pipe)
    mixer.load_lora_weights(lora(pipe, 0), adapter_name="a")
    mixer.set_mix({})
    return mixer


def made(mixer, **fields):
    request = PictureRequest("a castle", seed=3, steps=4, mix={"a": 0.8}, **fields)
    (picture,) = PictureMaker(mixer).make([request])
    return np.asarray(picture.image).astype(int)


def by_hand(mixer, kind, **arguments):
    pipe = kind.from_pipe(mixer.pipe)
    with mixer.applied({"a": 0.8}):
        image = pipe(
            "a castle", num_inference_steps=4, generator=torch.Generator().manual_seed(3), **arguments
        ).images[0]  # fmt: skip
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("name", PIPES)
def test_pictures_out_of_pictures_are_diffusers_own_with_the_mix(name, files):
    mixer = prepared(PIPES[name]())
    start = Image.open(files / "start.png").convert("RGB")

    got = made(mixer, image=str(files / "start.png"), strength=0.6)

    expected = by_hand(mixer, diffusers.AutoPipelineForImage2Image, image=start, strength=0.6)
    assert np.abs(got - expected).max() <= 1
    without = np.asarray(
        next(iter(PictureMaker(mixer).make([PictureRequest("a castle", seed=3, steps=4, image=str(files / "start.png"), strength=0.6)]))).image
    ).astype(int)  # fmt: skip
    assert np.abs(got - without).max() > 1


@pytest.mark.parametrize("name", PIPES)
def test_a_mask_says_what_is_made_anew(name, files):
    mixer = prepared(PIPES[name]())
    start, mask = Image.open(files / "start.png").convert("RGB"), Image.open(files / "mask.png")

    got = made(
        mixer,
        image=str(files / "start.png"),
        mask_image=str(files / "mask.png"),
        strength=1.0,
        guidance_scale=4.0,
    )

    expected = by_hand(
        mixer,
        diffusers.AutoPipelineForInpainting,
        image=start,
        mask_image=mask,
        strength=1.0,
        guidance_scale=4.0,
        width=32,
        height=32,
    )
    assert np.abs(got - expected).max() <= 1


def test_the_size_asked_for_is_the_pictures_and_others_are_cut_to_eights(files, tmp_path):
    mixer = prepared(tiny_sd())
    Image.open(files / "start.png").resize((37, 45)).save(tmp_path / "odd.png")

    assert made(mixer, image=str(tmp_path / "odd.png")).shape == (40, 32, 3)
    assert made(mixer, image=str(tmp_path / "odd.png"), width=16, height=24).shape == (24, 16, 3)


@pytest.mark.parametrize("name", PIPES)
def test_a_second_pass_is_img2img_over_the_first(name, files, tmp_path):
    mixer = prepared(PIPES[name]())
    first = made(mixer, width=16, height=16)
    Image.fromarray(first.astype(np.uint8)).resize((24, 24), Image.Resampling.LANCZOS).save(
        tmp_path / "first.png"
    )

    got = made(mixer, width=16, height=16, second_pass=1.5, second_pass_strength=0.7)

    assert np.abs(got - made(mixer, image=str(tmp_path / "first.png"), strength=0.7)).max() <= 1
    assert got.shape == (24, 24, 3)


def test_the_sampler_and_the_scheduler_are_as_before_afterwards(files):
    mixer = prepared(tiny_sd())
    own = mixer.pipe.scheduler

    got = made(mixer, image=str(files / "start.png"), strength=0.6, sampler="DDIM", second_pass=1.5)

    assert got.shape == (48, 48, 3)
    assert mixer.pipe.scheduler is own
    assert mixer.mixes == () or mixer.mix.names == ()


def test_pictures_with_and_without_images_share_no_call(files):
    mixer = prepared(tiny_sd())
    plain = PictureRequest("a castle", steps=2, width=32, height=32)
    asked = [plain, dataclasses.replace(plain, image=str(files / "start.png"), seed=1),
             dataclasses.replace(plain, image=str(files / "start.png"), seed=2)]  # fmt: skip

    pictures = sorted(PictureMaker(mixer, batch_size=4).make(asked), key=lambda each: each.index)

    assert [each.batch for each in pictures] == [1, 2, 2]
    alone = next(iter(PictureMaker(mixer).make([asked[2]])))
    assert np.abs(np.asarray(alone.image).astype(int) - np.asarray(pictures[2].image).astype(int)).max() <= 1


# --- ControlNet --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def controlled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("control")
    small = tiny_sd()
    torch.manual_seed(4)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    vae = diffusers.AutoencoderKL(block_out_channels=(4, 4, 4, 8), norm_num_groups=2, **blocks).eval()
    # a ControlNet's own layers shrink its image by 8, as real VAEs do
    pipe = diffusers.StableDiffusionPipeline(
        **{**small.components, "vae": vae}, requires_safety_checker=False
    )
    pipe.save_pretrained(folder / "model")
    torch.manual_seed(5)
    net = diffusers.ControlNetModel.from_unet(pipe.unet, conditioning_channels=3)
    with torch.no_grad():
        for block in (
            *net.controlnet_down_blocks,
            net.controlnet_mid_block,
            net.controlnet_cond_embedding.conv_out,
        ):
            block.weight.normal_(0, 0.5)
    net.save_pretrained(folder / "net")
    single_files.save(net.state_dict(), folder / "net.safetensors")
    return folder


@pytest.mark.parametrize("form", ["net", "net.safetensors"])
def test_a_controlnet_follows_its_image_alone_and_beside_another(controlled, files, form):
    mixer = prepared(
        load_pipeline(str(controlled / "model"), controlnet=str(controlled / form), device="cpu")
    )
    control = str(files / "mask.png")
    picture = Image.open(control).convert("RGB")

    got = made(mixer, control_image=control, width=64, height=64, controlnet_conditioning_scale=0.7)
    both = made(
        mixer, control_image=control, image=str(files / "start.png"), strength=0.6, width=64, height=64
    )

    pipe = mixer.pipe
    with mixer.applied({"a": 0.8}):
        expected = pipe(
            "a castle", image=picture.resize((64, 64), Image.Resampling.LANCZOS), num_inference_steps=4, width=64, height=64, controlnet_conditioning_scale=0.7,
            generator=torch.Generator().manual_seed(3),
        ).images[0]  # fmt: skip
    assert np.abs(got - np.asarray(expected).astype(int)).max() <= 1
    assert np.abs(got - made(mixer, control_image=str(files / "start.png"), width=64, height=64)).max() > 1
    assert both.shape == (64, 64, 3)


def test_a_controlnet_of_another_base_is_refused(controlled, tmp_path):
    tiny_sdxl().save_pretrained(tmp_path / "sdxl")

    with pytest.raises(
        PictureError, match="was made for another base: it attends to texts of width 12, the model to 28"
    ):
        load_pipeline(str(tmp_path / "sdxl"), controlnet=str(controlled / "net"), device="cpu")
    other = single_files.save({"lora_x.lora_down.weight": torch.zeros(1, 1)}, tmp_path / "x.safetensors")
    with pytest.raises(SourceNotFoundError, match="expected a ControlNet, got an adapter"):
        load_pipeline(str(controlled / "model"), controlnet=str(other), device="cpu")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image": "nowhere.png"}, r"nowhere\.png: image: cannot be read: No such file"),
        ({"image": "broken.png"}, r"broken\.png: image: cannot be read"),
        (
            {"image": "start.png", "mask_image": "other.png"},
            "mask_image: 32x16 pixels, expected the 32x32 of the image",
        ),
        ({"mask_image": "mask.png"}, "mask_image: needs an image"),
        ({"strength": 0.5}, "strength: needs an image"),
        ({"control_image": "mask.png"}, "needs a model that was loaded with a ControlNet"),
        ({"second_pass_strength": 0.5}, "needs a second_pass"),
        ({"image": "/dev/zero"}, "is a device"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_made(files, fields, message):
    mixer = prepared(tiny_sd())
    given = {key: str(files / value) if isinstance(value, str) and (files / value).exists() else value
             for key, value in fields.items()}  # fmt: skip

    with pytest.raises(PictureError, match=message) as caught:
        PictureMaker(mixer).make([PictureRequest("a castle", **given)])
    assert "\n" not in str(caught.value)


def test_plans_see_images_from_their_folder_and_know_when_they_change(files, tmp_path):
    (tmp_path / "start.png").write_bytes((files / "start.png").read_bytes())
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps({"jobs": [{"prompt": "a", "image": "start.png", "strength": 0.5}]}))

    checked = check_plan(plan)
    key = checked.key(checked.pictures[0])
    (tmp_path / "start.png").write_bytes((files / "mask.png").read_bytes())

    assert checked.pictures[0].request.image == str(tmp_path / "start.png")
    assert checked.key(checked.pictures[0]) != key
    plan.write_text(json.dumps({"jobs": [{"prompt": "a", "image": "gone.png"}]}))
    with pytest.raises(PlanError, match=r"jobs\[0\]\.image: .*gone\.png: cannot be read"):
        check_plan(plan)


def test_the_command_makes_them_and_the_picture_names_no_folder(controlled, files, tmp_path):
    out = tmp_path / "x.png"

    result = CliRunner().invoke(
        app,
        ["generate", "--model", str(controlled / "model"), "--prompt", "x", "--seed", "1", "--steps", "4", "--image",
         str(files / "start.png"), "--strength", "0.5", "--second-pass", "1.5", "--out", str(out)],
    )  # fmt: skip

    assert result.exit_code == 0, result.stderr
    settings = read_picture(out)
    assert (settings.image, settings.strength, settings.second_pass, settings.width) == (
        "start.png",
        0.5,
        1.5,
        48,
    )
