"""True pictures end to end: the embedded pipeline, its adapters alone and mixed, and the base again."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from PIL import Image
from safetensors.torch import load_file

from lora_mixer import LoraMixer, demo_adapters, load_demo

ASSETS = Path(__file__).resolve().parent.parent / "assets"
# The distance and the true styles are the training scripts' own.
sys.path.append(str(ASSETS / "training"))

from distance import mean_distance, nearest_distance  # noqa: E402
from styles import STYLES  # noqa: E402

DEMO = ASSETS / "demo"
ADAPTERS = demo_adapters()
NAMES = list(ADAPTERS)
STYLE_NAMES = [name for name, adapter in ADAPTERS.items() if adapter.kind == "style"]
SUBJECTS = ("rocket", "turtle", "pizza")
STEPS = 5
# diffusers' own loader takes Kohya and PEFT names of plain LoRAs in a file.
PLAIN = [name for name, adapter in ADAPTERS.items() if adapter.format in ("kohya", "peft-file")]


def draw(pipe, prompts, *, steps=STEPS, seed=0):
    """(n, 128, 128, 3) in [0, 1]; picture i starts from seed + i."""
    return pipe(
        list(prompts),
        num_inference_steps=steps,
        guidance_scale=3.0,
        generator=[torch.Generator().manual_seed(seed + row) for row in range(len(prompts))],
        output_type="np",
    ).images


@pytest.fixture(scope="module")
def mixer():
    pipe = load_demo()
    pipe.set_progress_bar_config(disable=True)
    mixer = LoraMixer(pipe)
    for name, adapter in ADAPTERS.items():
        mixer.load_lora_weights(adapter.path, adapter_name=name)
    mixer.disable_lora()
    return mixer


@pytest.fixture(scope="module")
def picture_of(mixer):
    """Pictures of the held-out subjects under a mix, each mix drawn once; no trigger words, so 0 is the base."""
    drawn = {}

    def of(**mix):
        key = tuple(sorted(mix.items()))
        if key not in drawn:
            with mixer.applied(mix):
                drawn[key] = draw(mixer.pipe, [f"a {subject}" for subject in SUBJECTS])
        return drawn[key]

    return of


@pytest.fixture(scope="module")
def true_of(picture_of):
    """A style's true pictures: the style's function of the base's own."""

    def of(style):
        base = torch.from_numpy(picture_of()).permute(0, 3, 1, 2)
        return STYLES[style](base).permute(0, 2, 3, 1).numpy()

    return of


def test_the_subjects_drawn_here_were_held_out_of_every_adapters_training():
    assert all(set(SUBJECTS) <= set(adapter.held_out) for adapter in ADAPTERS.values())


def test_pictures_are_128_pixels_and_finite(picture_of):
    base = picture_of()

    assert base.shape == (len(SUBJECTS), 128, 128, 3)
    assert np.isfinite(base).all()
    assert base.std() > 0.1


def test_the_same_seed_is_the_same_picture_and_another_seed_another(mixer):
    mixer.disable_lora()
    one, again, other = (draw(mixer.pipe, ["a castle"], steps=2, seed=seed) for seed in (5, 5, 6))

    assert one.tobytes() == again.tobytes()
    assert np.abs(one - other).max() > 0.1


def test_a_batch_is_its_pictures_one_by_one(mixer):
    mixer.set_adapters("watercolor")
    prompts = ["a castle", "a rocket"]
    batch = draw(mixer.pipe, prompts, steps=2)

    for row, prompt in enumerate(prompts):
        assert np.abs(draw(mixer.pipe, [prompt], steps=2, seed=row)[0] - batch[row]).max() < 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_every_module_of_an_adapter_is_matched(mixer, name):
    assert mixer.reports[name].complete
    assert "unet" in components_of(mixer, name)


def components_of(mixer, name):
    return {part.component for part in mixer.reports[name].components if part.matched}


@pytest.mark.parametrize("name", STYLE_NAMES)
def test_a_style_comes_nearer_to_its_true_pictures_with_its_weight(picture_of, true_of, name):
    truth = true_of(name)
    far, half, near = (mean_distance(picture_of(**mix), truth) for mix in ({}, {name: 0.5}, {name: 1.0}))

    assert far > half > near
    assert near < 0.85 * far


@pytest.mark.parametrize(("one", "two"), [("pixel", "watercolor"), ("neon", "halftone")])
def test_two_styles_mixed_lie_between(picture_of, true_of, one, two):
    mixed = picture_of(**{one: 0.5, two: 0.5})

    for near, far in ((one, two), (two, one)):
        distances = [
            mean_distance(picture, true_of(near))
            for picture in (picture_of(**{near: 1.0}), mixed, picture_of(**{far: 1.0}))
        ]
        assert all(a < b for a, b in pairwise(distances))


def test_the_subject_adapter_draws_its_character_and_the_base_does_not(mixer):
    drawings = references()
    far, near = [], []
    for weight, found in ((0.0, far), (1.0, near)):
        with mixer.applied({"lumo": weight}):
            found.append(nearest_distance(draw(mixer.pipe, ["lumo"]), drawings))

    assert near[0] < 0.7 * far[0]


def references():
    with Image.open(ADAPTERS["lumo"].path.with_name("lumo.reference.webp")) as image:
        strip = np.asarray(image.convert("RGB")) / 255
    return np.split(strip, strip.shape[1] // strip.shape[0], axis=1)


def test_disabled_is_the_base_to_the_byte(mixer, picture_of):
    base = picture_of()
    mixer.set_adapters(NAMES, 0.4)
    mixer.disable_lora()

    again = draw(mixer.pipe, [f"a {subject}" for subject in SUBJECTS])

    assert again.tobytes() == base.tobytes()


# --- the same files in plain diffusers and PEFT ------------------------------------------------------------------


@pytest.fixture
def plain_pipe():
    pipe = StableDiffusionPipeline.from_pretrained(DEMO, torch_dtype=torch.float32, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def ours(mixer, name):
    with mixer.applied({name: 1.0}):
        return draw(mixer.pipe, ["a castle"], steps=2)


@pytest.mark.parametrize("name", PLAIN)
def test_plain_diffusers_and_peft_draw_the_same(mixer, plain_pipe, name):
    plain_pipe.load_lora_weights(ADAPTERS[name].path, adapter_name=name)

    assert set(plain_pipe.get_list_adapters()) == components_of(mixer, name)
    assert np.abs(draw(plain_pipe, ["a castle"], steps=2) - ours(mixer, name)).max() < 1e-3


def test_peft_alone_draws_its_folder_the_same(mixer, plain_pipe):
    folder = ADAPTERS["neon"].path
    inject_adapter_in_model(LoraConfig.from_pretrained(folder), plain_pipe.unet)
    state = load_file(folder / "adapter_model.safetensors")
    names = {key.removeprefix("base_model.model."): value for key, value in state.items()}
    set_peft_model_state_dict(plain_pipe.unet, names)

    assert np.abs(draw(plain_pipe, ["a castle"], steps=2) - ours(mixer, "neon")).max() < 1e-3


def test_diffusers_loads_nothing_of_a_peft_folder(mixer, plain_pipe):
    """Its names lack ``unet.``: a warning to a log, and the base's pictures."""
    before = draw(plain_pipe, ["a castle"], steps=2)

    plain_pipe.load_lora_weights(ADAPTERS["neon"].path, weight_name="adapter_model.safetensors")

    assert plain_pipe.get_list_adapters() == {}
    assert draw(plain_pipe, ["a castle"], steps=2).tobytes() == before.tobytes()
    assert mixer.reports["neon"].complete


@pytest.mark.parametrize("form", ["kohya", "diffusers", "peft"])
def test_the_mix_written_draws_the_pictures_of_the_live_mix(mixer, tmp_path, form):
    """Every format, read again by this package; a LoHa in it goes out as a pair by singular values."""
    mix = {"watercolor": 0.6, "neon": 0.5, "blueprint": 0.2}
    with mixer.applied(mix):
        live = draw(mixer.pipe, ["a castle"], steps=3)
        mixer.save_lora_weights(tmp_path / "mix", weights=mix, format=form, rank=256)
    pipe = load_demo()
    pipe.set_progress_bar_config(disable=True)
    again = LoraMixer(pipe)
    for folder in written_parts(tmp_path / "mix"):
        component = folder.name if form == "peft" else None
        again.load_lora_weights(folder, adapter_name=folder.name, component=component, strict=True)
    again.set_adapters(list(again.adapters))

    assert np.abs(draw(pipe, ["a castle"], steps=3) - live).max() < 1e-4
    again.unload_lora_weights()


def written_parts(folder):
    """PEFT's format has one folder for each component."""
    inner = [path for path in sorted(folder.iterdir()) if path.is_dir()]
    return inner or [folder]


def test_a_loha_is_ours_alone_diffusers_refuses_it(mixer, plain_pipe):
    with pytest.raises(ValueError, match="hada_w1_a"):
        plain_pipe.load_lora_weights(ADAPTERS["blueprint"].path)

    assert mixer.reports["blueprint"].complete


def test_the_pipelines_base_is_plain_diffusers_base(mixer, plain_pipe):
    mixer.disable_lora()

    assert (
        draw(plain_pipe, ["a castle"], steps=2).tobytes() == draw(mixer.pipe, ["a castle"], steps=2).tobytes()
    )
