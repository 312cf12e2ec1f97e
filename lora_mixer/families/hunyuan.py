"""Hunyuan: HunyuanVideo (FramePack), HunyuanVideo 1.5, HunyuanImage 2.1, HunyuanDiT."""

from __future__ import annotations

from lora_mixer.families.family import Family

_BLOCKS = "txt_in.individual_token_refiner.blocks.N"
_LIVE_BLOCKS = "context_embedder.token_refiner.refiner_blocks.N"
_REFINER = f"""
{_BLOCKS}.self_attn_qkv -> {_LIVE_BLOCKS}.attn.to_q .to_k .to_v
{_BLOCKS}.self_attn_proj -> {_LIVE_BLOCKS}.attn.to_out.0
{_BLOCKS}.mlp.fc1 -> {_LIVE_BLOCKS}.ff.net.0.proj
{_BLOCKS}.mlp.fc2 -> {_LIVE_BLOCKS}.ff.net.2
{_BLOCKS}.adaLN_modulation.1 -> {_LIVE_BLOCKS}.norm_out.linear
{_BLOCKS}.{{norm1,norm2}} -> {_LIVE_BLOCKS}.{{norm1,norm2}}
txt_in.input_embedder -> context_embedder.proj_in
txt_in.t_embedder.{{mlp.0,mlp.2}} -> context_embedder.time_text_embed.timestep_embedder.{{linear_1,linear_2}}
txt_in.c_embedder.{{linear_1,linear_2}} -> context_embedder.time_text_embed.text_embedder.{{linear_1,linear_2}}
"""
_COMFY_REFINER = f"""
{_BLOCKS}.self_attn.qkv -> {_LIVE_BLOCKS}.attn.to_q .to_k .to_v
{_BLOCKS}.self_attn.proj -> {_LIVE_BLOCKS}.attn.to_out.0
{_BLOCKS}.mlp.0 -> {_LIVE_BLOCKS}.ff.net.0.proj
{_BLOCKS}.mlp.2 -> {_LIVE_BLOCKS}.ff.net.2
{_BLOCKS}.adaLN_modulation.1 -> {_LIVE_BLOCKS}.norm_out.linear
{_BLOCKS}.{{norm1,norm2}} -> {_LIVE_BLOCKS}.{{norm1,norm2}}
txt_in.input_embedder -> context_embedder.proj_in
txt_in.t_embedder.{{in_layer,out_layer}} -> context_embedder.time_text_embed.timestep_embedder.{{linear_1,linear_2}}
txt_in.c_embedder.{{in_layer,out_layer}} -> context_embedder.time_text_embed.text_embedder.{{linear_1,linear_2}}
"""
_FUSED = """
double_blocks.N.img_attn_qkv -> transformer_blocks.N.attn.to_q .to_k .to_v
double_blocks.N.txt_attn_qkv -> transformer_blocks.N.attn.add_q_proj .add_k_proj .add_v_proj
"""
_SPLIT = """
double_blocks.N.img_attn_{q,k,v} -> transformer_blocks.N.attn.{to_q,to_k,to_v}
double_blocks.N.txt_attn_{q,k,v} -> transformer_blocks.N.attn.{add_q_proj,add_k_proj,add_v_proj}
"""
_DOUBLE = """
double_blocks.N.{img,txt}_attn_proj -> transformer_blocks.N.attn.{to_out.0,to_add_out}
double_blocks.N.img_attn_{q_norm,k_norm} -> transformer_blocks.N.attn.{norm_q,norm_k}
double_blocks.N.txt_attn_{q_norm,k_norm} -> transformer_blocks.N.attn.{norm_added_q,norm_added_k}
double_blocks.N.{img,txt}_mod.linear -> transformer_blocks.N.{norm1,norm1_context}.linear
double_blocks.N.{img,txt}_mlp.fc1 -> transformer_blocks.N.{ff,ff_context}.net.0.proj
double_blocks.N.{img,txt}_mlp.fc2 -> transformer_blocks.N.{ff,ff_context}.net.2
img_in.proj -> x_embedder.proj
final_layer.linear -> proj_out
final_layer.adaLN_modulation.1 -> norm_out.linear[swap]
"""
_SINGLE = """
single_blocks.N.linear1 -> single_transformer_blocks.N.attn.to_q .to_k .to_v single_transformer_blocks.N.proj_mlp
single_blocks.N.linear2 -> single_transformer_blocks.N.proj_out
single_blocks.N.modulation.linear -> single_transformer_blocks.N.norm.linear
single_blocks.N.{q_norm,k_norm} -> single_transformer_blocks.N.attn.{norm_q,norm_k}
"""
_SPLIT_SINGLE = """
single_blocks.N.linear1_{q,k,v,mlp} -> single_transformer_blocks.N.{attn.to_q,attn.to_k,attn.to_v,proj_mlp}
single_blocks.N.linear2.fc -> single_transformer_blocks.N.proj_out
"""
_COMFY_DOUBLE = """
double_blocks.N.img_attn.qkv -> transformer_blocks.N.attn.to_q .to_k .to_v
double_blocks.N.txt_attn.qkv -> transformer_blocks.N.attn.add_q_proj .add_k_proj .add_v_proj
double_blocks.N.{img,txt}_attn.proj -> transformer_blocks.N.attn.{to_out.0,to_add_out}
double_blocks.N.img_attn.norm.{query_norm,key_norm}.scale -> transformer_blocks.N.attn.{norm_q,norm_k}
double_blocks.N.txt_attn.norm.{query_norm,key_norm}.scale -> transformer_blocks.N.attn.{norm_added_q,norm_added_k}
double_blocks.N.{img,txt}_mod.lin -> transformer_blocks.N.{norm1,norm1_context}.linear
double_blocks.N.{img,txt}_mlp.0 -> transformer_blocks.N.{ff,ff_context}.net.0.proj
double_blocks.N.{img,txt}_mlp.2 -> transformer_blocks.N.{ff,ff_context}.net.2
img_in.proj -> x_embedder.proj
final_layer.linear -> proj_out
final_layer.adaLN_modulation.1 -> norm_out.linear[swap]
"""
_COMFY_SINGLE = """
single_blocks.N.linear1 -> single_transformer_blocks.N.attn.to_q .to_k .to_v single_transformer_blocks.N.proj_mlp
single_blocks.N.linear2 -> single_transformer_blocks.N.proj_out
single_blocks.N.modulation.lin -> single_transformer_blocks.N.norm.linear
single_blocks.N.norm.{query_norm,key_norm}.scale -> single_transformer_blocks.N.attn.{norm_q,norm_k}
"""


def _time(to: str, leaves: str) -> str:
    return f"""
time_in.{{{leaves}}} -> {to}.timestep_embedder.{{linear_1,linear_2}}
guidance_in.{{{leaves}}} -> {to}.guidance_embedder.{{linear_1,linear_2}}
time_r_in.{{{leaves}}} -> {to}.timestep_embedder_r.{{linear_1,linear_2}}
"""


def _original(to: str) -> str:
    return _REFINER + _time(to, "mlp.0,mlp.2")


def _comfy(to: str) -> str:
    return _COMFY_DOUBLE + _COMFY_REFINER + _time(to, "in_layer,out_layer")


_VECTOR = "vector_in.{in_layer,out_layer} -> time_text_embed.text_embedder.{linear_1,linear_2}"
_BYT5 = """
byt5_in.{fc1,fc2,fc3} -> context_embedder_2.{linear_1,linear_2,linear_3}
byt5_in.layernorm -> context_embedder_2.norm
"""
_VISION = """
vision_in.proj.{0,4} -> image_embedder.{norm_in,norm_out}
vision_in.proj.{1,3} -> image_embedder.{linear_1,linear_2}
"""
_KINDS = "cond_type_embedding -> cond_type_embed"


HUNYUAN_VIDEO = Family(
    "HunyuanVideo",
    classes=("HunyuanVideo",),
    joint="picture first",
    layouts={
        "original": _FUSED + _DOUBLE + _SINGLE + _original("time_text_embed") + _VECTOR,
        "comfyui": _comfy("time_text_embed") + _COMFY_SINGLE + _VECTOR,
        "split": _SPLIT + _SPLIT_SINGLE,
    },
    absent="""
guidance_in.*
time_text_embed.guidance_embedder.*
""",
    marks=(
        r"(?:double|single)_blocks_0_(?:(?:img|txt)_mlp_fc0|(?:img|txt)_mod_linear|modulation_linear)"
        r"|individual_token_refiner|context_embedder_token_refiner"
    ),
    like="Flux.1",
    headers=("hunyuan_video", "hunyuan-video", "hunyuanvideo", "hunyuan"),
    said=("hunyuan video", "hunyuanvideo"),
    kohya=("hunyuan_video", "False", "hunyuan-video/lora"),
    transformers=(("HunyuanVideoTransformer3DModel", {"guidance_embeds": True}),),
    kohya_flat="original",
    comfyui="comfyui",
)

HUNYUAN_VIDEO_15 = Family(
    "HunyuanVideo 1.5",
    classes=("HunyuanVideo15",),
    joint="picture first",
    layouts={
        "original": _SPLIT + _DOUBLE + _original("time_embed") + _BYT5 + _VISION + _KINDS,
        "comfyui": _comfy("time_embed") + _BYT5 + _VISION + _KINDS,
        "fused": _FUSED,  # musubi's converter
    },
    like="HunyuanVideo",
    widths=frozenset((2048,)),
    transformers=(("HunyuanVideo15Transformer3DModel", {}),),
    headers=("hunyuan-video-1.5", "hunyuan_video_1_5"),
    said=("hunyuan video 1.5",),
    kohya_flat="original",
    comfyui="comfyui",
)

HUNYUAN_IMAGE = Family(
    "HunyuanImage",
    classes=("HunyuanImage",),
    joint="picture first",
    layouts={
        "original": _SPLIT + _DOUBLE + _SPLIT_SINGLE + _SINGLE + _original("time_guidance_embed") + _BYT5,
        "comfyui": _comfy("time_guidance_embed") + _COMFY_SINGLE + _BYT5,
        "fused": _FUSED,
    },
    absent="""
guidance_in.*
time_r_in.*
byt5_in.*
""",
    marks=r"(?:double|single)_blocks_0_(?:linear0_(?:[qkv]|mlp)|linear0_fc)$|single_blocks_0_linear0_[qkv]",
    like="HunyuanVideo",
    widths=frozenset((3584,)),
    transformers=(("HunyuanImageTransformer2DModel", {}),),
    headers=("hunyuan-image", "hunyuan_image", "hunyuanimage"),
    said=("hunyuan image", "hunyuanimage"),
    kohya=("hunyuan_image", "False", "hunyuan-image-2.1/lora"),
    kohya_flat="original",
    comfyui="comfyui",
)

HUNYUAN_DIT = Family(
    "HunyuanDiT",
    classes=("HunyuanDiT",),
    noise_schedule=True,
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
blocks.N.norm1 -> blocks.N.norm1.norm
pooler.{q_proj,k_proj,v_proj,c_proj} -> time_extra_emb.pooler.{q_proj,k_proj,v_proj,c_proj}
pooler.positional_embedding -> time_extra_emb.pooler.positional_embedding
t_embedder.mlp.{0,2} -> time_extra_emb.timestep_embedder.{linear_1,linear_2}
extra_embedder.{0,2} -> time_extra_emb.extra_embedder.{linear_1,linear_2}
mlp_t5.{0,2} -> text_embedder.{linear_1,linear_2}
x_embedder.proj -> pos_embed.proj
final_layer.adaLN_modulation.1 -> norm_out.linear[swap]
final_layer.linear -> proj_out
""",
    },
    marks=(
        r"(?:^|_)blocks_0_(?:attn0_Wqkv|attn0_kv_proj|default_modulation_0)$"
        r"|(?<!transformer_)blocks_0_(?:ff_net_0|norm0_linear|skip_linear)|^time_extra_emb_"
    ),
    like="Wan",
    widths=frozenset((1408,)),
    headers=("hunyuan-dit", "hydit"),
    said=("hunyuandit", "hunyuan dit"),
    kohya_flat="original",
)
