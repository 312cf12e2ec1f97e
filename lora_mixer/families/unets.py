"""Stable Diffusion 1.x, 2.x and XL: UNets, told apart by the width of the text that they attend to."""

from __future__ import annotations

from lora_mixer.families.family import Family, SingleFile

_CLIP_L = ("CLIPTextModel", 768, 3072, 12, 12)
_TRAINED = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "steps_offset": 1,
    "clip_sample": False,
    "set_alpha_to_one": False,
}
_VAE = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
}
_UNCHECKED = {
    "safety_checker": [None, None],
    "feature_extractor": [None, None],
    "requires_safety_checker": False,
}

SD1 = Family(
    "SD 1.x",
    cross_attention=768,
    lbw=(17, 26),
    headers=("sd_v1", "stable-diffusion-v1"),
    said=("sd 1", "sd1"),
    bases=tuple(
        (name, "stable-diffusion-v1-5/stable-diffusion-v1-5")
        for name in ("stable-diffusion-v1", "sd_v1", "sd_1.5", "sd1", "sd15")
    ),
    kohya=("sd_v1", "False", "stable-diffusion-v1/lora"),
    unet={"cross_attention_dim": 768, "attention_head_dim": 8},
    text_encoders={"text_encoder": _CLIP_L},
    single_file=SingleFile(
        {
            "text": ("StableDiffusionPipeline", _UNCHECKED),
            "inpainting": ("StableDiffusionInpaintPipeline", _UNCHECKED),
            "edit": ("StableDiffusionInstructPix2PixPipeline", _UNCHECKED),
        },
        scheduler=("PNDMScheduler", {**_TRAINED, "skip_prk_steps": True}),
        vae={**_VAE, "sample_size": 512, "scaling_factor": 0.18215},
        latents=64,
        clip_l=("text_encoder",),
    ),
)
SD2 = Family(
    "SD 2.x",
    cross_attention=1024,
    lbw=(17, 26),
    headers=("sd_v2", "stable-diffusion-v2"),
    said=("sd 2", "sd2"),
    bases=(
        ("stable-diffusion-v2-768-v", "stabilityai/stable-diffusion-2-1"),
        ("sd_v2_768_v", "stabilityai/stable-diffusion-2-1"),
        ("stable-diffusion-v2", "stabilityai/stable-diffusion-2-1-base"),
        ("sd_v2", "stabilityai/stable-diffusion-2-1-base"),
    ),
    kohya=("sd_v2", "True", "stable-diffusion-v2-512/lora"),
    unet={
        "cross_attention_dim": 1024,
        "attention_head_dim": [5, 10, 20, 20],
        "use_linear_projection": True,
    },
    text_encoders={"text_encoder": ("CLIPTextModel", 1024, 4096, 23, 16)},
    single_file=SingleFile(
        {
            "text": ("StableDiffusionPipeline", _UNCHECKED),
            "inpainting": ("StableDiffusionInpaintPipeline", _UNCHECKED),
        },
        scheduler=("DDIMScheduler", {**_TRAINED, "prediction_type": "v_prediction"}),
        vae={**_VAE, "sample_size": 768, "scaling_factor": 0.18215},
        latents=96,
    ),
    skips_last_layer=True,
)
SDXL = Family(
    "SDXL",
    cross_attention=2048,
    ays="StableDiffusionXLTimesteps",
    lbw=(12, 20),
    b_lora={"content": "unet.up_blocks.0.attentions.0.*", "style": "unet.up_blocks.0.attentions.1.*"},
    headers=("sdxl", "stable-diffusion-xl"),
    said=("sdxl", "pony", "illustrious", "noobai"),
    bases=tuple(
        (name, "stabilityai/stable-diffusion-xl-base-1.0") for name in ("stable-diffusion-xl", "sdxl")
    ),
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
    kohya_implementation="https://github.com/Stability-AI/generative-models",
    single_file=SingleFile(
        {
            "text": ("StableDiffusionXLPipeline", {}),
            "inpainting": ("StableDiffusionXLInpaintPipeline", {"requires_aesthetics_score": False}),
        },
        scheduler=("EulerDiscreteScheduler", {**_TRAINED, "timestep_spacing": "leading"}),
        vae={**_VAE, "sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True},
        latents=128,
        clip_l=("text_encoder",),
    ),
    skips_last_layer=True,
)
SDXL_REFINER = Family(
    "SDXL refiner", cross_attention=1280, said=("sdxl refiner",), ays="StableDiffusionXLTimesteps"
)
