"""Further models of films: LTX-Video and LTX-2, Mochi, CogVideoX (and CogView4), Kandinsky 5, MiniMax-H3."""

from __future__ import annotations

from lora_mixer.families.family import Family

LTX = Family(
    "LTX-Video",
    classes=("LTXVideo",),
    layouts={
        "original": """
patchify_proj -> proj_in
adaln_single.* -> time_embed.*
transformer_blocks.N.{attn1,attn2}.q_norm -> transformer_blocks.N.{attn1,attn2}.norm_q
transformer_blocks.N.{attn1,attn2}.k_norm -> transformer_blocks.N.{attn1,attn2}.norm_k
""",
    },
    marks=r"^patchify_proj",
    like="DiT with cross-attention",
    widths=frozenset((2048,)),
    inputs={"attn2_to_k": 2048},
    comfyui="original",
    transformers=(
        ("LTXVideoTransformer3DModel", {}),
        (
            "LTXVideoTransformer3DModel",
            {"attention_head_dim": 128, "cross_attention_dim": 4096, "num_layers": 48},
        ),
    ),
    headers=("ltx",),
    said=("ltx",),
)

LTX2 = Family(
    "LTX-Video 2",
    classes=("LTX2", "SanaWMLTX2Refiner"),
    off_picture="""
{audio_proj_in,audio_proj_out}
transformer_blocks.N.{audio_attn1,audio_attn2,audio_ff}.*
transformer_blocks.N.audio_to_video_attn.{to_k,to_v}
transformer_blocks.N.video_to_audio_attn.{to_q,to_out.0,to_gate_logits}
""",
    layouts={
        "original": """
audio_patchify_proj -> audio_proj_in
audio_adaln_single.* -> audio_time_embed.*
av_ca_video_scale_shift_adaln_single.* -> av_cross_attn_video_scale_shift.*
av_ca_a2v_gate_adaln_single.* -> av_cross_attn_video_a2v_gate.*
av_ca_audio_scale_shift_adaln_single.* -> av_cross_attn_audio_scale_shift.*
av_ca_v2a_gate_adaln_single.* -> av_cross_attn_audio_v2a_gate.*
transformer_blocks.N.scale_shift_table_a2v_ca_{video,audio} -> transformer_blocks.N.{video,audio}_a2v_cross_attn_scale_shift_table
audio_prompt_adaln_single.* -> audio_prompt_adaln.*
prompt_adaln_single.* -> prompt_adaln.*
patchify_proj -> proj_in
adaln_single.* -> time_embed.*
transformer_blocks.N.*.q_norm -> transformer_blocks.N.*.norm_q
transformer_blocks.N.*.k_norm -> transformer_blocks.N.*.norm_k
aggregate_embed -> text_proj_in
{audio,video}_aggregate_embed -> {audio,video}_text_proj_in
{audio,video}_embeddings_connector.transformer_1d_blocks.N.attn1.q_norm -> {audio,video}_connector.transformer_blocks.N.attn1.norm_q
{audio,video}_embeddings_connector.transformer_1d_blocks.N.attn1.k_norm -> {audio,video}_connector.transformer_blocks.N.attn1.norm_k
{audio,video}_embeddings_connector.transformer_1d_blocks.* -> {audio,video}_connector.transformer_blocks.*
{audio,video}_embeddings_connector.learnable_registers -> {audio,video}_connector.learnable_registers
""",
    },
    marks=r"^audio_patchify_proj|av_ca_|transformer_blocks_0_audio_attn",
    like="DiT with cross-attention",
    widths=frozenset((4096,)),
    inputs={"attn2_to_k": 4096},
    comfyui="original",
    transformers=(("LTX2VideoTransformer3DModel", {}),),
    headers=("ltx-2", "ltx2", "ltx-video-2"),
    said=("ltx-2", "ltx2", "ltxv2", "ltxv 2"),
)

MOCHI = Family(
    "Mochi",
    classes=("Mochi",),
    off_picture="time_embed.pooler.*",
    layouts={
        "original": """
blocks.N.attn.qkv_x -> transformer_blocks.N.attn1.to_q .to_k .to_v
blocks.N.attn.qkv_y -> transformer_blocks.N.attn1.add_q_proj .add_k_proj .add_v_proj
blocks.N.attn.{proj_x,proj_y} -> transformer_blocks.N.attn1.{to_out.0,to_add_out}
blocks.N.attn.{q_norm_x,k_norm_x} -> transformer_blocks.N.attn1.{norm_q,norm_k}
blocks.N.attn.{q_norm_y,k_norm_y} -> transformer_blocks.N.attn1.{norm_added_q,norm_added_k}
blocks.N.{mlp_x,mlp_y}.w1 -> transformer_blocks.N.{ff,ff_context}.net.0.proj[swap]
blocks.N.{mlp_x,mlp_y}.w2 -> transformer_blocks.N.{ff,ff_context}.net.2
blocks.N.mod_x -> transformer_blocks.N.norm1.linear
blocks.N.mod_y -> transformer_blocks.N.norm1_context.linear
blocks.N.mod_y -> transformer_blocks.N.norm1_context.linear_1
final_layer.mod -> norm_out.linear[swap]
final_layer.linear -> proj_out
x_embedder.proj -> patch_embed.proj
t_embedder.mlp.{0,2} -> time_embed.timestep_embedder.{linear_1,linear_2}
t5_y_embedder.* -> time_embed.pooler.*
t5_yproj -> time_embed.caption_proj
""",
    },
    absent="""
blocks.N.attn.proj_y
blocks.N.mlp_y.{w1,w2}
transformer_blocks.N.attn1.to_add_out
transformer_blocks.N.ff_context.*
""",
    marks=r"(?:^|_)blocks_0_(?:attn_qkv_[xy]|attn_proj_[xy]|mlp_[xy]_w0|mod_[xy])$|^transformer_blocks_0_attn0_add_[qkv]_proj$",
    transformers=(("MochiTransformer3DModel", {}),),
    headers=("mochi",),
    said=("mochi",),
    kohya_flat="original",
)

_SAT = """
transformer.layers.N.attention.query_key_value -> transformer_blocks.N.attn1.to_q .to_k .to_v
transformer.layers.N.attention.dense -> transformer_blocks.N.attn1.to_out.0
transformer.layers.N.mlp.{dense_h_to_4h,dense_4h_to_h} -> transformer_blocks.N.{ff.net.0.proj,ff.net.2}
layers.N.attention.query_key_value -> transformer_blocks.N.attn1.to_q .to_k .to_v
layers.N.attention.dense -> transformer_blocks.N.attn1.to_out.0
layers.N.mlp.{dense_h_to_4h,dense_4h_to_h} -> transformer_blocks.N.{ff.net.0.proj,ff.net.2}
mixins.patch_embed.{proj,text_proj} -> patch_embed.{proj,text_proj}
mixins.final_layer.linear -> proj_out
"""

COGVIDEOX = Family(
    "CogVideoX",
    classes=("CogVideoX", "ConsisID"),
    noise_schedule=True,
    joint="text first",
    axes="bfchw",
    layouts={
        "sat": _SAT
        + """
mixins.adaln_layer.adaLN_modulations.N.1 -> transformer_blocks.N.norm1.linear[0/6,1/6,2/6] transformer_blocks.N.norm2.linear[0/6,1/6,2/6] transformer_blocks.N.norm1.linear[3/6,4/6,5/6] transformer_blocks.N.norm2.linear[3/6,4/6,5/6]
mixins.adaln_layer.{query_layernorm_list,key_layernorm_list}.N -> transformer_blocks.N.attn1.{norm_q,norm_k}
{transformer.layers,layers}.N.input_layernorm -> {transformer_blocks,transformer_blocks}.N.norm1.norm
{transformer.layers,layers}.N.post_attention_layernorm -> {transformer_blocks,transformer_blocks}.N.norm2.norm
mixins.final_layer.adaLN_modulation.1 -> norm_out.linear
mixins.final_layer.norm_final -> norm_out.norm
mixins.pos_embed.pos_embedding -> patch_embed.pos_embedding
transformer.final_layernorm -> norm_final
time_embed.{0,2} -> time_embedding.{linear_1,linear_2}
ofs_embed.{0,2} -> ofs_embedding.{linear_1,linear_2}
""",
    },
    marks=r"attention_query_key_value|adaLN_modulations_0",
    like="DiT with cross-attention",
    widths=frozenset((1920, 3072)),
    transformers=(
        ("CogVideoXTransformer3DModel", {}),
        ("CogVideoXTransformer3DModel", {"num_attention_heads": 48, "num_layers": 42}),
    ),
    headers=("cogvideo",),
    said=("cogvideo",),
)

COGVIEW4 = Family(
    "CogView4",
    classes=("CogView4", "CogView3Plus"),
    joint="text first",
    layouts={
        "sat": _SAT
        + """
{transformer.layers,layers}.N.adaln.1 -> {transformer_blocks,transformer_blocks}.N.norm1.linear
mixins.adaln.adaln_modules.N.1 -> transformer_blocks.N.norm1.linear
mixins.final_layer.{adaln,adaLN_modulation}.1 -> {norm_out,norm_out}.linear[swap]
time_embed.{0,2} -> time_condition_embed.timestep_embedder.{linear_1,linear_2}
label_emb.0.{0,2} -> time_condition_embed.condition_embedder.{linear_1,linear_2}
""",
    },
    marks=r"mixins_adaln_adaln_modules|^label_emb_0_0_|^time_condition_embed_condition_embedder",
    like="CogVideoX",
    widths=frozenset((4096, 2560)),
    headers=("cogview4", "cogview3"),
    said=("cogview",),
)

KANDINSKY5 = Family(
    "Kandinsky 5",
    classes=("Kandinsky5",),
    axes="bfhwc",
    marks=r"(?:^|_)(?:text|visual)_transformer_blocks_0",
    headers=("kandinsky5", "kandinsky-5"),
    said=("kandinsky 5", "kandinsky5"),
)

# one piece in single files; DiffSynth trains on a model whose queries, keys and values alternate head by head
_MINIMAX_ATTENTION = """
blocks.N.attn.qkv_proj -> transformer_blocks.N.attn.to_q{heads} .to_k{heads} .to_v{heads}
token_refiner.blocks.N.attn.qkv_proj -> token_refiner.refiner_blocks.N.attn.to_q{heads} .to_k{heads} .to_v{heads}
"""
_MINIMAX = """
blocks.N.attn.out_proj -> transformer_blocks.N.attn.to_out.0
blocks.N.mlp.fc1 -> transformer_blocks.N.ff.net.0.proj[swap]
blocks.N.mlp.fc2 -> transformer_blocks.N.ff.net.2
blocks.N.adaln_proj.linear -> transformer_blocks.N.adaln_proj.linear
blocks.N.attn.{q_norm,k_norm} -> transformer_blocks.N.attn.{norm_q,norm_k}
token_refiner.blocks.N.attn.{q_norm,k_norm} -> token_refiner.refiner_blocks.N.attn.{norm_q,norm_k}
token_refiner.blocks.N.attn.out_proj -> token_refiner.refiner_blocks.N.attn.to_out.0
token_refiner.blocks.N.mlp.fc1 -> token_refiner.refiner_blocks.N.ff.net.0.proj[swap]
token_refiner.blocks.N.mlp.fc2 -> token_refiner.refiner_blocks.N.ff.net.2
video_patch_proj -> proj_in
audio_patch_proj -> audio_proj_in
final_layer.audio_out -> audio_proj_out
final_layer.norm -> norm_out.norm
condition_proj -> context_embedder
final_layer.video_out -> proj_out
final_layer.adaln_proj.linear -> norm_out.linear
time_embedder.{proj_in,proj_out} -> time_embedder.{linear_1,linear_2}
blocks.* -> transformer_blocks.*
token_refiner.blocks.* -> token_refiner.refiner_blocks.*
"""

MINIMAX_H3 = Family(
    "MiniMax-H3",
    classes=("MiniMaxH3",),
    # a row for each timestep of the sequence, whatever the batch
    by_call="""
time_embedder.*
transformer_blocks.N.adaln_proj.*
token_refiner.refiner_blocks.N.adaln_proj.*
norm_out.linear
""",
    layouts={
        "original": _MINIMAX_ATTENTION.format(heads="") + _MINIMAX,
        "diffsynth": _MINIMAX_ATTENTION.format(heads="[heads]") + _MINIMAX,
    },
    marks=r"(?:^|_)blocks_0_attn_qkv_proj$|^token_refiner_|(?:^|_)blocks_0_adaln_proj_",
    transformers=(("MiniMaxH3Transformer3DModel", {}),),
    headers=("minimax",),
    said=("minimax",),
    kohya_flat="original",
)
