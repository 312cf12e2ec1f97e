"""Families of which there is no reference data: which rows of a file's layer each live module gets, by their tables."""

from __future__ import annotations

import diffusers
import pytest
import torch
from safetensors.torch import load_file

from lora_mixer import LoraMixer
from lora_mixer.binding import bind
from lora_mixer.formats import read_source
from lora_mixer.sources import resolve_source
from tests.transformers_data import Parts

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
    "CogView3": ("CogView3PlusTransformer2DModel", {**SMALL, "time_embed_dim": 6, "text_embed_dim": 10}),
    "Cosmos": ("CosmosTransformer3DModel", {"num_layers": 2}),
    "AceStep": ("AceStepTransformer1DModel", {"num_hidden_layers": 1}),
    "PRX": ("PRXTransformer2DModel", {"depth": 1}),
    "SanaVideo": ("SanaVideoTransformer3DModel", {"num_layers": 1, "qk_norm": "rms_norm_across_heads"}),
    "WanAnimate": ("WanAnimateTransformer3DModel", {"num_layers": 1, "inject_face_latents_blocks": 1}),
    "WanAnimate2": ("WanAnimate2Transformer3DModel", {"num_layers": 1}),
    "MiniMax": ("MiniMaxH3Transformer3DModel", {"num_layers": 1}),
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
    ("CogView4", "mixins.final_layer.adaln.1", {"norm_out.linear": "16:32,0:16"}),
    ("CogView3", "transformer.layers.0.attention.query_key_value", {f"transformer_blocks.0.attn1.to_{x}": f"{16 * n}:{16 * n + 16}" for n, x in enumerate("qkv")}),
    ("HunyuanDiT", "final_layer.adaLN_modulation.1", {"norm_out.linear": "16:32,0:16"}),
    ("WanAnimate", "face_adapter.fuser_blocks.0.linear1_kv", {"face_adapter.0.to_k": "0:5120", "face_adapter.0.to_v": "5120:10240"}),
    ("Flux3", "final_layer.image.adaLN_modulation.1", {"norm_out.linear": "3072:6144,0:3072"}),
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
        ("HunyuanDiT", "pooler.c_proj", "time_extra_emb.pooler.c_proj"),
        ("HunyuanDiT", "t_embedder.mlp.2", "time_extra_emb.timestep_embedder.linear_2"),
        ("HunyuanDiT", "extra_embedder.0", "time_extra_emb.extra_embedder.linear_1"),
        ("HunyuanDiT", "mlp_t5.2", "text_embedder.linear_2"),
        ("HunyuanDiT", "final_layer.linear", "proj_out"),
        ("LuminaNext", "t_embedder.mlp.0", "time_caption_embed.timestep_embedder.linear_1"),
        ("LuminaNext", "cap_embedder.1", "time_caption_embed.caption_embedder.1"),
        ("LuminaNext", "x_embedder", "patch_embedder.proj"),
        ("CogVideoX", "time_embed.2", "time_embedding.linear_2"),
        ("CogVideoX", "mixins.patch_embed.text_proj", "patch_embed.text_proj"),
        ("CogVideoX", "mixins.final_layer.linear", "proj_out"),
        ("CogView4", "mixins.adaln.adaln_modules.0.1", "transformer_blocks.0.norm1.linear"),
        ("CogView4", "label_emb.0.2", "time_condition_embed.condition_embedder.linear_2"),
        ("CogView3", "time_embed.0", "time_condition_embed.timestep_embedder.linear_1"),
        ("CogView3", "mixins.patch_embed.proj", "patch_embed.proj"),
        ("Cosmos", "blocks.block1.blocks.0.block.attn.to_q.0", "transformer_blocks.1.attn1.to_q"),
        ("Cosmos", "blocks.block0.blocks.1.block.attn.to_out.0", "transformer_blocks.0.attn2.to_out.0"),
        ("Cosmos", "blocks.block1.blocks.2.block.layer2", "transformer_blocks.1.ff.net.2"),
        ("Cosmos", "blocks.block0.blocks.2.adaLN_modulation.1", "transformer_blocks.0.norm3.linear_1"),
        ("Cosmos", "final_layer.adaLN_modulation.2", "norm_out.linear_2"),
        ("AceStep", "layers.0.cross_attn.o_proj", "layers.0.cross_attn.to_out.0"),
        ("AceStep", "decoder.layers.0.self_attn.v_proj", "layers.0.self_attn.to_v"),
        ("AceStep", "decoder.time_embed.linear_1", "time_embed.linear_1"),
        ("PRX", "blocks.0.attn_out", "blocks.0.attention.to_out.0"),
        ("PRX", "blocks.0.txt_kv_proj", "blocks.0.attention.txt_kv_proj"),
        ("Flux3", "time_in.out_layer", "timestep_embedder.linear_2"),
        ("Flux3", "final_layer.image.linear", "proj_out"),
        ("Flux3", "single_stream_modulations.image.lin", "single_stream_modulations.image.linear"),
        ("Flux3", "txt_in", "context_embedder"),
        ("MiniMax", "audio_patch_proj", "audio_proj_in"),
        ("MiniMax", "final_layer.audio_out", "audio_proj_out"),
        ("WanAnimate", "motion_encoder.enc.fc.2", "motion_encoder.motion_network.2"),
        ("WanAnimate", "face_adapter.fuser_blocks.0.linear1_q", "face_adapter.0.to_q"),
        ("WanAnimate2", "blocks.0.self_attn.o", "blocks.0.self_attn.to_out.0"),
        ("WanAnimate2", "blocks.0.block.cross_attn.k_img", "blocks.0.cross_attn.add_k_proj"),
        ("WanAnimate2", "blocks.0.attn2.to_v", "blocks.0.cross_attn.to_v"),
        ("WanAnimate2", "condition_embedder.time_proj", "time_projection.1"),
        ("HunyuanVideo15", "cond_type_embedding", "cond_type_embed"),
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


@pytest.mark.parametrize(
    ("name", "layer", "paths"),
    [
        ("HunyuanDiT", "blocks.0.norm1", ["blocks.0.norm1.norm"]),
        ("HunyuanDiT", "blocks.0.attn2.k_norm", ["blocks.0.attn2.norm_k"]),
        ("LuminaNext", "layers.0.attention.q_norm", ["layers.0.attn1.norm_q", "layers.0.attn2.norm_q"]),
        ("LuminaNext", "layers.0.attention.ky_norm", ["layers.0.attn2.norm_k"]),
        ("LuminaNext", "layers.0.attention_y_norm", ["layers.0.norm1_context"]),
        ("LuminaNext", "layers.0.attention.gate", ["layers.0.gate"]),
        ("CogVideoX", "mixins.adaln_layer.query_layernorm_list.0", ["transformer_blocks.0.attn1.norm_q"]),
        ("CogVideoX", "transformer.layers.0.post_attention_layernorm", ["transformer_blocks.0.norm2.norm"]),
        ("Cosmos", "blocks.block1.blocks.1.block.attn.to_k.1", ["transformer_blocks.1.attn2.norm_k"]),
        ("Cosmos", "affline_norm", ["time_embed.norm"]),
        ("Cosmos", "extra_pos_embedder.pos_emb_h", ["learnable_pos_embed.pos_emb_h"]),
        ("AceStep", "layers.0.cross_attn.q_norm", ["layers.0.cross_attn.norm_q"]),
        ("AceStep", "proj_in.1", ["proj_in_conv"]),
        ("PRX", "blocks.0.qk_norm.key_norm.scale", ["blocks.0.attention.norm_k"]),
        ("SanaVideo", "blocks.0.cross_attn.q_norm", ["transformer_blocks.0.attn2.norm_q"]),
        ("SanaVideo", "blocks.0.mlp.t_conv", ["transformer_blocks.0.ff.conv_temp"]),
        ("SanaVideo", "x_embedder.proj", ["patch_embedding"]),
        ("Flux3", "single_blocks.0.norm.query_norm.scale", ["single_transformer_blocks.0.attn.norm_q"]),
        ("MiniMax", "blocks.0.attn.k_norm", ["transformer_blocks.0.attn.norm_k"]),
        ("MiniMax", "token_refiner.blocks.0.norm2", ["token_refiner.refiner_blocks.0.norm2"]),
        ("WanAnimate", "motion_encoder.enc.net_app.convs.3.skip.1", ["motion_encoder.res_blocks.2.conv_skip"]),
        ("WanAnimate", "face_encoder.conv2.conv", ["face_encoder.conv2"]),
        ("WanAnimate2", "blocks.0.block.norm3", ["blocks.0.norm3"]),
        ("WanAnimate2", "head.modulation", ["head.modulation"]),
    ],
)  # fmt: skip
def test_changes_of_norms_convolutions_and_bare_parameters_go_where_the_original_has_them(name, layer, paths):
    live = model(name)
    own = live.state_dict()
    shape = own.get(f"{paths[0]}.weight", own.get(paths[0])).shape
    bound = bind(
        read_source(resolve_source({f"model.diffusion_model.{layer}.diff": torch.ones(shape)})),
        {"transformer": live},
        "a",
    )
    assert [entry.live.path for entry in bound.layers] == paths


@pytest.mark.parametrize(
    ("layer", "path", "size"),
    [
        ("text_embedding_projection.aggregate_embed", "text_proj_in", (12, 24)),
        ("connectors.text_proj_in", "text_proj_in", (12, 24)),
        ("diffusion_model.video_embeddings_connector.transformer_1d_blocks.0.attn1.to_q", "video_connector.transformer_blocks.0.attn1.to_q", (12, 12)),
        ("connectors.audio_embeddings_connector.transformer_1d_blocks.0.ff.net.2", "audio_connector.transformer_blocks.0.ff.net.2", (12, 48)),
        ("lora_unet_video_embeddings_connector_transformer_1d_blocks_0_attn1_to_k", "video_connector.transformer_blocks.0.attn1.to_k", (12, 12)),
    ],
)  # fmt: skip
def test_connectors_of_ltx2_are_a_component_of_their_own(layer, path, size):
    from diffusers.pipelines.ltx2 import LTX2TextConnectors

    with torch.device("meta"):
        heads = {
            f"{part}_connector_{what}": size
            for part in ("video", "audio")
            for what, size in (("num_attention_heads", 2), ("attention_head_dim", 6), ("num_layers", 1))
        }
        connectors = LTX2TextConnectors(caption_channels=12, text_proj_in_factor=2, **heads)
    pair = {
        f"{layer}.lora_A.weight": torch.ones(1, size[1]),
        f"{layer}.lora_B.weight": torch.ones(size[0], 1),
    }
    with_denoiser = {
        "diffusion_model.transformer_blocks.0.attn1.to_q.lora_A.weight": torch.ones(1, 4096),
        "diffusion_model.transformer_blocks.0.attn1.to_q.lora_B.weight": torch.ones(4096, 1),
    }
    parts = {"transformer": model("LTX2"), "connectors": connectors}
    bound = bind(read_source(resolve_source(pair | with_denoiser)), parts, "a")
    assert bound.report.complete
    assert {(entry.live.component, entry.live.path) for entry in bound.layers} == {
        ("connectors", path),
        ("transformer", "transformer_blocks.0.attn1.to_q"),
    }


def test_a_denoisers_front_means_the_prior_where_that_is_the_denoiser():
    pair = {
        "lora_unet_up.lora_up.weight": torch.ones(4, 1),
        "lora_unet_up.lora_down.weight": torch.ones(1, 6),
    }
    prior = torch.nn.Module()
    prior.up = torch.nn.Linear(6, 4)
    bound = bind(read_source(resolve_source(pair)), {"prior": prior}, "a")
    assert [entry.live.path for entry in bound.layers] == ["up"]


def test_stable_cascades_prior_is_written_under_onetrainers_fronts_and_read_back(tmp_path):
    def parts():
        prior, encoder = torch.nn.Module(), torch.nn.Module()
        prior.up, encoder.q = torch.nn.Linear(6, 4), torch.nn.Linear(3, 5)
        return Parts({"prior": prior, "text_encoder": encoder})

    sizes = {"prior.up": (4, 6), "text_encoder.q": (5, 3)}
    table = {f"{name}.lora_A.weight": torch.ones(1, into) for name, (_, into) in sizes.items()}
    table |= {f"{name}.lora_B.weight": torch.ones(out, 1) for name, (out, _) in sizes.items()}
    mixer = LoraMixer(parts())
    mixer.load_lora_weights(table, "a")
    mixer.save_lora_weights(tmp_path / "a.safetensors", format="kohya")

    written = load_file(tmp_path / "a.safetensors")
    assert {key.partition(".")[0] for key in written} == {"lora_prior_unet_up", "lora_prior_te_q"}
    bound = bind(read_source(resolve_source(written)), parts().components, "a")
    assert [entry.live.component for entry in bound.layers] == ["text_encoder", "prior"]
    assert bound.report.complete
