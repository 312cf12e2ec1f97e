"""Further models of pictures: Sana, PixArt, AuraFlow, Cosmos (and Anima), Krea 2, HiDream, OmniGen, Stable Cascade, ..."""

from __future__ import annotations

from lora_mixer.families.family import Family

_CROSS = """
blocks.N.attn.qkv -> transformer_blocks.N.attn1.to_q .to_k .to_v
blocks.N.attn.proj -> transformer_blocks.N.attn1.to_out.0
blocks.N.attn.{q_norm,k_norm} -> transformer_blocks.N.attn1.{norm_q,norm_k}
blocks.N.cross_attn.{q_norm,k_norm} -> transformer_blocks.N.attn2.{norm_q,norm_k}
blocks.N.cross_attn.q_linear -> transformer_blocks.N.attn2.to_q
blocks.N.cross_attn.kv_linear -> transformer_blocks.N.attn2.to_k .to_v
blocks.N.cross_attn.proj -> transformer_blocks.N.attn2.to_out.0
blocks.N.scale_shift_table -> transformer_blocks.N.scale_shift_table
y_embedder.y_proj.{fc1,fc2} -> caption_projection.{linear_1,linear_2}
final_layer.linear -> proj_out
final_layer.scale_shift_table -> scale_shift_table
"""

SANA = Family(
    "Sana",
    classes=("Sana",),
    layouts={
        "original": _CROSS
        + """
blocks.N.mlp.{inverted_conv,depth_conv,point_conv}.conv -> transformer_blocks.N.ff.{conv_inverted,conv_depth,conv_point}
blocks.N.mlp.t_conv -> transformer_blocks.N.ff.conv_temp
t_block.1 -> time_embed.linear
t_embedder.mlp.{0,2} -> time_embed.emb.timestep_embedder.{linear_1,linear_2}
attention_y_norm -> caption_norm
x_embedder.proj -> patch_embed.proj
x_embedder.proj -> patch_embedding
""",
    },
    marks=r"(?:^|_)(?:blocks_0_mlp|transformer_blocks_0_ff)_(?:inverted_conv|depth_conv|point_conv|conv_(?:inverted|depth|point))",
    like="PixArt",
    widths=frozenset((2240, 1120)),
    transformers=(("SanaTransformer2DModel", {}),),
    headers=("sana",),
    said=("sana",),
    kohya_flat="original",
)

PIXART = Family(
    "PixArt",
    classes=("PixArt",),
    layouts={
        "original": _CROSS
        + """
blocks.N.mlp.{fc1,fc2} -> transformer_blocks.N.{ff.net.0.proj,ff.net.2}
t_block.1 -> adaln_single.linear
t_embedder.mlp.{0,2} -> adaln_single.emb.timestep_embedder.{linear_1,linear_2}
csize_embedder.mlp.{0,2} -> adaln_single.emb.resolution_embedder.{linear_1,linear_2}
ar_embedder.mlp.{0,2} -> adaln_single.emb.aspect_ratio_embedder.{linear_1,linear_2}
x_embedder.proj -> pos_embed.proj
""",
    },
    marks=r"(?:^|_)blocks_0_cross_attn_(?:q_linear|kv_linear)$",
    like="DiT with cross-attention",
    widths=frozenset((1152,)),
    transformers=(("PixArtTransformer2DModel", {"caption_channels": 4096, "sample_size": 128}),),
    headers=("pixart",),
    said=("pixart",),
    noise_schedule=True,
    kohya_flat="original",
)

AURAFLOW = Family(
    "AuraFlow",
    classes=("AuraFlow",),
    joint="text first",
    layouts={
        "original": """
double_layers.N.attn.{w2q,w2k,w2v,w2o} -> joint_transformer_blocks.N.attn.{to_q,to_k,to_v,to_out.0}
double_layers.N.attn.{w1q,w1k,w1v,w1o} -> joint_transformer_blocks.N.attn.{add_q_proj,add_k_proj,add_v_proj,to_add_out}
double_layers.N.mlpX.{c_fc1,c_fc2,c_proj} -> joint_transformer_blocks.N.ff.{linear_1,linear_2,out_projection}
double_layers.N.mlpC.{c_fc1,c_fc2,c_proj} -> joint_transformer_blocks.N.ff_context.{linear_1,linear_2,out_projection}
double_layers.N.{modX,modC}.1 -> joint_transformer_blocks.N.{norm1,norm1_context}.linear
single_layers.N.attn.{w1q,w1k,w1v,w1o} -> single_transformer_blocks.N.attn.{to_q,to_k,to_v,to_out.0}
single_layers.N.mlp.{c_fc1,c_fc2,c_proj} -> single_transformer_blocks.N.ff.{linear_1,linear_2,out_projection}
single_layers.N.modCX.1 -> single_transformer_blocks.N.norm1.linear
modF.1 -> norm_out.linear[swap]
cond_seq_linear -> context_embedder
final_linear -> proj_out
init_x_linear -> pos_embed.proj
t_embedder.mlp.{0,2} -> time_step_proj.{linear_1,linear_2}
""",
    },
    marks=r"(?:^|_)(?:double_layers|single_layers|joint_transformer_blocks)_0",
    transformers=(("AuraFlowTransformer2DModel", {}),),
    headers=("auraflow",),
    said=("auraflow", "aura flow"),
    kohya_flat="original",
)

_COSMOS_2B = ("CosmosTransformer3DModel", {"num_attention_heads": 16, "extra_pos_embed_type": None})
COSMOS = Family(
    "Cosmos",
    classes=("Cosmos",),
    layouts={
        "original": """
blocks.N.self_attn.{q_proj,k_proj,v_proj,output_proj} -> transformer_blocks.N.attn1.{to_q,to_k,to_v,to_out.0}
blocks.N.cross_attn.{q_proj,k_proj,v_proj,output_proj} -> transformer_blocks.N.attn2.{to_q,to_k,to_v,to_out.0}
blocks.N.self_attn.{q_norm,k_norm} -> transformer_blocks.N.attn1.{norm_q,norm_k}
blocks.N.cross_attn.{q_norm,k_norm} -> transformer_blocks.N.attn2.{norm_q,norm_k}
blocks.N.mlp.{layer1,layer2} -> transformer_blocks.N.{ff.net.0.proj,ff.net.2}
blocks.N.adaln_modulation_{self_attn,cross_attn,mlp}.1 -> transformer_blocks.N.{norm1,norm2,norm3}.linear_1
blocks.N.adaln_modulation_{self_attn,cross_attn,mlp}.2 -> transformer_blocks.N.{norm1,norm2,norm3}.linear_2
final_layer.adaln_modulation.{1,2} -> norm_out.{linear_1,linear_2}
final_layer.linear -> proj_out
t_embedder.1.{linear_1,linear_2} -> time_embed.t_embedder.{linear_1,linear_2}
t_embedding_norm -> time_embed.norm
x_embedder.proj.1 -> patch_embed.proj
""",
        "cosmos1": """
blocks.blockN.blocks.0.block.attn.{to_q,to_k,to_v,to_out}.0 -> transformer_blocks.N.attn1.{to_q,to_k,to_v,to_out.0}
blocks.blockN.blocks.1.block.attn.{to_q,to_k,to_v,to_out}.0 -> transformer_blocks.N.attn2.{to_q,to_k,to_v,to_out.0}
blocks.blockN.blocks.0.block.attn.{to_q,to_k}.1 -> transformer_blocks.N.attn1.{norm_q,norm_k}
blocks.blockN.blocks.1.block.attn.{to_q,to_k}.1 -> transformer_blocks.N.attn2.{norm_q,norm_k}
blocks.blockN.blocks.2.block.{layer1,layer2} -> transformer_blocks.N.{ff.net.0.proj,ff.net.2}
blocks.blockN.blocks.{0,1,2}.adaLN_modulation.1 -> transformer_blocks.N.{norm1,norm2,norm3}.linear_1
blocks.blockN.blocks.{0,1,2}.adaLN_modulation.2 -> transformer_blocks.N.{norm1,norm2,norm3}.linear_2
final_layer.adaLN_modulation.{1,2} -> norm_out.{linear_1,linear_2}
final_layer.linear -> proj_out
t_embedder.1.{linear_1,linear_2} -> time_embed.t_embedder.{linear_1,linear_2}
affline_norm -> time_embed.norm
x_embedder.proj.1 -> patch_embed.proj
extra_pos_embedder.* -> learnable_pos_embed.*
""",
    },
    marks=(
        r"(?:^|_)blocks_0_(?:self|cross)_attn_(?:[qkv]|output)_proj$|adaln_modulation_(?:self_attn|cross_attn|mlp)"
        r"|^blocks_block0_blocks_0_|^transformer_blocks_0_norm0_linear_0$"
    ),
    like="Anima",
    widths=frozenset((4096, 5120)),
    inputs={"attn2_to_k": 1024},
    transformers=(
        _COSMOS_2B,
        (
            "CosmosTransformer3DModel",
            {"num_attention_heads": 40, "num_layers": 36, "extra_pos_embed_type": None},
        ),
        ("CosmosTransformer3DModel", {}),
    ),
    headers=("cosmos",),
    said=("cosmos",),
    kohya_flat="original",
)

COSMOS3 = Family(
    "Cosmos 3", classes=("Cosmos3",), headers=("cosmos3", "cosmos-3"), said=("cosmos 3", "cosmos3")
)

ANIMA = Family(
    "Anima",
    marks=r"llm_adapter|(?:^|_)blocks_0_(?:self|cross)_attn_(?:[qkv]|output)_proj$",
    like="DiT with cross-attention",
    widths=frozenset((2048,)),
    inputs={"attn2_to_k": 1024},
    encoder="qwen3_06b",
    transformers=(_COSMOS_2B,),
    headers=("anima",),
    said=("anima",),
    layouts=COSMOS.layouts,
    kohya_flat="original",
)

_KREA_ATTENTION = "{blocks,txtfusion.layerwise_blocks,txtfusion.refiner_blocks}.N"
_KREA_LIVE = "{transformer_blocks,text_fusion.layerwise_blocks,text_fusion.refiner_blocks}.N"
KREA2 = Family(
    "Krea 2",
    classes=("Krea2",),
    joint="text first",
    layouts={
        "original": "\n".join(
            f"{_KREA_ATTENTION}.{theirs} -> {_KREA_LIVE}.{ours}"
            for theirs, ours in (
                ("attn.wq", "attn.to_q"),
                ("attn.wk", "attn.to_k"),
                ("attn.wv", "attn.to_v"),
                ("attn.wo", "attn.to_out.0"),
                ("attn.gate", "attn.to_gate"),
                ("mlp.gate", "ff.gate"),
                ("mlp.up", "ff.up"),
                ("mlp.down", "ff.down"),
                ("attn.qknorm.qnorm.scale", "attn.norm_q"),
                ("attn.qknorm.knorm.scale", "attn.norm_k"),
                ("prenorm.scale", "norm1"),
                ("postnorm.scale", "norm2"),
                ("mod.lin", "scale_shift_table"),
            )
        )
        + """
txtfusion.projector -> text_fusion.projector
first -> img_in
last.linear -> final_layer.linear
last.norm.scale -> final_layer.norm
last.modulation.lin -> final_layer.scale_shift_table
tmlp.{0,2} -> time_embed.{linear_1,linear_2}
tproj.1 -> time_mod_proj
txtmlp.0.scale -> txt_in.norm
txtmlp.{1,3} -> txt_in.{linear_1,linear_2}
""",
    },
    marks=r"txtfusion|text_fusion|(?:^|_)blocks_0_attn_w[qkvo]$",
    transformers=(("Krea2Transformer2DModel", {}),),
    headers=("krea2", "krea-2"),
    said=("krea 2", "krea2"),
    kohya=("krea2", "False", "krea-2/lora"),
    kohya_flat="original",
)

HIDREAM = Family(
    "HiDream",
    classes=("HiDream",),
    off_picture="""
double_stream_blocks.N.block.attn1.{to_q_t,to_k_t,to_v_t,to_out_t}
double_stream_blocks.N.block.ff_t.*
""",
    marks=r"(?:^|_)(?:double|single)_stream_blocks_0",
    headers=("hidream",),
    said=("hidream",),
)

OMNIGEN = Family(
    "OmniGen",
    classes=("OmniGen",),
    joint="text first",
    layouts={
        "original": """
{llm.layers,layers}.N.self_attn.qkv_proj -> {layers,layers}.N.self_attn.to_q .to_k .to_v
{llm.layers,layers}.N.self_attn.o_proj -> {layers,layers}.N.self_attn.to_out.0
llm.layers.* -> layers.*
llm.{embed_tokens,norm} -> {embed_tokens,norm}
final_layer.adaLN_modulation.1 -> norm_out.linear
final_layer.linear -> proj_out
x_embedder.proj -> patch_embedding.output_image_proj
input_x_embedder.proj -> patch_embedding.input_image_proj
time_token.mlp.{0,2} -> time_token.{linear_1,linear_2}
t_embedder.mlp.{0,2} -> t_embedder.{linear_1,linear_2}
""",
    },
    marks=r"^llm_layers_0_self_attn|^layers_0_self_attn_to_(?:[qkv]|out_0)$",
    headers=("omnigen",),
    said=("omnigen",),
)

ACE_STEP = Family(
    "ACE-Step",
    classes=("AceStep", "ACEStep"),
    layouts={
        "original": """
{layers,decoder.layers}.N.self_attn.q_proj -> {layers,layers}.N.self_attn.to_q
{layers,decoder.layers}.N.self_attn.k_proj -> {layers,layers}.N.self_attn.to_k
{layers,decoder.layers}.N.self_attn.v_proj -> {layers,layers}.N.self_attn.to_v
{layers,decoder.layers}.N.self_attn.o_proj -> {layers,layers}.N.self_attn.to_out.0
{layers,decoder.layers}.N.cross_attn.q_proj -> {layers,layers}.N.cross_attn.to_q
{layers,decoder.layers}.N.cross_attn.k_proj -> {layers,layers}.N.cross_attn.to_k
{layers,decoder.layers}.N.cross_attn.v_proj -> {layers,layers}.N.cross_attn.to_v
{layers,decoder.layers}.N.cross_attn.o_proj -> {layers,layers}.N.cross_attn.to_out.0
layers.N.{self_attn,cross_attn}.q_norm -> layers.N.{self_attn,cross_attn}.norm_q
layers.N.{self_attn,cross_attn}.k_norm -> layers.N.{self_attn,cross_attn}.norm_k
{proj_in,proj_out}.1 -> {proj_in_conv,proj_out_conv}
decoder.{proj_in,proj_out}.1 -> {proj_in_conv,proj_out_conv}
decoder.* -> *
""",
    },
    marks=r"^layers_0_cross_attn_to_(?:[qkv]|out_0)$|^(?:decoder_)?layers_0_cross_attn_[qkvo]_proj$",
    headers=("ace-step", "acestep"),
    said=("ace-step", "acestep"),
)

STABLE_CASCADE = Family(
    "Stable Cascade",
    classes=("StableCascade",),
    marks=r"^lora_prior_",
    said=("stable cascade",),
    noise_schedule=True,
)
ERNIE_IMAGE = Family(
    "Ernie-Image",
    classes=("ErnieImage",),
    marks=r"^layers_0_(?:self_attention_to_(?:[qkv]|out_0)|mlp_linear_fc0)$",
    headers=("ernie",),
    said=("ernie",),
)
GLM_IMAGE = Family(
    "GLM-Image",
    classes=("GlmImage",),
    marks=r"^(?:glyph|image|prior)_projector_|^prior_token_embedding",
    like="DiT with cross-attention",
    widths=frozenset((2560,)),
    headers=("glm-image", "glm_image"),
    said=("glm-image", "glm image"),
)
BRIA_FIBO = Family(
    "Bria Fibo",
    classes=("BriaFibo",),
    joint="text first",
    marks=r"^caption_projection_0_linear$",
    like="Flux.1",
    headers=("bria-fibo", "bria_fibo"),
    said=("bria fibo",),
)
PRX = Family(
    "PRX",
    classes=("PRX",),
    layouts={
        "original": """
blocks.N.{img_qkv_proj,txt_kv_proj,attn_out} -> blocks.N.attention.{img_qkv_proj,txt_kv_proj,to_out.0}
blocks.N.qk_norm.{query_norm,key_norm}.scale -> blocks.N.attention.{norm_q,norm_k}
blocks.N.qk_norm.{query_norm,key_norm} -> blocks.N.attention.{norm_q,norm_k}
blocks.N.k_norm.scale -> blocks.N.attention.norm_added_k
blocks.N.k_norm -> blocks.N.attention.norm_added_k
""",
    },
    marks=r"(?:^|_)blocks_0_(?:(?:attention_)?(?:img_qkv|txt_kv)_proj|attn_out)$",
    said=("prx",),
)
MOTIF = Family(
    "Motif",
    classes=("Motif",),
    joint="picture first",
    marks=r"^context_embedder_linear_0$",
    like="Flux.1",
    said=("motif",),
)
