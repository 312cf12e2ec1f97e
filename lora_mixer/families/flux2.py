"""Flux.2 (dev, Klein) and Flux.3."""

from __future__ import annotations

from lora_mixer.families.family import Family

FLUX2 = Family(
    "Flux.2",
    classes=("Flux2",),
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
    marks=r"to_qkv_mlp_proj|(?:double|single)_stream_modulation|(?:^|_)transformer_blocks_0_ff(?:_context)?_linear_in",
    like="Flux.1",
    widths=frozenset((6144,)),
    ratio=4,
    headers=("flux2", "flux-2", "flux.2"),
    said=("flux 2", "flux.2", "flux2"),
    kohya=("flux2", "False", "flux-2/lora"),
    transformer=("Flux2Transformer2DModel", {}),
    widens=("x_embedder",),
    kohya_flat="bfl",
)

FLUX3 = Family(
    "Flux.3",
    classes=("Flux3",),
    layouts={
        "bfl": """
{content_mode_blocks,mode_blocks}.N.q_proj -> {mode_blocks,mode_blocks}.N.attn.to_q
{content_mode_blocks,mode_blocks}.N.k_proj -> {mode_blocks,mode_blocks}.N.attn.to_k
{content_mode_blocks,mode_blocks}.N.v_proj -> {mode_blocks,mode_blocks}.N.attn.to_v
{content_mode_blocks,mode_blocks}.N.attn_out -> {mode_blocks,mode_blocks}.N.attn.to_out.0
{content_mode_blocks,mode_blocks}.N.mlp_in -> {mode_blocks,mode_blocks}.N.ff.linear_in
{content_mode_blocks,mode_blocks}.N.mlp_out -> {mode_blocks,mode_blocks}.N.ff.linear_out
single_blocks.N.q_proj -> single_transformer_blocks.N.attn.to_q
single_blocks.N.k_proj -> single_transformer_blocks.N.attn.to_k
single_blocks.N.v_proj -> single_transformer_blocks.N.attn.to_v
single_blocks.N.attn_out -> single_transformer_blocks.N.attn.to_out.0
single_blocks.N.mlp_in -> single_transformer_blocks.N.ff.linear_in
single_blocks.N.mlp_out -> single_transformer_blocks.N.ff.linear_out
content_mode_blocks.* -> mode_blocks.*
single_blocks.* -> single_transformer_blocks.*
emb_in.* -> x_embedders.*
final_layer.image.adaLN_modulation.1 -> norm_out.linear[swap]
""",
    },
    marks=r"(?:content_)?mode_blocks_0",
    headers=("flux3", "flux-3"),
    said=("flux.3", "flux 3", "flux3"),
    kohya_flat="bfl",
)
