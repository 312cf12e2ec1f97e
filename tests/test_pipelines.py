"""Schedules on other pipelines and schedulers: the steps are the denoiser's own, with no callback."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionXLImg2ImgPipeline,
)
from PIL import Image

from lora_mixer import LoraMixer, Mix
from tests.models import tiny_sd, tiny_sdxl
from tests.test_side import file_of

CLOSE = 1e-4
FAR = 1e-2
SIZE = 32
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8))
HALF = Image.fromarray(np.repeat([[0, 255]], SIZE // 2, 1).repeat(SIZE, 0).astype(np.uint8))
BASIC = {"prompt": "a castle", "num_inference_steps": 6, "guidance_scale": 3.0, "output_type": "np"}
SIZED = {"height": SIZE, "width": SIZE}


def parts_of(pipe: Any) -> dict[str, Any]:
    return {
        name: part for name, part in pipe.components.items() if name != "image_encoder" or part is not None
    }


def text_to_image(scheduler: Any) -> tuple[Any, dict[str, Any]]:
    pipe = tiny_sd()
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    return pipe, SIZED


def image_to_image() -> tuple[Any, dict[str, Any]]:
    pipe = StableDiffusionImg2ImgPipeline(**parts_of(tiny_sd()), requires_safety_checker=False)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    return pipe, {"image": PICTURE, "strength": 0.5}


def xl_image_to_image() -> tuple[Any, dict[str, Any]]:
    return StableDiffusionXLImg2ImgPipeline(**tiny_sdxl().components), {"image": PICTURE, "strength": 0.7}


def inpainting() -> tuple[Any, dict[str, Any]]:
    pipe = StableDiffusionInpaintPipeline(**parts_of(tiny_sd()), requires_safety_checker=False)
    return pipe, {"image": PICTURE, "mask_image": HALF, "strength": 0.8, **SIZED}


CASES = {
    "two calls a step (Heun)": lambda: text_to_image(HeunDiscreteScheduler),
    "calls at shared noise levels (PNDM)": lambda: text_to_image(PNDMScheduler),
    "no guidance": lambda: (text_to_image(EulerDiscreteScheduler)[0], {**SIZED, "guidance_scale": 1.0}),
    "img2img": image_to_image,
    "SDXL img2img": xl_image_to_image,
    "inpainting": inpainting,
}


@pytest.mark.parametrize("case", list(CASES))
@pytest.mark.parametrize("engine", ["merged", "side"])
def test_a_schedule_equals_setting_weights_at_each_noise_level(case: str, engine: str) -> None:
    pipe, more = CASES[case]()
    pipe.set_progress_bar_config(disable=True)
    mixer = LoraMixer(pipe)
    for seed, name in enumerate("ab"):
        mixer.load_lora_weights(file_of(pipe, seed + 1), name, activate=False)
    called: list[float] = []

    def seen(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        called.append(float(kwargs.get("timestep", args[1] if len(args) > 1 else None)))

    def draw(**callback: Any) -> np.ndarray:
        generator = torch.Generator().manual_seed(0)
        return pipe(**BASIC | more, generator=generator, **callback).images[0]

    hook = pipe.unet.register_forward_pre_hook(seen, with_kwargs=True)
    base = draw()
    hook.remove()
    levels = list(dict.fromkeys(called))
    mix = Mix.of({"a": {"weight": 0.9, "schedule": "0@0,1@1"}, "b": 0.3})
    text = mix.gain_at("a", "text_encoder", "", 0, len(levels))

    def put(call: int) -> None:
        step = levels.index(called[call])
        weight = {"unet": mix.gain_at("a", "unet", "", step, len(levels)), "te": text}
        mixer.set_adapters(["a", "b"], [weight, {"unet": 0.3, "te": 0.3}])

    def after(_pipe: Any, step: int, _time: Any, state: dict[str, Any]) -> dict[str, Any]:
        if step + 1 < len(called):
            put(step + 1)
        return state

    put(0)
    by_hand = draw(callback_on_step_end=after)
    mixer.disable_lora()
    with mixer.applied(mix, engine=engine):
        scheduled = draw()

    assert len(levels) > 2
    assert np.abs(scheduled - by_hand).max() < CLOSE
    assert np.abs(scheduled - base).max() > FAR
