"""Families of which there is no reference data: which rows of a file's layer each live module gets, by their tables."""

from __future__ import annotations

import diffusers
import pytest
import torch

from lora_mixer.binding import bind
from lora_mixer.formats import read_source
from lora_mixer.sources import resolve_source

ROPE = {"short_factor": [1.0] * 4, "long_factor": [1.0] * 4}
SMALL = {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 8}
MODELS = {
    "OmniGen": (
        "OmniGenTransformer2DModel",
        {
            "hidden_size": 16,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "intermediate_size": 20,
            "num_layers": 1,
            "rope_scaling": ROPE,
        },
    ),
    "CogVideoX": ("CogVideoXTransformer3DModel", {**SMALL, "time_embed_dim": 6, "text_embed_dim": 10}),
    "CogView4": ("CogView4Transformer2DModel", {**SMALL, "time_embed_dim": 6, "text_embed_dim": 10}),
    "LuminaNext": (
        "LuminaNextDiT2DModel",
        {
            "hidden_size": 16,
            "num_layers": 1,
            "num_attention_heads": 2,
            "num_kv_heads": 1,
            "cross_attention_dim": 12,
        },
    ),
    "HunyuanDiT": (
        "HunyuanDiT2DModel",
        {
            **SMALL,
            "hidden_size": 16,
            "in_channels": 4,
            "sample_size": 8,
            "patch_size": 2,
            "pooled_projection_dim": 10,
            "cross_attention_dim": 12,
            "cross_attention_dim_t5": 14,
        },
    ),
    "Flux3": ("Flux3Transformer2DModel", {}),
    "Ideogram": ("Ideogram4Transformer2DModel", {}),
    "QwenImage21": ("QwenImage21Transformer2DModel", {"num_layers": 1}),
    "HunyuanVideo15": ("HunyuanVideo15Transformer3DModel", {"num_layers": 1}),
    "LTX2": ("LTX2VideoTransformer3DModel", {"num_layers": 1}),
}
# The model, the layer's name in the file, and for each live module the rows of the file's layer in its own order;

CASES = [
    ("OmniGen", "llm.layers.0.self_attn.qkv_proj", {"layers.0.self_attn.to_q": "0:16", "layers.0.self_attn.to_k": "16:24", "layers.0.self_attn.to_v": "24:32"}),
    ("OmniGen", "final_layer.adaLN_modulation.1", {"norm_out.linear": "0:32"}),
    ("CogVideoX", "transformer.layers.0.attention.query_key_value", {f"transformer_blocks.0.attn1.to_{x}": f"{16 * n}:{16 * n + 16}" for n, x in enumerate("qkv")}),
    ("CogVideoX", "mixins.adaln_layer.adaLN_modulations.0.1", {"transformer_blocks.0.norm1.linear": "0:48,96:144", "transformer_blocks.0.norm2.linear": "48:96,144:192"}),
    ("CogVideoX", "mixins.final_layer.adaLN_modulation.1", {"norm_out.linear": "0:32"}),
    ("CogView4", "mixins.final_layer.adaLN_modulation.1", {"norm_out.linear": "16:32,0:16"}),
    ("LuminaNext", "layers.0.attention.wq", {"layers.0.attn1.to_q": "0:16", "layers.0.attn2.to_q": "0:16"}),
    ("LuminaNext", "layers.0.attention.wk_y", {"layers.0.attn2.to_k": "0:8"}),
    ("HunyuanDiT", "blocks.0.attn1.Wqkv", {f"blocks.0.attn1.to_{x}": f"{16 * n}:{16 * n + 16}" for n, x in enumerate("qkv")}),
    ("HunyuanDiT", "blocks.0.attn2.kv_proj", {"blocks.0.attn2.to_k": "0:16", "blocks.0.attn2.to_v": "16:32"}),
    ("Flux3", "single_blocks.0.q_proj", {"single_transformer_blocks.0.attn.to_q": "0:3072"}),
    ("Flux3", "content_mode_blocks.image.1.mlp_in", {"mode_blocks.image.1.ff.linear_in": "0:18432"}),
]  # fmt: skip


def model(name):
    kind, config = MODELS[name]
    with torch.device("meta"):
        return getattr(diffusers, kind)(**config)


@pytest.mark.parametrize(("name", "layer", "rows"), CASES)
def test_each_live_module_gets_its_rows_in_its_own_order(name, layer, rows):
    live = model(name)
    spans = {
        path: [tuple(map(int, span.split(":"))) for span in text.split(",")] for path, text in rows.items()
    }
    total = max(stop for own in spans.values() for _, stop in own)
    into = live.get_submodule(next(iter(rows))).weight.shape[1]
    up = torch.arange(total, dtype=torch.float32)[:, None]
    table = {f"{layer}.lora_B.weight": up, f"{layer}.lora_A.weight": torch.ones(1, into)}

    bound = bind(read_source(resolve_source(table)), {"transformer": live}, "a")

    assert bound.report.complete
    found = {entry.live.path: entry.weights.factors(entry.live.shape).up for entry in bound.layers}
    assert found.keys() == rows.keys()
    for path, own in spans.items():
        assert torch.equal(found[path], torch.cat([up[start:stop] for start, stop in own]))


@pytest.mark.parametrize(
    ("name", "layer", "path"),
    [
        ("Ideogram", "layers.0.attention.o", "layers.0.attention.to_out.0"),
        ("HunyuanVideo15", "double_blocks.0.txt_attn_k", "transformer_blocks.0.attn.add_k_proj"),
        ("HunyuanVideo15", "byt5_in.fc2", "context_embedder_2.linear_2"),
        ("LTX2", "audio_adaln_single.linear", "audio_time_embed.linear"),
        ("LTX2", "adaln_single.linear", "time_embed.linear"),
        ("LTX2", "av_ca_a2v_gate_adaln_single.linear", "av_cross_attn_video_a2v_gate.linear"),
        ("QwenImage21", "transformer_blocks.0.img_mlp.gate_up", None),
    ],
)
def test_names_of_the_original_code_mean_the_live_module(name, layer, path):
    live = model(name)
    wanted = [path] if path else [f"transformer_blocks.0.img_mlp.{x}" for x in ("gate_layer", "proj")]
    shapes = [live.get_submodule(x).weight.shape for x in wanted]
    table = {
        f"diffusion_model.{layer}.lora_B.weight": torch.ones(sum(s[0] for s in shapes), 1),
        f"diffusion_model.{layer}.lora_A.weight": torch.ones(1, shapes[0][1]),
    }
    bound = bind(read_source(resolve_source(table)), {"transformer": live}, "a")
    assert [entry.live.path for entry in bound.layers] == wanted


def test_norms_that_hunyuandit_exchanged_are_those_of_the_layout_that_the_file_has():
    """``norm2`` is in both layouts: the other names of the file tell which is meant."""
    live = model("HunyuanDiT")
    norm = torch.ones(16)
    pair = {".lora_B.weight": torch.ones(48, 1), ".lora_A.weight": torch.ones(1, 16)}
    original = {f"blocks.0.attn1.Wqkv{leaf}": t for leaf, t in pair.items()} | {"blocks.0.norm2.diff": norm}
    own = {"blocks.0.attn1.to_q" + leaf: t[:16] for leaf, t in pair.items()} | {"blocks.0.norm2.diff": norm}

    def norms(table):
        bound = bind(read_source(resolve_source(table)), {"transformer": live}, "a")
        return [entry.live.path for entry in bound.layers if "norm" in entry.live.path]

    assert norms(original) == ["blocks.0.norm3"]
    assert norms(own) == ["blocks.0.norm2"]
