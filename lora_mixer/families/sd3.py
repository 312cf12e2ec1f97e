"""Stable Diffusion 3 and 3.5."""

from __future__ import annotations

from lora_mixer.families.family import Family

_SHARED = {"sample_size": 128, "in_channels": 16, "out_channels": 16, "pooled_projection_dim": 2048}


def _sized(layers: int) -> dict[str, int]:
    return {"num_layers": layers, "num_attention_heads": layers, "caption_projection_dim": 64 * layers}


SD3 = Family(
    "SD3",
    classes=("SD3",),
    on_picture="transformer_blocks.N.attn2.*",
    layouts={
        "original": """
joint_blocks.N.x_block.attn.qkv -> transformer_blocks.N.attn.to_q .to_k .to_v
joint_blocks.N.context_block.attn.qkv -> transformer_blocks.N.attn.add_q_proj .add_k_proj .add_v_proj
joint_blocks.N.x_block.attn2.qkv -> transformer_blocks.N.attn2.to_q .to_k .to_v
joint_blocks.N.{x_block,context_block}.attn.proj -> transformer_blocks.N.attn.{to_out.0,to_add_out}
joint_blocks.N.x_block.attn2.proj -> transformer_blocks.N.attn2.to_out.0
joint_blocks.N.x_block.attn.{ln_q,ln_k} -> transformer_blocks.N.attn.{norm_q,norm_k}
joint_blocks.N.x_block.attn2.{ln_q,ln_k} -> transformer_blocks.N.attn2.{norm_q,norm_k}
joint_blocks.N.context_block.attn.{ln_q,ln_k} -> transformer_blocks.N.attn.{norm_added_q,norm_added_k}
joint_blocks.N.{x_block,context_block}.mlp.fc1 -> transformer_blocks.N.{ff,ff_context}.net.0.proj
joint_blocks.N.{x_block,context_block}.mlp.fc2 -> transformer_blocks.N.{ff,ff_context}.net.2
joint_blocks.N.x_block.adaLN_modulation.1 -> transformer_blocks.N.norm1.linear
joint_blocks.L.context_block.adaLN_modulation.1 -> transformer_blocks.L.norm1_context.linear[swap]
joint_blocks.N.context_block.adaLN_modulation.1 -> transformer_blocks.N.norm1_context.linear
final_layer.adaLN_modulation.1 -> norm_out.linear[swap]
final_layer.linear -> proj_out
x_embedder.proj -> pos_embed.proj
t_embedder.mlp.{0,2} -> time_text_embed.timestep_embedder.{linear_1,linear_2}
y_embedder.mlp.{0,2} -> time_text_embed.text_embedder.{linear_1,linear_2}
""",
    },
    absent="""
joint_blocks.N.context_block.attn.proj
joint_blocks.N.context_block.mlp.{fc1,fc2}
joint_blocks.N.x_block.attn2.*
transformer_blocks.N.attn.to_add_out
transformer_blocks.N.ff_context.*
transformer_blocks.N.attn2.*
""",
    marks=r"(?:^|_)joint_blocks_0",
    headers=("sd3", "stable-diffusion-3"),
    said=("sd 3", "sd3"),
    bases=(
        *(
            (name.format(size), f"stabilityai/stable-diffusion-3.5-{size}")
            for size in ("large", "medium")
            for name in ("stable-diffusion-3.5-{}", "sd3.5-{}")
        ),
        ("stable-diffusion-3", "stabilityai/stable-diffusion-3-medium-diffusers"),
        ("sd3", "stabilityai/stable-diffusion-3-medium-diffusers"),
    ),
    widths=frozenset((1536, 2432)),
    like="DiT",
    transformers=(
        ("SD3Transformer2DModel", {**_SHARED, **_sized(38), "qk_norm": "rms_norm"}),
        (
            "SD3Transformer2DModel",
            {**_SHARED, **_sized(24), "qk_norm": "rms_norm", "dual_attention_layers": tuple(range(13))},
        ),
        ("SD3Transformer2DModel", {**_SHARED, **_sized(24)}),
    ),
    text_encoders={
        "text_encoder": ("CLIPTextModelWithProjection", 768, 3072, 12, 12),
        "text_encoder_2": ("CLIPTextModelWithProjection", 1280, 5120, 32, 20),
        "text_encoder_3": ("T5EncoderModel", 4096, 10240, 24, 64),
    },
    t5="text_encoder_3",
    kohya=("sd3", "False", "stable-diffusion-3/lora"),
    kohya_flat="original",
)
