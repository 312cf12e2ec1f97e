"""Flux.1 (dev, schnell, Krea-dev, Kontext, Fill, Depth, Canny), and Chroma and Ovis-Image, which share its blocks."""

from __future__ import annotations

from lora_mixer.families.family import Family

_BLOCKS = """
double_blocks.N.img_attn.qkv -> transformer_blocks.N.attn.to_q .to_k .to_v
double_blocks.N.txt_attn.qkv -> transformer_blocks.N.attn.add_q_proj .add_k_proj .add_v_proj
double_blocks.N.{img,txt}_attn.proj -> transformer_blocks.N.attn.{to_out.0,to_add_out}
double_blocks.N.img_attn.norm.{query_norm,key_norm}.scale -> transformer_blocks.N.attn.{norm_q,norm_k}
double_blocks.N.txt_attn.norm.{query_norm,key_norm}.scale -> transformer_blocks.N.attn.{norm_added_q,norm_added_k}
double_blocks.N.img_attn.norm.{query_norm,key_norm} -> transformer_blocks.N.attn.{norm_q,norm_k}
double_blocks.N.txt_attn.norm.{query_norm,key_norm} -> transformer_blocks.N.attn.{norm_added_q,norm_added_k}
single_blocks.N.linear1 -> single_transformer_blocks.N.attn.to_q .to_k .to_v single_transformer_blocks.N.proj_mlp
single_blocks.N.linear2 -> single_transformer_blocks.N.proj_out
single_blocks.N.norm.{query_norm,key_norm}.scale -> single_transformer_blocks.N.attn.{norm_q,norm_k}
single_blocks.N.norm.{query_norm,key_norm} -> single_transformer_blocks.N.attn.{norm_q,norm_k}
img_in -> x_embedder
txt_in -> context_embedder
final_layer.linear -> proj_out
"""
_MLP = """
double_blocks.N.{img,txt}_mlp.0 -> transformer_blocks.N.{ff,ff_context}.net.0.proj
double_blocks.N.{img,txt}_mlp.2 -> transformer_blocks.N.{ff,ff_context}.net.2
"""
_MODULATION = """
double_blocks.N.{img,txt}_mod.lin -> transformer_blocks.N.{norm1,norm1_context}.linear
single_blocks.N.modulation.lin -> single_transformer_blocks.N.norm.linear
final_layer.adaLN_modulation.1 -> norm_out.linear[swap]
"""
_EMBEDDERS = """
time_in.{in_layer,out_layer} -> time_text_embed.timestep_embedder.{linear_1,linear_2}
vector_in.{in_layer,out_layer} -> time_text_embed.text_embedder.{linear_1,linear_2}
guidance_in.{in_layer,out_layer} -> time_text_embed.guidance_embedder.{linear_1,linear_2}
"""
_XLABS = """
double_blocks.N.{qkv_1,processor.qkv_lora1} -> transformer_blocks.N.attn.to_q .to_k .to_v
double_blocks.N.{qkv_2,processor.qkv_lora2} -> transformer_blocks.N.attn.add_q_proj .add_k_proj .add_v_proj
double_blocks.N.{proj_1,proj_2} -> transformer_blocks.N.attn.{to_out.0,to_add_out}
double_blocks.N.processor.{proj_lora1,proj_lora2} -> transformer_blocks.N.attn.{to_out.0,to_add_out}
single_blocks.N.{qkv,processor.qkv_lora} -> single_transformer_blocks.N.attn.to_q .to_k .to_v
single_blocks.N.{proj,processor.proj_lora} -> single_transformer_blocks.N.proj_out
"""
_DIFFSYNTH = """
blocks.N.attn.a_to_qkv -> transformer_blocks.N.attn.to_q .to_k .to_v
blocks.N.attn.b_to_qkv -> transformer_blocks.N.attn.add_q_proj .add_k_proj .add_v_proj
blocks.N.attn.{a,b}_to_out -> transformer_blocks.N.attn.{to_out.0,to_add_out}
blocks.N.{ff_a,ff_b}.0 -> transformer_blocks.N.{ff,ff_context}.net.0.proj
blocks.N.{ff_a,ff_b}.2 -> transformer_blocks.N.{ff,ff_context}.net.2
blocks.N.{norm1_a,norm1_b}.linear -> transformer_blocks.N.{norm1,norm1_context}.linear
single_blocks.N.to_qkv_mlp -> single_transformer_blocks.N.attn.to_q .to_k .to_v single_transformer_blocks.N.proj_mlp
single_blocks.N.proj_out -> single_transformer_blocks.N.proj_out
single_blocks.N.norm.linear -> single_transformer_blocks.N.norm.linear
"""

FLUX = Family(
    "Flux.1",
    classes=("Flux", "LongCatImage", "BriaTransformer"),
    joint="text first",
    layouts={
        "bfl": _BLOCKS + _MLP + _MODULATION + _EMBEDDERS,
        "xlabs": _XLABS,
        "diffsynth": _DIFFSYNTH,
    },
    absent="""
guidance_in.*
time_text_embed.guidance_embedder.*
distilled_guidance_layer.*
""",
    marks=r"(?:^|_)(?:(?:double_blocks|single_blocks|single_transformer_blocks)_0|blocks_0_attn_[ab]_to_(?:qkv|out)$)",
    headers=("flux",),
    said=("flux",),
    bases=(
        *((f"flux{dash}1-schnell", "black-forest-labs/FLUX.1-schnell") for dash in ("-", "", ".")),
        *((f"flux{dash}1-dev", "black-forest-labs/FLUX.1-dev") for dash in ("-", "", ".")),
        *((name, "black-forest-labs/FLUX.1-dev") for name in ("flux1", "flux-1")),
    ),
    kohya=("flux1", "False", "flux-1-dev/lora"),
    transformers=(("FluxTransformer2DModel", {"guidance_embeds": True}),),
    text_encoders={
        "text_encoder": ("CLIPTextModel", 768, 3072, 12, 12),
        "text_encoder_2": ("T5EncoderModel", 4096, 10240, 24, 64),
    },
    t5="text_encoder_2",
    widens=("x_embedder",),
    controlled="FluxControlPipeline",
    kohya_flat="bfl",
    lbw=(58, 61),
)

CHROMA = Family(
    "Chroma",
    classes=("Chroma",),
    joint="text first",
    off_picture="distilled_guidance_layer.*",
    layouts={
        "bfl": _BLOCKS
        + _MLP
        + """
distilled_guidance_layer.layers.N.{in_layer,out_layer} -> distilled_guidance_layer.layers.N.{linear_1,linear_2}
distilled_guidance_layer.norms.N.scale -> distilled_guidance_layer.norms.N
""",
        "xlabs": _XLABS,
        "diffsynth": _DIFFSYNTH,
    },
    absent="""
double_blocks.N.{img,txt}_mod.lin
single_blocks.N.modulation.lin
final_layer.adaLN_modulation.1
{time,vector,guidance}_in.*
transformer_blocks.N.{norm1,norm1_context}.linear
single_transformer_blocks.N.norm.linear
norm_out.linear
time_text_embed.*
""",
    marks=r"distilled_guidance_layer",
    like="Flux.1",
    headers=("chroma",),
    said=("chroma",),
    kohya=("chroma", "False", "chroma/lora"),
    transformers=(("ChromaTransformer2DModel", {}),),
    kohya_flat="bfl",
    lbw=(58, 61),
)

OVIS = Family(
    "Ovis-Image",
    classes=("OvisImage",),
    joint="text first",
    layouts={
        "original": _BLOCKS
        + _MODULATION
        + """
double_blocks.N.{img,txt}_mlp.up_proj -> transformer_blocks.N.{ff,ff_context}.net.0.proj[0/2]
double_blocks.N.{img,txt}_mlp.gate_proj -> transformer_blocks.N.{ff,ff_context}.net.0.proj[1/2]
double_blocks.N.{img,txt}_mlp.down_proj -> transformer_blocks.N.{ff,ff_context}.net.2
double_blocks.N.{img,txt}_mlp.0 -> transformer_blocks.N.{ff,ff_context}.net.0.proj
double_blocks.N.{img,txt}_mlp.2 -> transformer_blocks.N.{ff,ff_context}.net.2
time_in.{in_layer,out_layer} -> timestep_embedder.{linear_1,linear_2}
semantic_txt_in -> context_embedder
semantic_txt_norm -> context_embedder_norm
""",
    },
    marks=r"(?:img|txt)_mlp_(?:up|gate)_proj|^semantic_txt_in|^context_embedder_norm$",
    like="Flux.1",
    headers=("ovis",),
    said=("ovis",),
    kohya_flat="original",
)
