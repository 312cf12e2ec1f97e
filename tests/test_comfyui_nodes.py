"""The nodes for ComfyUI on a stand-in of its interface: pictures with mixes, branches that do not meet, the base back."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lora_mixer import (
    AdapterNameError,
    LoraMixer,
    MixError,
    PictureMaker,
    PictureRequest,
    load_pipeline,
    read_picture,
)
from lora_mixer.demo import demo_adapters
from tests import comfy_standin
from tests.weights import Snapshot

FOLDER = Path(__file__).parents[1] / "comfyui"


@pytest.fixture
def classes(monkeypatch):
    """Import the folder as ComfyUI does: by its path, under a name of its own."""
    comfy_standin.folders(
        monkeypatch, checkpoints={}, loras={"styles/ink.safetensors": demo_adapters()["ink"].path}
    )
    spec = importlib.util.spec_from_file_location(
        "custom_nodes_lora_mixer", FOLDER / "__init__.py", submodule_search_locations=[str(FOLDER)]
    )
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    assert set(module.NODE_DISPLAY_NAME_MAPPINGS) == set(module.NODE_CLASS_MAPPINGS)
    return module.NODE_CLASS_MAPPINGS


def node(kind, **inputs):
    return {"class_type": kind, "inputs": inputs}


def graph(**more):
    return {
        "model": node("LoraMixerModel", checkpoint="demo", device="cpu"),
        "ink": node("LoraMixerAdapter", model=["model", 0], lora="styles/ink.safetensors", weight=0.8),
        **more,
    }


def pictures(model, **more):
    given = {
        "prompt": "an owl, ink sketch",
        "seed": 3,
        "steps": 2,
        "guidance_scale": 3.0,
        "width": 128,
        "height": 128,
    }
    return node("LoraMixerPictures", model=[model, 0], **given, **more)


def by_hand(mix, **more):
    mixer = LoraMixer(load_pipeline("demo", device="cpu"))
    for name in ("ink", "neon"):
        mixer.load_lora_weights(demo_adapters()[name].path, adapter_name=name)
    request = PictureRequest(
        "an owl, ink sketch", seed=3, steps=2, guidance_scale=3.0, width=128, height=128, mix=mix, **more
    )
    (made,) = PictureMaker(mixer).make([request])
    return np.asarray(made.image)


def as_pixels(images):
    assert images.dtype == torch.float32
    assert images.min() >= 0
    assert images.max() <= 1
    return (images * 255).round().to(torch.uint8).numpy()


def test_a_graph_makes_the_picture_of_its_mix_and_says_how(classes):
    found = comfy_standin.run(graph(made=pictures("ink", sampler="Euler a", clip_skip=1)), classes)

    images, text = found["made"]
    assert images.shape == (1, 128, 128, 3)
    assert (as_pixels(images)[0] == by_hand({"ink": 0.8}, sampler="Euler a", clip_skip=1)).all()
    picture = Image.new("RGB", (8, 8))
    picture.info["parameters"] = text
    settings = read_picture(picture)
    assert (settings.seed, settings.steps, settings.adapters[0].name, settings.adapters[0].weight) == (
        3,
        2,
        "ink",
        0.8,
    )
    assert settings.adapters[0].hashes


def test_block_weights_schedules_and_text_weights_are_in_the_mix(classes):
    more = {
        "blocks": '{"down": 0.5, "mid": 0}',
        "schedule": "linear(0, 1)",
        "same_for_text": False,
        "text_weight": 0.3,
    }
    whole = graph(made=pictures("neon"))
    whole["ink"]["inputs"] |= more
    whole["neon"] = node("LoraMixerAdapter", model=["ink", 0], lora="demo:neon", weight=-0.2)

    found = comfy_standin.run(whole, classes)

    mix = {
        "ink": {
            "weight": 0.8,
            "components": {"te": 0.3},
            "blocks": {"down": 0.5, "mid": 0},
            "schedule": "linear(0, 1)",
        },
        "neon": -0.2,
    }
    assert (as_pixels(found["made"][0])[0] == by_hand(mix)).all()


def test_branches_share_a_model_and_do_not_meet_and_weights_are_the_base_between(classes):
    whole = graph(
        text=node("LoraMixerMix", model=["ink", 0], text="ink:0.2"), strong=pictures("ink"), weak=pictures("text"),
        plain=pictures("model"), again=pictures("ink"),
    )  # fmt: skip
    first = comfy_standin.run({"model": whole["model"]}, classes)
    pipe = first["model"][0].held.mixer.pipe
    before = Snapshot.of(pipe)

    found = comfy_standin.run(whole, classes, first)

    shown = {key: as_pixels(found[key][0])[0] for key in ("strong", "weak", "plain", "again")}
    assert (shown["strong"] == shown["again"]).all()
    assert (shown["strong"] == by_hand({"ink": 0.8})).all()
    assert (shown["weak"] == by_hand({"ink": 0.2})).all()
    assert (shown["plain"] == by_hand({})).all()
    before.assert_values(pipe)


def test_the_base_comes_back_and_adapters_can_be_loaded_again(classes):
    whole = graph(made=pictures("ink"), base=node("LoraMixerBase", model=["ink", 0]))
    first = comfy_standin.run({"model": whole["model"]}, classes)
    mixer = first["model"][0].held.mixer
    before = Snapshot.of(mixer.pipe)

    found = comfy_standin.run(whole, classes, first)

    assert found["base"][1] is True
    assert dict(mixer.adapters) == {}
    before.assert_untouched(mixer.pipe)
    # ComfyUI keeps what nodes gave: the adapter's node is not run again
    kept = {key: found[key] for key in ("model", "ink")}
    again = comfy_standin.run({**graph(), "made": pictures("ink")}, classes, kept)
    assert (as_pixels(again["made"][0]) == as_pixels(found["made"][0])).all()


def test_several_pictures_are_a_batch_of_the_next_seeds(classes):
    found = comfy_standin.run(graph(three=pictures("ink", count=3)), classes)

    images = as_pixels(found["three"][0])
    assert images.shape == (3, 128, 128, 3)
    assert (images[0] == by_hand({"ink": 0.8})).all()
    assert not (images[1] == images[2]).all()


def test_twins_of_a_name_are_two_adapters(classes, monkeypatch, tmp_path):
    copy = tmp_path / "ink.safetensors"
    copy.write_bytes(demo_adapters()["ink"].path.read_bytes())
    comfy_standin.folders(
        monkeypatch, loras={"a/ink.safetensors": demo_adapters()["ink"].path, "b/ink.safetensors": copy}
    )
    whole = graph()
    whole["ink"]["inputs"]["lora"] = "a/ink.safetensors"
    whole["twin"] = node("LoraMixerAdapter", model=["ink", 0], lora="b/ink.safetensors", weight=0.1)

    assert comfy_standin.run(whole, classes)["twin"][0].mix.to_text() == "ink:0.8, ink_2:0.1"


def test_what_does_not_fit_is_refused_before_or_said_in_a_sentence(classes):
    for odd in (
        graph(x=node("LoraMixerAdapter", model=["ink", 0], lora="gone.safetensors", weight=1.0)),
        graph(x=node("LoraMixerAdapter", model=["ink", 0], lora="demo:ink", weight=100.0)),
        graph(x=node("LoraMixerMix", text="ink:1")),
    ):
        with pytest.raises(comfy_standin.RefusedError):
            comfy_standin.check(odd, classes)
    for inputs, message in (({"text": "oil:1"}, "oil"), ({"text": "ink:x"}, "ink")):
        with pytest.raises((MixError, AdapterNameError), match=message):
            comfy_standin.run(graph(x=node("LoraMixerMix", model=["ink", 0], **inputs)), classes)
    for blocks in ("NOPE", "{nope", '{"sideways": 1}'):
        whole = graph()
        whole["ink"]["inputs"]["blocks"] = blocks
        with pytest.raises(MixError):
            comfy_standin.run(whole, classes)


def test_the_nodes_stand_on_public_names_alone():
    import ast
    import importlib

    tree = ast.parse((FOLDER / "nodes.py").read_text(encoding="utf-8"))
    named = [
        (node.module, alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lora_mixer")
        for alias in node.names
    ]

    assert named
    assert all(module in ("lora_mixer", "lora_mixer.parsing", "lora_mixer.pictures") for module, _ in named)
    assert all(name in importlib.import_module(module).__all__ for module, name in named)
