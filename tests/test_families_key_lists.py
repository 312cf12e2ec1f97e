"""Names of real and full-size files for transformers: each list is matched in full on its full-size model."""

from __future__ import annotations

import functools
import json

import diffusers
import pytest
import torch
import transformers

from lora_mixer.binding import bind
from lora_mixer.binding.index import ModuleIndex
from lora_mixer.formats import read_source
from lora_mixer.formats.grouping import locate
from lora_mixer.sources import resolve_source

FLUX = {"guidance_embeds": True}
MODELS = {
    "flux": ("FluxTransformer2DModel", FLUX),
    "flux2": ("Flux2Transformer2DModel", {}),
    "hunyuanvideo": ("HunyuanVideoTransformer3DModel", {"guidance_embeds": True}),
    "lumina2": ("Lumina2Transformer2DModel", {}),
    "qwenimage": ("QwenImageTransformer2DModel", {}),
    "sd35large": (
        "SD3Transformer2DModel",
        {
            "num_layers": 38,
            "num_attention_heads": 38,
            "attention_head_dim": 64,
            "caption_projection_dim": 2432,
            "pooled_projection_dim": 2048,
            "in_channels": 16,
            "out_channels": 16,
            "qk_norm": "rms_norm",
            "sample_size": 128,
        },
    ),
    "wan22": ("WanTransformer3DModel", {}),
    "zimage": ("ZImageTransformer2DModel", {}),
    "krea2": ("Krea2Transformer2DModel", {}),
    "anima": (
        "CosmosTransformer3DModel",
        {
            "in_channels": 16,
            "out_channels": 16,
            "num_attention_heads": 16,
            "attention_head_dim": 128,
            "num_layers": 28,
            "text_embed_dim": 1024,
            "adaln_lora_dim": 256,
            "extra_pos_embed_type": None,
        },
    ),
}
# Key lists with shapes: the model, and the text encoders that the file reaches.
LISTS = {
    "dit/keys/flux2_aitoolkit_r16": "flux2",
    "dit/keys/flux_aitoolkit_r16": "flux",
    "dit/keys/flux_bfl_lokr_f8": "flux",
    "dit/keys/flux_kohya_r16": "flux",
    "dit/keys/flux_kohya_te1_te3_r4": "flux",
    "dit/keys/hunyuanvideo_musubi_r16": "hunyuanvideo",
    "dit/keys/lumina2_kohya_r8": "lumina2",
    "dit/keys/qwenimage_musubi_r16": "qwenimage",
    "dit/keys/sd35large_kohya_r16": "sd35large",
    "dit/keys/wan22_14b_comfy_r32": "wan22",
    "dit/keys/wan22_14b_musubi_r16": "wan22",
    "dit/keys/zimage_aitoolkit_r16": "zimage",
    "dit/keys/zimage_kohya_fused_r16": "zimage",
    "keys/invokeai_flux_control_lora_format": "flux",
    "keys/invokeai_flux_dora_onetrainer_format": "flux",
    "keys/invokeai_flux_lora_aitoolkit_format": "flux",
    "keys/invokeai_flux_lora_diffusers_base_model_format": "flux",
    "keys/invokeai_flux_lora_diffusers_dora_format": "flux",
    "keys/invokeai_flux_lora_diffusers_format": "flux",
    "keys/invokeai_flux_lora_diffusers_no_proj_mlp_format": "flux",
    "keys/invokeai_flux_lora_diffusers_with_norm_out_format": "flux",
    "keys/invokeai_flux_lora_kohya_format": "flux",
    "keys/invokeai_flux_lora_kohya_with_te1_and_te3_format": "flux",
    "keys/invokeai_flux_lora_kohya_with_te1_format": "flux",
    "keys/invokeai_flux_lora_xlabs_format": "flux",
    "keys/invokeai_krea2_lora_kohya_format": "krea2",
}
# Lists whose shapes are missing, made up or of another layer: their names are looked up.
NAMES_ONLY = {
    "keys/diffusers_test_aitoolkit_lokr_placeholder_alpha": "flux",
    "keys/diffusers_test_flux2_expanded_blocks": "flux2",
    "keys/diffusers_test_flux2_guidance_embedder": "flux2",
    "keys/invokeai_anima_lora_kohya_format": "anima",
    "keys/invokeai_anima_lora_kohya_with_te_format": "anima",
    "keys/invokeai_anima_lora_lokr_format": "anima",
    "keys/invokeai_anima_lora_peft_format": "anima",
    "keys/invokeai_flux_lokr_bfl_format": "flux",
    "keys/invokeai_flux_lora_diffusers_v2_format": "flux",
    "keys/invokeai_qwen_image_lora_diffusers_format": "qwenimage",
    "keys/invokeai_qwen_image_lora_kohya_format": "qwenimage",
}


@functools.cache
def full_size(name):
    """Build a transformer at full size without weights, and the text encoders of Flux."""
    kind, config = MODELS[name]
    with torch.device("meta"):
        parts = {"transformer": getattr(diffusers, kind)(**config)}
        if name == "flux":
            clip = transformers.CLIPTextConfig(
                hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12
            )
            t5 = transformers.T5Config(
                d_model=4096,
                d_ff=10240,
                d_kv=64,
                num_heads=64,
                num_layers=24,
                feed_forward_proj="gated-gelu",
            )
            parts |= {
                "text_encoder": transformers.CLIPTextModel(clip),
                "text_encoder_2": transformers.T5EncoderModel(t5),
            }
    return parts


def adapter(shared_data, name):
    """Read a list as a file without weights; single numbers have values."""
    keys = json.loads((shared_data / f"{name}.json").read_text(encoding="utf-8"))["keys"]
    table = {}
    for key, shape in keys.items():
        sizes = shape or ([] if key.endswith(".alpha") else [4, 4])
        lone = sizes in ([], [1])
        table[key] = torch.ones(sizes) if lone and "lokr" not in key else torch.empty(sizes, device="meta")
    return read_source(resolve_source(table))


def test_all_lists_for_transformers_are_tested(shared_data):
    found = {
        f"{folder}/{path.stem}"
        for folder in ("dit/keys", "keys")
        for path in (shared_data / folder).glob("*.json")
    }
    others = ("keys/aitoolkit_keymap", "keys/issues", "keys/fullsize", "keys/invokeai_sdxl")
    assert {name for name in found if not name.startswith(others)} == LISTS.keys() | NAMES_ONLY.keys()


@pytest.mark.parametrize("name", LISTS)
def test_list_is_matched_in_full_on_the_full_size_model(shared_data, name):
    given = adapter(shared_data, name)

    bound = bind(given, full_size(LISTS[name]), name)

    assert bound.report.complete, str(bound.report)
    for layer in bound.layers:  # each module gets as many rows as it has
        assert layer.widening is not None or layer.weights.misfit(layer.live.shape) is None
    used = sum(part.keys_used for part in bound.report.components)
    assert used == sum(len(layer.keys) for layer in given.layers)


@pytest.mark.parametrize("name", NAMES_ONLY)
def test_every_name_of_a_list_without_shapes_is_a_module_of_the_full_size_model(shared_data, name):
    keys = json.loads((shared_data / f"{name}.json").read_text(encoding="utf-8"))["keys"]
    index = ModuleIndex("transformer", full_size(NAMES_ONLY[name])["transformer"])
    missing = set()
    for key in keys:
        target, leaf, _ = locate(key, {key: torch.ones(())}, {})
        assert target is not None, key
        assert leaf is not None, key
        if target.hint not in ("text_encoder", "text_encoder_2", "text_conditioner") and not any(
            index.find(spelling) for spelling in target.spellings
        ):
            missing.add(target.module)
    assert missing == set()
