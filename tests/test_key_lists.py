"""Names of real files: every SD and SDXL list is matched in full on a full-size model, every other family is named."""

from __future__ import annotations

import functools
import json
import re

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from lora_mixer import MatchError
from lora_mixer.binding import bind
from lora_mixer.formats import read_source
from lora_mixer.sources import resolve_source

SD = [
    "sd15_diffusers_peft_r4",
    "sd15_kohya_lora_conv",
    "sd15_kohya_lora_r8",
    "sd15_lycoris_locon",
    "sd15_lycoris_locon_dora",
    "sd15_lycoris_locon_tucker",
    "sd15_lycoris_loha",
    "sd15_lycoris_loha_tucker",
    "sd15_lycoris_lokr_factor",
    "sd15_lycoris_lokr_full",
    "sd21_kohya_lora_r8",
    "sdxl_diffusers_peft_lcm_like_r64",
    "sdxl_diffusers_peft_r4",
    "sdxl_diffusers_peft_r4_old",
    "sdxl_kohya_lora_r32_sai",
    "sdxl_kohya_lora_r8_diffusersnames",
    "sdxl_kohya_oft_sai",
    "sdxl_lycoris_diag_oft",
    "sdxl_lycoris_glora",
    "sdxl_lycoris_locon",
    "sdxl_lycoris_locon_train_norm",
    "sdxl_lycoris_locon_tucker",
    "sdxl_lycoris_loha",
    "sdxl_lycoris_loha_tucker",
    "sdxl_lycoris_lokr_factor",
    "sdxl_lycoris_lokr_full",
]
FAMILIES = {
    "diffusers_test_aitoolkit_lokr_placeholder_alpha": "Flux.1",
    "diffusers_test_flux2_expanded_blocks": "Flux.2",
    "diffusers_test_flux2_guidance_embedder": "Flux.1 or Flux.2",
    "invokeai_anima_lora_kohya_format": "Anima",
    "invokeai_anima_lora_kohya_with_te_format": "Anima",
    "invokeai_anima_lora_lokr_format": "Anima",
    "invokeai_anima_lora_peft_format": "Anima",
    "invokeai_flux_control_lora_format": "Flux.1",
    "invokeai_flux_dora_onetrainer_format": "Flux.1",
    "invokeai_flux_lokr_bfl_format": "Flux.1",
    "invokeai_flux_lora_aitoolkit_format": "Flux.1",
    "invokeai_flux_lora_diffusers_base_model_format": "Flux.1",
    "invokeai_flux_lora_diffusers_dora_format": "Flux.1",
    "invokeai_flux_lora_diffusers_format": "Flux.1",
    "invokeai_flux_lora_diffusers_no_proj_mlp_format": "Flux.1",
    "invokeai_flux_lora_diffusers_v2_format": "Flux.1",
    "invokeai_flux_lora_diffusers_with_norm_out_format": "Flux.1",
    "invokeai_flux_lora_kohya_format": "Flux.1",
    "invokeai_flux_lora_kohya_with_te1_and_te3_format": "Flux.1",
    "invokeai_flux_lora_kohya_with_te1_format": "Flux.1",
    "invokeai_flux_lora_xlabs_format": "Flux.1",
    "invokeai_krea2_lora_kohya_format": "Krea 2",
    "invokeai_qwen_image_lora_diffusers_format": "Qwen-Image",
    "invokeai_qwen_image_lora_kohya_format": "Qwen-Image",
}
# Lists whose names are the module paths of the diffusers model: they load onto a transformer as they are.
DIFFUSERS_NAMED = [
    "invokeai_flux_lora_diffusers_base_model_format",
    "invokeai_flux_lora_diffusers_dora_format",
    "invokeai_flux_lora_diffusers_format",
    "invokeai_flux_lora_diffusers_no_proj_mlp_format",
    "invokeai_flux_lora_diffusers_with_norm_out_format",
    "invokeai_qwen_image_lora_diffusers_format",
    "invokeai_qwen_image_lora_kohya_format",
]


def clip(width, layers, heads, kind=CLIPTextModel, **more):
    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers}
    return kind(CLIPTextConfig(**sizes, num_attention_heads=heads, **more))


@functools.cache
def full_size(kind):
    """Build the models of SD 1.5, SD 2.1 or SDXL at full size without weights."""
    cross = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    blocks = {"down_block_types": cross, "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3}
    with torch.device("meta"):
        if kind == "sd15":
            return {
                "unet": UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8, **blocks),
                "text_encoder": clip(768, 12, 12),
            }
        if kind == "sd21":
            heads = {"attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True}
            return {
                "unet": UNet2DConditionModel(cross_attention_dim=1024, **heads, **blocks),
                "text_encoder": clip(1024, 23, 16),
            }
        unet = UNet2DConditionModel(
            block_out_channels=(320, 640, 1280),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(5, 10, 20),
            cross_attention_dim=2048,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        )
        second = clip(1280, 32, 20, CLIPTextModelWithProjection, projection_dim=1280)
        return {"unet": unet, "text_encoder": clip(768, 12, 12), "text_encoder_2": second}


def tensors(shared_data, name):
    """Make the tensors of a list without weights; only single numbers have values. Unknown shapes become (4, 4)."""
    keys = json.loads((shared_data / "keys" / f"{name}.json").read_text())["keys"]
    table = {}
    for key, shape in keys.items():
        if shape is None:
            shape = [] if key.endswith(".alpha") else [4, 4]  # noqa: PLW2901
        table[key] = torch.ones(shape) if not shape else torch.empty(shape, device="meta")
    return table


def adapter(shared_data, name):
    return read_source(resolve_source(tensors(shared_data, name)))


def test_all_key_lists_are_tested(shared_data):
    found = {path.stem for path in (shared_data / "keys").glob("*.json")}
    others = {name for name in found if name.startswith(("aitoolkit_keymap", "issues"))}

    assert found - others == {f"fullsize_{n}" for n in SD} | {
        *FAMILIES,
        "invokeai_sdxl_dramatic_lighting_slider",
    }


@pytest.mark.parametrize("name", SD)
def test_list_is_matched_in_full_on_the_full_size_model(shared_data, name):
    kind = name.partition("_")[0]
    given = adapter(shared_data, f"fullsize_{name}")

    report = bind(given, full_size(kind), name).report

    assert report.complete, str(report)
    assert report.matched == len(given.layers)
    assert given.info.base == {"sd15": "SD 1.x", "sd21": "SD 2.x", "sdxl": "SDXL"}[kind]


def test_slider_without_shapes_is_matched_in_full(shared_data):
    unet = full_size("sdxl")["unet"]
    modules = {path.replace(".", "_"): module for path, module in unet.named_modules()}
    table = {}
    for key in tensors(shared_data, "invokeai_sdxl_dramatic_lighting_slider"):
        out, into = modules[key.removeprefix("lora_unet_").partition(".")[0]].weight.shape
        shape = {"down": (4, into), "up": (out, 4)}.get(re.sub(r".*lora_|\.weight", "", key), ())
        table[key] = torch.ones(()) if not shape else torch.empty(shape, device="meta")

    report = bind(read_source(resolve_source(table)), full_size("sdxl"), "slider").report

    assert report.complete
    assert report.matched == 280


@pytest.mark.parametrize("wrong", ["sd15", "sd21"])
def test_sdxl_file_is_refused_by_other_models_with_both_names(shared_data, wrong):
    given = adapter(shared_data, "fullsize_sdxl_kohya_lora_r8_diffusersnames")

    with pytest.raises(MatchError, match=r"for SDXL.*this pipeline is SD [12]\.x"):
        bind(given, full_size(wrong), "x")


@pytest.mark.parametrize("name", FAMILIES)
def test_foreign_family_is_named_and_refused(shared_data, name):
    given = adapter(shared_data, name)

    assert given.info.base == FAMILIES[name]
    for kind in ("sd15", "sdxl"):
        with pytest.raises(MatchError, match=rf"for {re.escape(FAMILIES[name])}"):
            bind(given, full_size(kind), "x")


def module_tree(shapes):
    """Build a tree of linears without weights at the given dotted paths."""
    root = nn.Module()
    for path, (out, into) in shapes.items():
        *parents, last = path.split(".")
        module = root
        for part in parents:
            if not hasattr(module, part):
                module.add_module(part, nn.Module())
            module = getattr(module, part)
        module.add_module(last, nn.Linear(into, out, device="meta"))
    return root


def dotted(module):
    """Spell the underscored modules of Flux and Qwen-Image lists as paths, for building the tree."""
    if "." in module:
        return module
    module = re.sub(r"_(\d+)_", r".\1.", module)
    module = re.sub(r"_(\d+)$", r".\1", module)
    for joined in (
        "attn",
        "norm1",
        "norm1_context",
        "norm",
        "ff",
        "ff_context",
        "img_mlp",
        "txt_mlp",
        "time_text_embed",
    ):
        module = re.sub(rf"(^|\.){joined}_(?!context)", rf"\1{joined}.", module)
    return re.sub(r"(embedder|embed)_linear", r"\1.linear", module)


@pytest.mark.parametrize("name", DIFFUSERS_NAMED)
def test_diffusers_named_file_loads_onto_a_transformer_by_module_path(shared_data, name):
    given = adapter(shared_data, name)
    layers = [layer for layer in given.layers if layer.target.hint not in ("text_encoder", "text_encoder_2")]
    shapes = {}
    for layer in layers:
        held = list(layer.weights.tensors())
        inner = getattr(layer.weights, "inner", layer.weights)
        if hasattr(inner, "up"):
            shapes[dotted(layer.target.module)] = (inner.up.shape[0], inner.down.shape[1])
        else:
            w1, w2 = inner.w1, next(t for t in held if t is not inner.w1)
            shapes[dotted(layer.target.module)] = (w1.shape[0] * w2.shape[0], w1.shape[1] * w2.shape[1])

    report = bind(given, {"transformer": module_tree(shapes)}, name).report

    assert report.complete, str(report)
    assert report.matched == len(layers) == len(shapes)


@pytest.mark.parametrize(
    "name", ["invokeai_flux_lora_kohya_format", "invokeai_flux_lora_kohya_with_te1_format"]
)
def test_other_spellings_of_a_transformer_are_refused_by_family_and_say_what_would_load(shared_data, name):
    tree = module_tree({"transformer_blocks.0.attn.to_q": (3072, 3072)})
    with torch.device("meta"):
        parts = {"transformer": tree, "text_encoder": clip(768, 12, 12)}

    with pytest.raises(MatchError, match=r"for Flux\.1 in kohya names.*as diffusers and PEFT save them"):
        bind(adapter(shared_data, name), parts, "x")
