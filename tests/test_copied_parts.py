"""A copy of one part of a pipeline is no second owner of the pipeline."""

from __future__ import annotations

import copy
import gc

import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline

from lora_mixer import LoraMixer
from tests.models import tiny_sd
from tests.small_pipe import pairs_for, small_pipe, written


@pytest.mark.parametrize("part", ["unet", "text_encoder", "text_encoder_2"])
@pytest.mark.parametrize("kept", [True, False])
def test_the_next_mixer_takes_over_though_a_part_was_copied(part: str, kept: bool) -> None:
    pipe = small_pipe()
    base = {key: value.clone() for key, value in pipe.components[part].state_dict().items()}
    mixer = LoraMixer(pipe)
    mixer.load_lora_weights(written(pairs_for(pipe, 1)), "a")
    own = copy.deepcopy(pipe.components[part])
    held = [own] if kept else []
    del mixer, own
    gc.collect() if kept else None

    again = LoraMixer(pipe)
    assert again.get_active_adapters() == ["a"]
    again.unload_lora_weights()
    assert all(value.equal(base[key]) for key, value in pipe.components[part].state_dict().items())
    for each in held:  # the copy has the mix, and the way back of its own
        assert any(not value.equal(base[key]) for key, value in each.state_dict().items())
        LoraMixer(each).unload_lora_weights()
        assert all(value.equal(base[key]) for key, value in each.state_dict().items())


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
@pytest.mark.parametrize("how", ["merged", "side", "schedule", "off"])
@pytest.mark.parametrize("made", ["from_pipe", "components"])
def test_a_pipeline_made_of_replaced_parts_has_the_mix_before_any_other_call(part, how, made):
    pipe, other = tiny_sd(), tiny_sd()
    with torch.no_grad():
        for weight in getattr(other, part).parameters():
            weight.mul_(1.1)
    mixer = LoraMixer(pipe)
    file = {
        **random_pair("unet", pipe.unet, "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"),
        **random_pair("text_encoder", pipe.text_encoder, "encoder.layers.0.self_attn.q_proj"),
    }
    mixer.load_lora_weights(file, "a")
    mix = {"a": {"weight": 2.0, "schedule": "linear(0.5, 1)"}} if how == "schedule" else {"a": 2.0}
    mixer.set_mix(mix, engine="auto" if how in ("schedule", "off") else how)
    if how == "off":
        mixer.disable_lora()
    base = {name: value.clone() for name, value in getattr(other, part).state_dict().items()}

    setattr(pipe, part, getattr(other, part))
    if made == "from_pipe":
        another = StableDiffusionImg2ImgPipeline.from_pipe(pipe)
    else:
        another = StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    another.set_progress_bar_config(disable=True)

    def shown():
        image = torch.full((1, 3, 32, 32), 0.3)
        number = torch.Generator().manual_seed(1)
        return another(
            "an owl", image=image, num_inference_steps=4, generator=number, output_type="pt"
        ).images

    first = shown()
    (mixer.enable_lora if how != "off" else mixer.disable_lora)()
    assert torch.equal(first, shown())
    mixer.disable_lora()
    plain = shown()
    assert torch.equal(first, plain) == (how == "off")
    mixer.unload_lora_weights()
    assert all(torch.equal(value, base[name]) for name, value in getattr(pipe, part).state_dict().items())


def random_pair(component, root, path):
    out, width = root.get_submodule(path).weight.shape
    number = torch.Generator().manual_seed(5)
    return {
        f"{component}.{path}.lora_A.weight": torch.randn(2, width, generator=number),
        f"{component}.{path}.lora_B.weight": torch.randn(out, 2, generator=number),
    }
