"""Z-Image, Lumina-Image 2.0 and Lumina-Next, Ideogram 4: blocks called ``layers``."""

from __future__ import annotations

from lora_mixer.families.family import Family

ZIMAGE = Family(
    "Z-Image",
    classes=("ZImage",),
    joint="picture first",
    layouts={
        "original": """
{layers,noise_refiner,context_refiner}.N.attention.qkv -> {layers,noise_refiner,context_refiner}.N.attention.to_q .to_k .to_v
{layers,noise_refiner,context_refiner}.N.attention.out -> {layers,noise_refiner,context_refiner}.N.attention.to_out.0
{layers,noise_refiner,context_refiner}.N.attention.q_norm -> {layers,noise_refiner,context_refiner}.N.attention.norm_q
{layers,noise_refiner,context_refiner}.N.attention.k_norm -> {layers,noise_refiner,context_refiner}.N.attention.norm_k
x_embedder -> all_x_embedder.2-1
final_layer.linear -> all_final_layer.2-1.linear
final_layer.adaLN_modulation.1 -> all_final_layer.2-1.adaLN_modulation.1
""",
    },
    absent="t_embedder_2.*",
    marks=r"(?:^|_)(?:context_refiner|noise_refiner)_0|^layers_0_attention_(?:qkv|out|to_[qkv]|to_out_0)$",
    encoder="qwen3_4b",
    headers=("zimage", "z-image", "z_image"),
    said=("z-image", "zimage", "z image"),
    kohya=("zimage", "False", "z-image/lora"),
    transformers=(("ZImageTransformer2DModel", {}),),
    kohya_flat="",
)

LUMINA2 = Family(
    "Lumina 2",
    classes=("Lumina2",),
    joint="text first",
    layouts={
        "original": """
{layers,noise_refiner,context_refiner}.N.attention.qkv -> {layers,noise_refiner,context_refiner}.N.attn.to_q .to_k .to_v
{layers,noise_refiner,context_refiner}.N.attention.out -> {layers,noise_refiner,context_refiner}.N.attn.to_out.0
{layers,noise_refiner,context_refiner}.N.attention.q_norm -> {layers,noise_refiner,context_refiner}.N.attn.norm_q
{layers,noise_refiner,context_refiner}.N.attention.k_norm -> {layers,noise_refiner,context_refiner}.N.attn.norm_k
{layers,noise_refiner,context_refiner}.N.feed_forward.w1 -> {layers,noise_refiner,context_refiner}.N.feed_forward.linear_1
{layers,noise_refiner,context_refiner}.N.feed_forward.w2 -> {layers,noise_refiner,context_refiner}.N.feed_forward.linear_2
{layers,noise_refiner,context_refiner}.N.feed_forward.w3 -> {layers,noise_refiner,context_refiner}.N.feed_forward.linear_3
{layers,noise_refiner}.N.adaLN_modulation.1 -> {layers,noise_refiner}.N.norm1.linear
{layers,noise_refiner}.N.attention_norm1 -> {layers,noise_refiner}.N.norm1.norm
context_refiner.N.attention_norm1 -> context_refiner.N.norm1
{layers,noise_refiner,context_refiner}.N.attention_norm2 -> {layers,noise_refiner,context_refiner}.N.norm2
cap_embedder.{0,1} -> time_caption_embed.caption_embedder.{0,1}
t_embedder.mlp.{0,2} -> time_caption_embed.timestep_embedder.{linear_1,linear_2}
final_layer.adaLN_modulation.1 -> norm_out.linear_1
final_layer.linear -> norm_out.linear_2
""",
    },
    marks=r"^(?:layers|noise_refiner|context_refiner)_0_(?:attn_to|feed_forward_linear|norm0_linear)|^time_caption_embed_",
    like="Z-Image",
    widths=frozenset((2304,)),
    transformers=(("Lumina2Transformer2DModel", {}),),
    encoder="gemma2_2b",
    headers=("lumina",),
    said=("lumina",),
    kohya=("lumina2", "False", "lumina-2/lora"),
    kohya_flat="original",
)

LUMINA_NEXT = Family(
    "Lumina-Next",
    classes=("LuminaNext",),
    layouts={
        "original": """
layers.N.attention.wq -> layers.N.attn1.to_q & layers.N.attn2.to_q
layers.N.attention.{wk,wv} -> layers.N.attn1.{to_k,to_v}
layers.N.attention.{wk_y,wv_y} -> layers.N.attn2.{to_k,to_v}
layers.N.attention.wo -> layers.N.attn2.to_out.0
layers.N.attention.q_norm -> layers.N.attn1.norm_q & layers.N.attn2.norm_q
layers.N.attention.k_norm -> layers.N.attn1.norm_k
layers.N.attention.ky_norm -> layers.N.attn2.norm_k
layers.N.attention.gate -> layers.N.gate
layers.N.{attention_norm1,attention_norm2,attention_y_norm} -> layers.N.{attn_norm1,attn_norm2,norm1_context}
layers.N.feed_forward.{w1,w2,w3} -> layers.N.feed_forward.{linear_1,linear_2,linear_3}
x_embedder -> patch_embedder.proj
t_embedder.mlp.{0,2} -> time_caption_embed.timestep_embedder.{linear_1,linear_2}
cap_embedder.{0,1} -> time_caption_embed.caption_embedder.{0,1}
""",
    },
    marks=r"^layers_0_(?:attention_w[kv]_y|attn0_to_[qkv])$",
    kohya_flat="original",
)

IDEOGRAM = Family(
    "Ideogram 4",
    classes=("Ideogram",),
    layouts={
        "original": """
layers.N.attention.qkv -> layers.N.attention.to_q .to_k .to_v
layers.N.attention.o -> layers.N.attention.to_out.0
""",
    },
    headers=("ideogram",),
    said=("ideogram",),
    marks=r"^layers_0_(?:attention_o|adaln_modulation)$|^llm_cond_proj$",
    like="Z-Image",
    widths=frozenset((4608,)),
    kohya_flat="original",
)
