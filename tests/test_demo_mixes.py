"""Mixes that differ by place and by image show where they should, on the demo's true pictures."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from lora_mixer import LoraMixer, demo_adapters, load_demo
from lora_mixer.batches import check_plan, parse_plan
from lora_mixer.cli._app import app as command
from lora_mixer.errors import MixError, PlanError
from lora_mixer.mixes import Mask, Mix, block_layouts
from lora_mixer.pictures.outline import load_outline
from lora_mixer.ui.handlers.mix import kit
from lora_mixer.writing import bake, merge

PROMPT, STEPS, SEED, SIDE = "a castle", 6, 0, 128


@pytest.fixture(scope="module")
def mixer():
    pipe = load_demo()
    pipe.set_progress_bar_config(disable=True)
    mixer = LoraMixer(pipe)
    for name in ("ink", "neon"):
        mixer.load_lora_weights(demo_adapters()[name].path, adapter_name=name)
    mixer.disable_lora()
    return mixer


def draw(mixer, mixes, count=1):
    """(count, 128, 128, 3) in [0, 1]."""
    with mixer.applied(mixes):
        return mixer.pipe(
            [PROMPT] * count,
            num_inference_steps=STEPS,
            guidance_scale=3.0,
            generator=[torch.Generator().manual_seed(SEED) for _ in range(count)],
            output_type="np",
        ).images


@pytest.fixture(scope="module")
def alone(mixer):
    return {name: draw(mixer, {name: 1.0})[0] for name in ("ink", "neon")}


def half(*, left):
    mask = np.zeros((SIDE, SIDE), np.float32)
    mask[:, : SIDE // 2] = left
    mask[:, SIDE // 2 :] = not left
    return Mask.of(mask, feather=4)


def test_two_half_masks_show_each_style_in_its_half(mixer, alone):
    """Each half is several times nearer to its own style's picture than to the other's."""
    mixed = draw(
        mixer,
        {"ink": {"weight": 1, "mask": half(left=True)}, "neon": {"weight": 1, "mask": half(left=False)}},
    )[0]
    halves = {"ink": np.s_[:, : SIDE // 2], "neon": np.s_[:, SIDE // 2 :]}

    def distance(part, style):
        return float(((mixed[halves[part]] - alone[style][halves[part]]) ** 2).mean())

    # the seam and what the network passes on through it keep both halves from being the pictures themselves
    assert distance("ink", "ink") < 0.35 * distance("ink", "neon")
    assert distance("neon", "neon") < 0.6 * distance("neon", "ink")


def test_masks_of_ones_are_none(mixer, alone):
    everywhere = Mask.of(np.ones((SIDE, SIDE), np.float32))

    masked = draw(mixer, {"ink": {"weight": 1, "mask": everywhere}})[0]

    assert np.abs(masked - alone["ink"]).max() < 1e-4


def test_images_of_one_batch_equal_their_mixes_alone(mixer, alone):
    batch = draw(mixer, [{"ink": 1.0}, {"neon": 1.0}, {}], 3)

    assert np.abs(batch[0] - alone["ink"]).max() < 1e-4
    assert np.abs(batch[1] - alone["neon"]).max() < 1e-4
    assert np.abs(batch[2] - draw(mixer, {})[0]).max() < 1e-4


B_LORA = {"ink": {"blocks": "b-lora:style"}}
INK = f"{demo_adapters()['ink'].path}:1,blocks=b-lora:style"


def by_plan(mixer, out):
    raw = f"adapters: {{ink: '{demo_adapters()['ink'].path}'}}\njobs:\n- {{prompt: x, mix: 'ink:1,blocks=b-lora'}}\n"
    check_plan(parse_plan(raw.encode(), "yaml"), outline=load_outline("demo"))


def by_page(mixer, out):
    layout = block_layouts({"unet": mixer.pipe.unet})["unet"]
    assert [
        form for form in kit(SimpleNamespace(layout=layout, size=(128, 128)))["forms"] if "lora" in form
    ] == []
    mixer.set_mix(Mix.of({"ink": {"blocks": "b-lora:style", "weight": 0.5}}, masks={}))


def by_command(*arguments, ending=".safetensors"):
    def run(mixer, out):
        result = CliRunner().invoke(command, [*arguments, "--out", str(out.with_suffix(ending))])
        assert result.exit_code != 0
        raise MixError(" ".join(result.output.split()))

    return run


@pytest.mark.parametrize(
    "front",
    [
        lambda mixer, out: mixer.set_mix(B_LORA),
        lambda mixer, out: mixer.applied(B_LORA).__enter__(),
        lambda mixer, out: mixer.set_adapters("ink", {"unet": {"patterns": dict(Mix.of(B_LORA)["ink"].blocks.weights)}}),
        lambda mixer, out: mixer.save_lora_weights(out, weights=B_LORA),
        lambda mixer, out: merge([(demo_adapters()["ink"].path, B_LORA["ink"])], out),
        lambda mixer, out: bake(mixer, out.with_suffix(""), Mix.of(B_LORA)),
        by_command("merge", INK),
        by_command("generate", "--model", "demo", "--lora", INK, "--prompt", "x", ending=".png"),
        by_plan,
        by_page,
    ],
)  # fmt: skip
def test_b_lora_is_refused_on_the_demo_by_name_on_every_way(mixer, tmp_path, front):
    before = {key: value.clone() for key, value in mixer.pipe.unet.state_dict().items()}
    out = tmp_path / "b.safetensors"
    with pytest.raises((MixError, PlanError), match=r"b-lora(:style)? is for SDXL"):
        front(mixer, out)
    assert not out.exists()
    assert all(torch.equal(value, before[key]) for key, value in mixer.pipe.unet.state_dict().items())
