"""Qwen-Image: one spelling in all tools."""

from __future__ import annotations

from lora_mixer.families.family import Family

QWEN_IMAGE = Family(
    "Qwen-Image",
    classes=("QwenImage",),
    layouts={
        "comfyui": """
transformer_blocks.N.{img_mlp,txt_mlp}.gate_up -> transformer_blocks.N.{img_mlp,txt_mlp}.gate_layer .proj
""",
    },
    marks=r"^transformer_blocks_0_(?:img|txt)_(?:mlp|mod)",
    like="DiT",
    widths=frozenset((3072, 4096)),  # the latter: 2.1
    transformers=(("QwenImageTransformer2DModel", {}),),
    encoder="qwen25_7b",
    headers=("qwen",),
    said=("qwen",),
    kohya=("qwen_image", "False", "qwen-image/lora"),
    absent="""
addition_t_embedding.*
time_text_embed.addition_t_embedding.*
""",
)
