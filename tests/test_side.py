"""The side path beside the merged engine: in time, in place, per image; the same pictures, and nothing left behind."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler, PNDMScheduler

from lora_mixer import LoraMixer, Mix, MixError
from lora_mixer.engines.denoiser.images import stated_layout
from lora_mixer.engines.denoiser.places import Places
from lora_mixer.engines.denoiser.steps import NoiseLevels, StepClock
from lora_mixer.engines.side.masks import scale_mask
from lora_mixer.mixes import Mask
from tests.models import tiny_sd, tiny_sdxl
from tests.weights import random_pairs

CLOSE = 1e-4
FAR = 1e-2
STEPS = 4


def file_of(pipe: Any, seed: int) -> dict[str, torch.Tensor]:
    """Write a diffusers-named file over attention, convolutions and text encoders."""
    torch.manual_seed(seed)
    wanted = ("attn", "conv", "ff", "proj", "fc1")
    table = {}
    for (component, path), pair in random_pairs(pipe, lambda _, path: any(w in path for w in wanted)).items():
        table[f"{component}.{path}.lora_A.weight"] = pair.down * 0.6
        table[f"{component}.{path}.lora_B.weight"] = pair.up.reshape(
            *pair.up.shape[:2], *[1] * (pair.down.ndim - 2)
        )
    return table


@pytest.fixture(scope="module", params=["sd", "sdxl"])
def mixer(request: pytest.FixtureRequest) -> LoraMixer:
    pipe = tiny_sd() if request.param == "sd" else tiny_sdxl()
    pipe.set_progress_bar_config(disable=True)
    mixer = LoraMixer(pipe)
    mixer.load_lora_weights(file_of(pipe, 1), "a")
    mixer.load_lora_weights(file_of(pipe, 2), "b")
    mixer.disable_lora()
    return mixer


def draw(
    mixer: LoraMixer, prompts: Any = "a castle", seeds: tuple[int, ...] = (0,), **options: Any
) -> np.ndarray:
    settings = {
        "num_inference_steps": STEPS,
        "guidance_scale": 3.0,
        "height": 32,
        "width": 32,
        "output_type": "np",
    }
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return mixer.pipe(
        prompts, generator=generators if len(seeds) > 1 else generators[0], **settings | options
    ).images


def hooks(mixer: LoraMixer) -> int:
    modules = [
        m
        for part in mixer.pipe.components.values()
        if isinstance(part, torch.nn.Module)
        for m in part.modules()
    ]
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules)


def test_both_engines_make_the_same_picture_and_the_base_comes_back(mixer: LoraMixer) -> None:
    base, before = draw(mixer), hooks(mixer)
    mix = {"a": 0.8, "b": {"unet": -0.5, "te": 0.3}}

    with mixer.applied(mix, engine="merged"):
        merged = draw(mixer)
    with mixer.applied(mix, engine="side"):
        assert hooks(mixer) > before
        side = draw(mixer)

    assert np.abs(merged - side).max() < CLOSE
    assert np.abs(merged - base).max() > FAR
    assert hooks(mixer) == before
    assert np.array_equal(draw(mixer), base)


@pytest.mark.parametrize(("each", "guidance"), [(1, 3.0), (2, 3.0), (2, 1.0)])
def test_a_batch_of_mixes_equals_its_single_images(mixer: LoraMixer, each: int, guidance: float) -> None:
    mixes = [{"a": 0.9}, {"b": {"unet": 0.7, "te": 0.0}}, {"a": -0.5, "b": 0.4}]
    prompts = ["a castle", "a red fish", "two owls"]
    seeds = tuple(range(len(mixes) * each))

    with mixer.applied(mixes):
        batch = draw(mixer, prompts, seeds, guidance_scale=guidance, num_images_per_prompt=each)

    for place, (mix, prompt) in enumerate(zip(mixes, prompts, strict=True)):
        for copy in range(each):
            with mixer.applied(mix):
                single = draw(mixer, prompt, (seeds[place * each + copy],), guidance_scale=guidance)
            assert np.abs(batch[place * each + copy] - single[0]).max() < CLOSE


@pytest.mark.parametrize("scheduler", [DDIMScheduler, EulerDiscreteScheduler])
@pytest.mark.parametrize("engine", ["merged", "side"])
def test_a_schedule_equals_setting_weights_before_each_step(
    mixer: LoraMixer, engine: str, scheduler: Any
) -> None:
    mixer.pipe.scheduler = scheduler.from_config(mixer.pipe.scheduler.config)
    mix = Mix.of({"a": {"weight": 0.9, "schedule": "0@0,1@1"}, "b": 0.3})
    text = mix.gain_at("a", "text_encoder", "", 0, STEPS)

    def weights(step: int) -> list[dict[str, float]]:
        return [{"unet": mix.gain_at("a", "unet", "", step, STEPS), "te": text}, {"unet": 0.3, "te": 0.3}]

    def after(_pipe: Any, step: int, _time: Any, state: dict[str, Any]) -> dict[str, Any]:
        if step + 1 < STEPS:
            mixer.set_adapters(["a", "b"], weights(step + 1))
        return state

    mixer.set_adapters(["a", "b"], weights(0))
    by_hand = draw(mixer, callback_on_step_end=after)
    mixer.disable_lora()
    with mixer.applied(mix, engine=engine):
        scheduled, again = draw(mixer), draw(mixer)

    assert np.abs(scheduled - by_hand).max() < CLOSE
    assert np.array_equal(scheduled, again)


def test_a_mask_of_ones_is_none_and_half_a_mask_is_neither(mixer: LoraMixer) -> None:
    ones = np.ones((32, 32), np.float32)
    left = ones.copy()
    left[:, 16:] = 0

    with mixer.applied({"a": {"weight": 0.9, "mask": Mask.of(ones)}}):
        whole = draw(mixer)
    with mixer.applied({"a": {"weight": 0.9, "mask": Mask.of(left)}}):
        half = draw(mixer)
    with mixer.applied({"a": 0.9}, engine="side"):
        plain = draw(mixer)
    with mixer.applied({"a": {"weight": 0.9, "mask": Mask.of(ones * 0)}, "b": 0.5}, engine="side"):
        nowhere = draw(mixer)
    with mixer.applied({"a": {"unet": 0, "te": 0.9}, "b": 0.5}, engine="side"):
        text_only = draw(mixer)

    assert np.abs(whole - plain).max() < CLOSE
    assert np.abs(half - plain).max() > FAR
    assert np.abs(nowhere - text_only).max() < CLOSE


def test_what_the_side_path_cannot_do_is_refused_and_changes_nothing(mixer: LoraMixer) -> None:
    base = draw(mixer)
    conv_in = mixer.pipe.unet.conv_in.weight.detach()
    rotation = {"unet.conv_in.oft_blocks": torch.zeros(2, conv_in.shape[0] // 2, conv_in.shape[0] // 2)}
    mixer.load_lora_weights(rotation, "turn")
    mixer.disable_lora()

    with pytest.raises(MixError, match=r"turn \(oft\).*no low-rank form"):
        mixer.set_mix({"turn": {"weight": 1.0, "mask": [[1.0, 0.0]]}, "a": 1.0}, engine="side")
    with pytest.raises(MixError, match="merged"):
        mixer.set_mix([{"b": 1.0}, {"a": 1.0}], engine="merged")
    with pytest.raises(MixError, match="engine"):
        mixer.set_mix({"a": 1.0}, engine="magic")
    with mixer.applied([{"a": 1.0}, {"b": 1.0}]), pytest.raises(MixError, match="prompts"):
        draw(mixer, "one prompt for two mixes")

    mixer.delete_adapters("turn")
    assert np.array_equal(draw(mixer), base)


def test_steps_are_counted_from_the_denoisers_own_calls() -> None:
    def steps(scheduler: Any, start: int = 0) -> list[tuple[int, int]]:
        scheduler.set_timesteps(5)
        times = [float(t) for t in scheduler.timesteps]
        levels, clock = NoiseLevels.of(times, 5, scheduler.order), StepClock()
        return [(step.index, step.total) for t in times[start:] for step in (clock.tick(t, levels),)]

    five = [(i, 5) for i in range(5)]
    assert steps(DDIMScheduler()) == five
    # two calls of one noise level are one step; img2img starts late and counts from there
    assert sorted(set(steps(HeunDiscreteScheduler()))) == five
    assert sorted(set(steps(PNDMScheduler(skip_prk_steps=True)))) == five
    assert steps(DDIMScheduler(), start=2) == [(0, 3), (1, 3), (2, 3)]


def test_a_second_run_starts_at_the_first_step_again() -> None:
    levels, clock = NoiseLevels.of([900.0, 500.0, 100.0]), StepClock()

    seen = [
        clock.tick(t, levels).index
        for t in (900.0, 500.0, 500.0, 100.0, 900.0, 500.0, 500.0, 100.0, 500.0, 100.0)
    ]

    assert seen == [0, 1, 1, 2, 0, 1, 1, 2, 0, 1]


def test_rows_of_a_batch_find_their_image() -> None:
    def rows(batch: int, images: int, copies: int) -> list[int]:
        layout = stated_layout(batch, images, copies, negatives=False)
        found: list[int] = layout.rows(negatives=False).tolist()
        return found

    assert rows(6, 3, 2) == [0, 1, 2, 0, 1, 2]
    assert rows(6, 3, 1) == [0, 0, 1, 1, 2, 2]
    assert rows(3, 3, 2) == [0, 1, 2]
    with pytest.raises(MixError, match="3 mixes with guidance_copies=2 do not fit a batch of 4 rows"):
        rows(4, 3, 2)


def test_masks_follow_the_layers_places() -> None:
    def grid(tokens: int, height: int, width: int) -> tuple[int, int] | None:
        span = Places(1, height, width).find(tokens)
        return span and (span.height, span.width)

    assert grid(64, 16, 16) == (8, 8)
    assert grid(6, 5, 7) is None
    assert grid(12, 5, 7) == (3, 4)
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1

    assert torch.equal(scale_mask(mask, (1, 2, 2)), torch.tensor([[[[1.0, 0.0], [1.0, 0.0]]]]))
