"""Offloading by groups, 8 bits, and what is done when memory is too small, with mixes in effect."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from lora_mixer import LoraMixer, PictureError, PictureMaker, PictureRequest, load_pipeline
from lora_mixer.demo import demo_adapters
from lora_mixer.pictures import SmallerSettingWarning, placing
from lora_mixer.pictures.model_options import OFFLOADS

CPU = torch.device("cpu")
BASE = PictureRequest("an owl, ink drawing", seed=3, steps=2, guidance_scale=3.0)
MIXED = replace(BASE, mix={"ink": 0.8})


def mixer_of(pipe):
    mixer = LoraMixer(pipe)
    mixer.load_lora_weights(demo_adapters()["ink"].path, adapter_name="ink")
    mixer.set_mix({})
    return mixer


def pixels(mixer, request=MIXED, **options):
    (picture,) = PictureMaker(mixer, **options).make([request])
    return np.asarray(picture.image).astype(float)


@pytest.fixture(scope="module")
def plain():
    return pixels(mixer_of(load_pipeline("demo", device="cpu")))


def state_of(pipe):
    parts = (pipe.unet, pipe.text_encoder)
    return [(t, t.detach().clone()) for part in parts for t in (*part.parameters(), *part.buffers())]


def test_groups_wait_in_host_memory_and_the_mix_is_in_the_picture(plain):
    pipe = placing.offload(load_pipeline("demo", device="cpu"), "group", CPU)
    before = state_of(pipe)
    mixer = mixer_of(pipe)

    assert placing.offload_of(pipe) == "group"
    assert (pixels(mixer) == plain).all()
    mixer.unload_lora_weights()
    assert all(torch.equal(tensor, kept) for tensor, kept in before)


def test_groups_are_known_however_they_came_about():
    pipe = load_pipeline("demo", device="cpu")
    assert placing.offload_of(pipe) == "none"

    pipe.unet.enable_group_offload(onload_device=CPU, offload_device=CPU, offload_type="leaf_level")

    assert placing.offload_of(pipe) == "group"


def test_eight_bits_hold_the_denoiser_and_the_mix_is_in_the_picture(plain):
    pipe = load_pipeline("demo", device="cpu", fp8=True)
    held = {p.dtype for name, p in pipe.unet.named_parameters() if name.endswith("attn1.to_q.weight")}
    before = state_of(pipe)
    mixer = mixer_of(pipe)

    base, mixed = pixels(mixer, BASE), pixels(mixer)

    assert held == {torch.float8_e4m3fn}
    # 3 bits of mantissa move the picture; what the mix does to it is larger by far
    assert np.abs(mixed - plain).mean() < np.abs(mixed - base).mean() / 2
    mixer.unload_lora_weights()
    assert all(torch.equal(tensor, kept) for tensor, kept in before)


def test_eight_bits_need_a_denoiser_that_can_be_stored_so():
    class Pipe:
        unet = torch.nn.Linear(2, 2)

    with pytest.raises(PictureError, match="fp8: Pipe has no denoiser that can be stored in 8 bits"):
        placing.store_in_eight_bits(Pipe(), torch.float32)


def test_plans_and_commands_know_every_way():
    from lora_mixer.batches import plan_schema

    run = plan_schema()["$defs"]["RunOptions"]["properties"]

    assert tuple(run["offload"]["enum"]) == OFFLOADS
    assert run["fp8"]["default"] is False


def full_until(monkeypatch, mixer, enough):
    """Let calls of the UNet run out of memory until ``enough`` says of the pipeline that they may go on."""
    own, calls = type(mixer.pipe.unet).forward, []

    def forward(self, *arguments, **more):
        calls.append(enough(mixer.pipe))
        if not calls[-1]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return own(self, *arguments, **more)

    monkeypatch.setattr(type(mixer.pipe.unet), "forward", forward)
    return calls


def test_a_picture_that_does_not_fit_is_made_with_the_next_smaller_setting(monkeypatch, plain):
    mixer = mixer_of(load_pipeline("demo", device="cpu"))
    mixer.set_mix("ink:0.3")
    calls = full_until(monkeypatch, mixer, lambda pipe: pipe.vae.use_tiling)

    with pytest.warns(SmallerSettingWarning, match=r"memory of cpu is too small .* goes on with vae_tiling"):
        made = pixels(mixer)

    assert calls[:2] == [False, True]
    assert (made == plain).all()  # one tile holds all of it
    assert mixer.mix.to_text() == "ink:0.3"


def test_settings_follow_each_other_from_what_costs_least(monkeypatch):
    mixer = mixer_of(load_pipeline("demo", device="cpu"))
    monkeypatch.setattr(placing, "_on_gpu", lambda pipe: True)
    monkeypatch.setattr(placing, "offload", lambda pipe, way, device: setattr(pipe, placing._OFFLOAD, way))
    full_until(monkeypatch, mixer, lambda pipe: placing.offload_of(pipe) == "sequential")

    with pytest.warns(SmallerSettingWarning) as told:
        pixels(mixer)

    assert [str(each.message).rpartition(" with ")[2] for each in told] == [
        "offload model",
        "vae_tiling",
        "offload sequential",
    ]


@pytest.mark.filterwarnings("ignore::lora_mixer.pictures.SmallerSettingWarning")
@pytest.mark.parametrize(("smaller", "used"), [("same_pixels", False), ("none", False), ("any", True)])
def test_settings_that_change_pixels_are_taken_only_where_that_is_allowed(monkeypatch, smaller, used):
    mixer = mixer_of(load_pipeline("demo", device="cpu"))
    full_until(monkeypatch, mixer, lambda pipe: False)

    with pytest.raises(PictureError, match="too small for") as error:
        pixels(mixer, smaller=smaller)

    assert mixer.pipe.vae.use_tiling is used
    # what is in use already is not proposed again
    assert ("vae_tiling=True" in str(error.value)) is not used
    assert "dtype='float16'" in str(error.value)


def test_other_ways_are_refused():
    with pytest.raises(PictureError, match="smaller must be any, same_pixels or none, got 'yes'"):
        PictureMaker(LoraMixer(load_pipeline("demo", device="cpu")), smaller="yes")
