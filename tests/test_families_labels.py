"""What a file for a transformer is called before it is loaded: its own family, or that whose names it shares."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lora_mixer import read_adapter
from lora_mixer.families import family_of_class
from lora_mixer.families.table import FAMILIES
from lora_mixer.library import Entry, compatible
from tests.test_families_references import REFERENCES
from tests.transformers_data import reference

# Tiny models have widths of their own, so that families with the names of another are named after that.
LABELS = {
    "auraflow/comfy_original": "AuraFlow",
    "auraflow/diffusers": "AuraFlow",
    "chroma/distilled_guidance": "Chroma",
    "chroma/kohya": "Flux.1",
    "cosmos2/comfy": "Anima",
    "flux/kohya_oft": "Flux.1",
    "flux/xlabs": "Flux.1",
    "flux2/diffusers": "Flux.2",
    "hidream/aitoolkit": "HiDream",
    "hunyuanimage/kohya_split": "HunyuanImage",
    "hunyuanvideo/diffusion_pipe": "HunyuanVideo",
    "hunyuanvideo/kohya": "HunyuanVideo",
    "kandinsky5/kohya": "Kandinsky 5",
    "krea2/kohya": "Krea 2",
    "minimax_h3/comfy_stacked": "MiniMax-H3",
    "mochi/diffusers": "Mochi",
    "mochi/original_bare": "Mochi",
    "ovis/comfy_peft": "Ovis-Image",
    "qwenimage/kohya": "Qwen-Image",
    "sana/kohya_original": "Sana",
    "sd35m/kohya_te123": "SD3",
    "wan/lightx2v_diff_m": "Wan",
    "zimage/kohya_fused_qkv": "Z-Image",
}


@pytest.mark.parametrize("name", LABELS)
def test_file_is_called_by_its_family(shared_data, name):
    assert read_adapter(reference(shared_data, name).adapter).base == LABELS[name]


@pytest.mark.parametrize(
    "name", ["ltx/comfy_same_names", "cogvideox/diffusers", "pixart/peft_script", "sana/diffusers"]
)
def test_names_that_many_families_have_are_not_given_to_one_of_them(shared_data, name):
    assert read_adapter(reference(shared_data, name).adapter).base == "a DiT (SD3, PixArt, LTX, ...)"


def pair(shapes):

    return {
        f"{name}.lora_{half}.weight": torch.empty(size, device="meta")
        for name, (out, into) in shapes.items()
        for half, size in (("down", (4, into)), ("up", (out, 4)))
    }


@pytest.mark.parametrize(
    ("shapes", "family"),
    [
        ({"transformer_blocks.0.attn.to_q": (3072, 3072)}, "Qwen-Image"),
        ({"transformer_blocks.0.attn.to_q": (2432, 2432)}, "SD3"),
        ({"transformer_blocks.0.attn1.to_q": (1152, 1152)}, "PixArt"),
        ({"transformer_blocks.0.attn1.to_q": (2048, 2048)}, "LTX-Video"),
        ({"transformer_blocks.0.attn1.to_q": (4096, 4096)}, "LTX-Video 2"),
        ({"transformer_blocks.0.attn1.to_q": (3072, 3072)}, "CogVideoX"),
        ({"lora_unet_layers_0_attention_qkv": (3840, 2304)}, "Lumina 2"),
        ({"lora_unet_double_blocks_0_img_attn_qkv": (18432, 6144)}, "Flux.2"),
        (
            {
                "diffusion_model.single_blocks.3.linear1": (27648, 3072),
                "diffusion_model.single_blocks.3.linear2": (3072, 12288),
            },
            "Flux.2",
        ),
        (
            {
                "diffusion_model.single_blocks.3.linear1": (21504, 3072),
                "diffusion_model.single_blocks.3.linear2": (3072, 15360),
            },
            "Flux.1",
        ),
    ],
)
def test_widths_tell_families_that_share_their_names(shapes, family):
    assert read_adapter(pair(shapes)).base == family


def fits(base, family):
    return compatible(Entry("1", "a", Path("a.safetensors"), Path(), base=base), family).fits


@pytest.mark.parametrize("name", REFERENCES)
def test_the_library_offers_a_file_for_the_model_that_it_was_made_for(shared_data, name):
    own = reference(shared_data, name)
    family = family_of_class(own.facts["classes"]["transformer"])
    base = read_adapter(own.adapter).base
    assert fits(base, family.name)
    assert not fits(base, "SDXL")
    assert not fits("SD 1.x", family.name)


def test_a_file_with_names_of_many_families_is_not_offered_where_blocks_are_called_otherwise():
    base = "a DiT (SD3, PixArt, LTX, ...)"
    offered = {family.name: fits(base, family.name) for family in FAMILIES if family.is_transformer}
    assert {name for name, does in offered.items() if does} >= {
        "SD3",
        "Qwen-Image",
        "LTX-Video",
        "Sana",
        "Flux.1",
    }
    assert not any(offered[name] for name in ("Wan", "Z-Image", "AuraFlow", "HiDream", "Kandinsky 5"))
