"""Stable Diffusion 1.x, 2.x and XL: UNets, told apart by the width of the text that they attend to."""

from __future__ import annotations

from lora_mixer.families.family import Family

_CLIP_L = ("CLIPTextModel", 768, 3072, 12, 12)

SD1 = Family(
    "SD 1.x",
    cross_attention=768,
    headers=("sd_v1", "stable-diffusion-v1"),
    said=("sd 1", "sd1"),
    kohya=("sd_v1", "False", "stable-diffusion-v1/lora"),
    unet={"cross_attention_dim": 768, "attention_head_dim": 8},
    text_encoders={"text_encoder": _CLIP_L},
)
SD2 = Family(
    "SD 2.x",
    cross_attention=1024,
    headers=("sd_v2", "stable-diffusion-v2"),
    said=("sd 2", "sd2"),
    kohya=("sd_v2", "True", "stable-diffusion-v2-512/lora"),
    unet={
        "cross_attention_dim": 1024,
        "attention_head_dim": [5, 10, 20, 20],
        "use_linear_projection": True,
    },
    text_encoders={"text_encoder": ("CLIPTextModel", 1024, 4096, 23, 16)},
)
SDXL = Family(
    "SDXL",
    cross_attention=2048,
    headers=("sdxl", "stable-diffusion-xl"),
    said=("sdxl", "pony", "illustrious", "noobai"),
    kohya=("sdxl_base_v1-0", "False", "stable-diffusion-xl-v1-base/lora"),
    unet={
        "cross_attention_dim": 2048,
        "attention_head_dim": [5, 10, 20],
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": [1, 2, 10],
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
        "use_linear_projection": True,
    },
    text_encoders={
        "text_encoder": _CLIP_L,
        "text_encoder_2": ("CLIPTextModelWithProjection", 1280, 5120, 32, 20),
    },
)
SDXL_REFINER = Family("SDXL refiner", cross_attention=1280, said=("sdxl refiner",))
