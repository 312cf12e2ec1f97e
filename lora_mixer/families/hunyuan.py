"""Hunyuan: HunyuanVideo (FramePack), HunyuanVideo 1.5, HunyuanImage 2.1, HunyuanDiT."""

from __future__ import annotations

from lora_mixer.families.family import Family

_REFINER = """
txt_in.individual_token_refiner.blocks.N.self_attn_qkv -> context_embedder.token_refiner.refiner_blocks.N.attn.to_q .to_k .to_v
txt_in.individual_token_refiner.blocks.N.self_attn.qkv -> context_embedder.token_refiner.refiner_blocks.N.attn.to_q .to_k .to_v
txt_in.individual_token_refiner.blocks.N.{self_attn_proj,self_attn.proj} -> context_embedder.token_refiner.refiner_blocks.N.attn.{to_out.0,to_out.0}
txt_in.individual_token_refiner.blocks.N.{mlp.fc1,mlp.0} -> context_embedder.token_refiner.refiner_blocks.N.{ff.net.0,ff.net.0}.proj
txt_in.individual_token_refiner.blocks.N.{mlp.fc2,mlp.2} -> context_embedder.token_refiner.refiner_blocks.N.{ff.net.2,ff.net.2}
txt_in.individual_token_refiner.blocks.N.adaLN_modulation.1 -> context_embedder.token_refiner.refiner_blocks.N.norm_out.linear
txt_in.individual_token_refiner.blocks.N.{norm1,norm2} -> context_embedder.token_refiner.refiner_blocks.N.{norm1,norm2}
txt_in.input_embedder -> context_embedder.proj_in
txt_in.t_embedder.{mlp.0,mlp.2} -> context_embedder.time_text_embed.timestep_embedder.{linear_1,linear_2}
txt_in.t_embedder.{in_layer,out_layer} -> context_embedder.time_text_embed.timestep_embedder.{linear_1,linear_2}
txt_in.c_embedder.{linear_1,linear_2} -> context_embedder.time_text_embed.text_embedder.{linear_1,linear_2}
txt_in.c_embedder.{in_layer,out_layer} -> context_embedder.time_text_embed.text_embedder.{linear_1,linear_2}
"""
# the original's names and ComfyUI's of the same blocks
_DOUBLE = """
double_blocks.N.{img_attn_qkv,img_attn.qkv} -> transformer_blocks.N.{attn,attn}.to_q .to_k .to_v
double_blocks.N.{txt_attn_qkv,txt_attn.qkv} -> transformer_blocks.N.{attn,attn}.add_q_proj .add_k_proj .add_v_proj
double_blocks.N.img_attn_{q,k,v} -> transformer_blocks.N.attn.{to_q,to_k,to_v}
double_blocks.N.txt_attn_{q,k,v} -> transformer_blocks.N.attn.{add_q_proj,add_k_proj,add_v_proj}
double_blocks.N.{img_attn_proj,img_attn.proj} -> transformer_blocks.N.attn.{to_out.0,to_out.0}
double_blocks.N.{txt_attn_proj,txt_attn.proj} -> transformer_blocks.N.attn.{to_add_out,to_add_out}
double_blocks.N.img_attn_{q_norm,k_norm} -> transformer_blocks.N.attn.{norm_q,norm_k}
double_blocks.N.txt_attn_{q_norm,k_norm} -> transformer_blocks.N.attn.{norm_added_q,norm_added_k}
double_blocks.N.img_attn.norm.{query_norm,key_norm}.scale -> transformer_blocks.N.attn.{norm_q,norm_k}
double_blocks.N.txt_attn.norm.{query_norm,key_norm}.scale -> transformer_blocks.N.attn.{norm_added_q,norm_added_k}
double_blocks.N.{img_mod.linear,txt_mod.linear} -> transformer_blocks.N.{norm1,norm1_context}.linear
double_blocks.N.{img_mod.lin,txt_mod.lin} -> transformer_blocks.N.{norm1,norm1_context}.linear
double_blocks.N.{img,txt}_mlp.fc1 -> transformer_blocks.N.{ff,ff_context}.net.0.proj
double_blocks.N.{img,txt}_mlp.fc2 -> transformer_blocks.N.{ff,ff_context}.net.2
double_blocks.N.{img,txt}_mlp.0 -> transformer_blocks.N.{ff,ff_context}.net.0.proj
double_blocks.N.{img,txt}_mlp.2 -> transformer_blocks.N.{ff,ff_context}.net.2
img_in.proj -> x_embedder.proj
final_layer.linear -> proj_out
final_layer.adaLN_modulation.1 -> norm_out.linear[swap]
"""
_SINGLE = """
single_blocks.N.linear1 -> single_transformer_blocks.N.attn.to_q .to_k .to_v single_transformer_blocks.N.proj_mlp
single_blocks.N.linear1_{q,k,v,mlp} -> single_transformer_blocks.N.{attn.to_q,attn.to_k,attn.to_v,proj_mlp}
single_blocks.N.{linear2,linear2.fc} -> single_transformer_blocks.N.{proj_out,proj_out}
single_blocks.N.{modulation.linear,modulation.lin} -> single_transformer_blocks.N.{norm,norm}.linear
single_blocks.N.{q_norm,k_norm} -> single_transformer_blocks.N.attn.{norm_q,norm_k}
single_blocks.N.norm.{query_norm,key_norm}.scale -> single_transformer_blocks.N.attn.{norm_q,norm_k}
"""


def _time(to: str) -> str:
    return f"""
time_in.{{mlp.0,mlp.2}} -> {to}.timestep_embedder.{{linear_1,linear_2}}
time_in.{{in_layer,out_layer}} -> {to}.timestep_embedder.{{linear_1,linear_2}}
guidance_in.{{mlp.0,mlp.2}} -> {to}.guidance_embedder.{{linear_1,linear_2}}
guidance_in.{{in_layer,out_layer}} -> {to}.guidance_embedder.{{linear_1,linear_2}}
time_r_in.{{mlp.0,mlp.2}} -> {to}.timestep_embedder_r.{{linear_1,linear_2}}
"""


HUNYUAN_VIDEO = Family(
    "HunyuanVideo",
    classes=("HunyuanVideo",),
    joint="picture first",
    layouts={
        "original": _DOUBLE
        + _SINGLE
        + _REFINER
        + _time("time_text_embed")
        + "vector_in.{in_layer,out_layer} -> time_text_embed.text_embedder.{linear_1,linear_2}",
    },
    absent="""
guidance_in.*
time_text_embed.guidance_embedder.*
""",
    marks=(
        r"(?:double|single)_blocks_0_(?:(?:img|txt)_mlp_fc0|(?:img|txt)_mod_linear|modulation_linear)"
        r"|individual_token_refiner|token_refiner_refiner_blocks"
    ),
    like="Flux.1",
    headers=("hunyuan_video", "hunyuan-video", "hunyuanvideo", "hunyuan"),
    said=("hunyuan video", "hunyuanvideo"),
    kohya=("hunyuan_video", "False", "hunyuan-video/lora"),
    transformer=("HunyuanVideoTransformer3DModel", {"guidance_embeds": True}),
    kohya_flat="original",
)

HUNYUAN_VIDEO_15 = Family(
    "HunyuanVideo 1.5",
    classes=("HunyuanVideo15",),
    joint="picture first",
    layouts={
        "original": _DOUBLE
        + _REFINER
        + _time("time_embed")
        + """
byt5_in.{fc1,fc2,fc3} -> context_embedder_2.{linear_1,linear_2,linear_3}
byt5_in.layernorm -> context_embedder_2.norm
vision_in.proj.{0,4} -> image_embedder.{norm_in,norm_out}
vision_in.proj.{1,3} -> image_embedder.{linear_1,linear_2}
""",
    },
    headers=("hunyuan-video-1.5", "hunyuan_video_1_5"),
    said=("hunyuan video 1.5",),
    kohya_flat="original",
)

HUNYUAN_IMAGE = Family(
    "HunyuanImage",
    classes=("HunyuanImage",),
    joint="picture first",
    layouts={
        "original": _DOUBLE
        + _SINGLE
        + _REFINER
        + _time("time_guidance_embed")
        + "byt5_in.{fc1,fc2,fc3} -> context_embedder_2.{linear_1,linear_2,linear_3}",
    },
    absent="""
guidance_in.*
time_r_in.*
byt5_in.*
""",
    marks=r"(?:double|single)_blocks_0_(?:linear0_(?:[qkv]|mlp)|linear0_fc)$|single_blocks_0_linear0_[qkv]",
    headers=("hunyuan-image", "hunyuan_image", "hunyuanimage"),
    said=("hunyuan image", "hunyuanimage"),
    kohya=("hunyuan_image", "False", "hunyuan-image-2.1/lora"),
    kohya_flat="original",
)

HUNYUAN_DIT = Family(
    "HunyuanDiT",
    classes=("HunyuanDiT",),
    layouts={
        "original": """
blocks.N.attn1.Wqkv -> blocks.N.attn1.to_q .to_k .to_v
blocks.N.attn2.q_proj -> blocks.N.attn2.to_q
blocks.N.attn2.kv_proj -> blocks.N.attn2.to_k .to_v
blocks.N.{attn1,attn2}.out_proj -> blocks.N.{attn1,attn2}.to_out.0
blocks.N.{attn1,attn2}.q_norm -> blocks.N.{attn1,attn2}.norm_q
blocks.N.{attn1,attn2}.k_norm -> blocks.N.{attn1,attn2}.norm_k
blocks.N.default_modulation.1 -> blocks.N.norm1.linear
blocks.N.mlp.{fc1,fc2} -> blocks.N.{ff.net.0.proj,ff.net.2}
blocks.N.{norm2,norm3} -> blocks.N.{norm3,norm2}
""",
    },
    marks=r"(?:^|_)blocks_0_(?:attn0_Wqkv|attn0_kv_proj|default_modulation_0)$",
    headers=("hunyuan-dit", "hydit"),
    said=("hunyuandit", "hunyuan dit"),
    kohya_flat="original",
)
