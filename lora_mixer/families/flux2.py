"""Flux.2 (dev, Klein) and Flux.3."""

from __future__ import annotations

from lora_mixer.families.family import Family

FLUX2 = Family(
    "Flux.2",
    classes=("Flux2",),
    joint="text first",
    layouts={
        "bfl": """
double_blocks.N.img_attn.qkv -> transformer_blocks.N.attn.to_q .to_k .to_v
double_blocks.N.txt_attn.qkv -> transformer_blocks.N.attn.add_q_proj .add_k_proj .add_v_proj
double_blocks.N.{img,txt}_attn.proj -> transformer_blocks.N.attn.{to_out.0,to_add_out}
double_blocks.N.img_attn.norm.{query_norm,key_norm}.scale -> transformer_blocks.N.attn.{norm_q,norm_k}
double_blocks.N.txt_attn.norm.{query_norm,key_norm}.scale -> transformer_blocks.N.attn.{norm_added_q,norm_added_k}
double_blocks.N.{img,txt}_mlp.0 -> transformer_blocks.N.{ff,ff_context}.linear_in
double_blocks.N.{img,txt}_mlp.2 -> transformer_blocks.N.{ff,ff_context}.linear_out
single_blocks.N.linear1 -> single_transformer_blocks.N.attn.to_qkv_mlp_proj
single_blocks.N.linear2 -> single_transformer_blocks.N.attn.to_out
single_blocks.N.norm.{query_norm,key_norm}.scale -> single_transformer_blocks.N.attn.{norm_q,norm_k}
double_stream_modulation_{img,txt}.lin -> double_stream_modulation_{img,txt}.linear
single_stream_modulation.lin -> single_stream_modulation.linear
time_in.{in_layer,out_layer} -> time_guidance_embed.timestep_embedder.{linear_1,linear_2}
guidance_in.{in_layer,out_layer} -> time_guidance_embed.guidance_embedder.{linear_1,linear_2}
img_in -> x_embedder
txt_in -> context_embedder
final_layer.linear -> proj_out
final_layer.adaLN_modulation.1 -> norm_out.linear[swap]
""",
        "alias": """
sformer_blocks.* -> transformer_blocks.*
single_sformer_blocks.* -> single_transformer_blocks.*
""",
    },
    absent="""
guidance_in.*
time_guidance_embed.guidance_embedder.*
""",
    marks=r"to_qkv_mlp_proj|(?:^|_)(?:single_)?sformer_blocks_0|(?:double|single)_stream_modulation|(?:^|_)transformer_blocks_0_ff(?:_context)?_linear_in",
    like="Flux.1",
    widths=frozenset((6144,)),
    ratio=4,
    headers=("flux2", "flux-2", "flux.2"),
    said=("flux 2", "flux.2", "flux2"),
    kohya=("flux2", "False", "flux-2/lora"),
    transformers=(
        ("Flux2Transformer2DModel", {}),
        # Klein 4B and 9B
        (
            "Flux2Transformer2DModel",
            {
                "num_layers": 5,
                "num_single_layers": 20,
                "num_attention_heads": 24,
                "joint_attention_dim": 7680,
            },
        ),
        (
            "Flux2Transformer2DModel",
            {
                "num_layers": 8,
                "num_single_layers": 24,
                "num_attention_heads": 32,
                "joint_attention_dim": 12288,
            },
        ),
    ),
    widens=("x_embedder",),
    kohya_flat="bfl",
)

_FLUX3_BLOCKS = (
    ("content_mode_blocks.*", "mode_blocks.*"),
    ("mode_blocks.*", "mode_blocks.*"),
    ("txt_mode_blocks", "txt_mode_blocks"),
    ("single_blocks", "single_transformer_blocks"),
)
_FLUX3_LAYERS = (
    ("q_proj", "attn.to_q"),
    ("k_proj", "attn.to_k"),
    ("v_proj", "attn.to_v"),
    ("attn_out", "attn.to_out.0"),
    ("mlp_in", "ff.linear_in"),
    ("mlp_out", "ff.linear_out"),
    ("norm.query_norm.scale", "attn.norm_q"),
    ("norm.key_norm.scale", "attn.norm_k"),
)
FLUX3 = Family(
    "Flux.3",
    classes=("Flux3",),
    layouts={
        "bfl": "\n".join(
            f"{theirs}.N.{layer} -> {ours}.N.{live}"
            for theirs, ours in _FLUX3_BLOCKS
            for layer, live in _FLUX3_LAYERS
        )
        + """
content_mode_blocks.* -> mode_blocks.*
single_blocks.* -> single_transformer_blocks.*
emb_in.* -> x_embedders.*
txt_in -> context_embedder
time_in.{in_layer,out_layer} -> timestep_embedder.{linear_1,linear_2}
ref_time_in.{in_layer,out_layer} -> target_timestep_embedder.{linear_1,linear_2}
{early,single}_stream_modulations.*.lin -> {early,single}_stream_modulations.*.linear
final_layer.image.linear -> proj_out
final_layer.image.adaLN_modulation.1 -> norm_out.linear[swap]
""",
    },
    marks=(
        r"(?:content_)?mode_blocks_0|(?:^|_)single_blocks_0_(?:[qkv]_proj|attn_out|mlp_(?:in|out))$"
        r"|^single_transformer_blocks_0_attn_to_out_0$"
    ),
    headers=("flux3", "flux-3"),
    said=("flux.3", "flux 3", "flux3"),
    kohya_flat="bfl",
)
