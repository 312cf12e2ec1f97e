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
        ({"transformer_blocks.0.attn1.to_q": (2048, 2048)}, "a DiT (SD3, PixArt, LTX, ...)"),  # or Cosmos
        *(
            (
                {
                    "transformer_blocks.0.attn1.to_q": (width, width),
                    "transformer_blocks.0.attn2.to_k": (width, text),
                },
                family,
            )
            for width, text, family in (
                (2048, 2048, "LTX-Video"),
                (2048, 1024, "Anima"),
                (4096, 4096, "LTX-Video 2"),
                (4096, 1024, "Cosmos"),
                (5120, 1024, "Cosmos"),
            )
        ),
        (
            {
                "transformer.transformer_blocks.0.attn.to_q": (1536, 1536),
                "transformer.transformer_blocks.0.attn2.to_q": (1536, 1536),
            },
            "SD3",
        ),
        ({"transformer_blocks.0.attn.to_q": (4096, 4096)}, "Qwen-Image"),
        ({"lora_unet_layers_0_cross_attn_q_proj": (2048, 2048)}, "ACE-Step"),
        ({"transformer_blocks.0.attn1.to_q": (4096, 4096)}, "a DiT (SD3, PixArt, LTX, ...)"),  # or CogView4
        ({"transformer_blocks.0.audio_attn1.to_q": (2048, 2048)}, "LTX-Video 2"),
        ({"transformer_blocks.0.attn1.to_q": (1920, 1920)}, "CogVideoX"),
        (
            {
                "lora_unet_blocks_0_attn_qkv": (6720, 2240),
                "lora_unet_blocks_0_cross_attn_q_linear": (2240, 2240),
            },
            "Sana",
        ),
        (
            {
                "lora_unet_blocks_0_attn_qkv": (3456, 1152),
                "lora_unet_blocks_0_cross_attn_q_linear": (1152, 1152),
            },
            "PixArt",
        ),
        ({"lora_unet_double_blocks_0_img_attn_qkv": (6144, 2048)}, "HunyuanVideo 1.5"),
        ({"diffusion_model.double_blocks.0.img_attn.qkv": (10752, 3584)}, "HunyuanImage"),
        (
            {"transformer.context_embedder.token_refiner.refiner_blocks.0.attn.to_q": (2048, 2048)},
            "HunyuanVideo 1.5",
        ),
        ({"transformer.token_refiner.refiner_blocks.0.attn.to_q": (7168, 5376)}, "MiniMax-H3"),
        (
            {
                "transformer.blocks.0.attn2.add_k_proj": (5120, 5120),
                "transformer.blocks.0.attn1.to_q": (5120, 5120),
            },
            "Wan",
        ),
        ({"transformer.transformer_blocks.0.attn1.add_k_proj": (3072, 1536)}, "Mochi"),
        ({"transformer.blocks.0.attn1.to_q": (1408, 1408)}, "HunyuanDiT"),
        ({"transformer.blocks.0.ff.net.0.proj": (6144, 1408)}, "HunyuanDiT"),
        ({"model.diffusion_model.transformer.layers.0.attention.query_key_value": (5760, 1920)}, "CogVideoX"),
        ({"transformer.layers.0.attention.query_key_value": (12288, 4096)}, "CogView4"),
        ({"mixins.adaln.adaln_modules.0.1": (49152, 512)}, "CogView4"),
        ({"transformer.layers.0.attn.to_q": (2304, 2304)}, "Lumina 2"),
        ({"transformer.layers.0.attn2.to_q": (2304, 2304)}, "Lumina-Next"),
        ({"transformer.layers.0.attention.to_q": (4608, 4608)}, "Ideogram 4"),
        ({"transformer.layers.0.attention.to_q": (3840, 3840)}, "Z-Image"),
        ({"transformer.layers.0.self_attn.to_q": (3072, 3072)}, "OmniGen"),
        (
            {
                "transformer.layers.0.self_attn.to_q": (2048, 2048),
                "transformer.layers.0.cross_attn.to_q": (2048, 2048),
            },
            "ACE-Step",
        ),
        ({"transformer.layers.0.self_attention.to_q": (3072, 3072)}, "Ernie-Image"),
        ({"net.blocks.block0.blocks.0.block.attn.to_q.0": (4096, 4096)}, "Cosmos"),
        ({"lora_unet_blocks_0_self_attn_q_proj": (5120, 5120)}, "Cosmos"),
        ({"lora_unet_blocks_0_self_attn_q_proj": (2048, 2048)}, "Anima"),
        ({"single_blocks.0.q_proj": (3072, 3072)}, "Flux.3"),
        ({"lora_unet_blocks_0_attn_out": (1792, 1792)}, "PRX"),
        ({"blocks.0.attn.a_to_qkv": (9216, 3072)}, "Flux.1"),
        (
            {
                "transformer.caption_projection.0.linear": (1536, 2048),
                "transformer.transformer_blocks.0.attn.to_q": (3072, 3072),
            },
            "Bria Fibo",
        ),
        (
            {
                "transformer.context_embedder.linear_1": (3072, 4096),
                "transformer.transformer_blocks.0.attn.to_q": (3072, 3072),
            },
            "Motif",
        ),
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
