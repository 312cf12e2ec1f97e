"""Full-size Stable Diffusion models with random weights, and adapter files for them, made in code."""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any

import torch
from diffusers import (
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

if TYPE_CHECKING:
    from pathlib import Path

UNETS: dict[str, dict[str, Any]] = {
    "sd15": {
        "sample_size": 64,
        "cross_attention_dim": 768,
        "attention_head_dim": 8,
        "block_out_channels": (320, 640, 1280, 1280),
        "layers_per_block": 2,
    },
    "sdxl": {
        "sample_size": 128,
        "cross_attention_dim": 2048,
        "attention_head_dim": [5, 10, 20],
        "block_out_channels": (320, 640, 1280),
        "layers_per_block": 2,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": [1, 2, 10],
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    "tiny": {
        "sample_size": 16,
        "cross_attention_dim": 768,
        "attention_head_dim": 8,
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    },
}
# SDXL's depth at a width that any machine has room for: what is left is the overhead outside the arithmetic.
UNETS["sdxl-thin"] = UNETS["sdxl"] | {
    "sample_size": 16,
    "cross_attention_dim": 64,
    "attention_head_dim": [2, 2, 2],
    "block_out_channels": (32, 32, 64),
    "projection_class_embeddings_input_dim": 1280 + 6 * 256,
}
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
CLIP_G = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
    "hidden_act": "gelu",
}
THIN = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "projection_dim": 64}


def _filled(build: Any, device: str, dtype: torch.dtype) -> Any:
    """Build a module without its slow initialisation and fill it with small random weights."""
    with torch.device("meta"):
        module = build()
    module = module.to_empty(device=device).to(dtype).eval().requires_grad_(requires_grad=False)
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if not tensor.is_floating_point():
            tensor.copy_(torch.arange(tensor.numel()).view(tensor.shape))  # position ids
        elif tensor.ndim == 1 and name.endswith("weight"):
            tensor.fill_(1.0)
        else:
            tensor.normal_(0, 0.02)
    return module


def pipeline(size: str, device: str, dtype: torch.dtype) -> Any:
    """Make an ``sd15``, ``sdxl`` or ``tiny`` pipeline of full layer shapes; it has no VAE and no tokenizer."""
    torch.manual_seed(0)
    unet = _filled(lambda: UNet2DConditionModel(**UNETS[size]), device, dtype)
    thin: dict[str, Any] = THIN if size.endswith("thin") else {}
    clip_l = _filled(lambda: CLIPTextModel(CLIPTextConfig(**CLIP_L | thin)), device, dtype)
    scheduler = EulerDiscreteScheduler()
    if not size.startswith("sdxl"):
        return StableDiffusionPipeline(
            vae=None, text_encoder=clip_l, tokenizer=None, unet=unet, scheduler=scheduler, safety_checker=None,
            feature_extractor=None, requires_safety_checker=False,
        )  # fmt: skip
    clip_g = _filled(lambda: CLIPTextModelWithProjection(CLIPTextConfig(**CLIP_G | thin)), device, dtype)
    return StableDiffusionXLPipeline(
        vae=None, text_encoder=clip_l, text_encoder_2=clip_g, tokenizer=None, tokenizer_2=None, unet=unet,
        scheduler=scheduler,
    )  # fmt: skip


def step_inputs(size: str, batch: int, device: str, dtype: torch.dtype) -> dict[str, Any]:
    """Make the arguments of one UNet call at the family's native size, guidance included in ``batch``."""
    side = UNETS[size]["sample_size"]
    width = UNETS[size]["cross_attention_dim"]
    inputs: dict[str, Any] = {
        "sample": torch.randn(batch, 4, side, side, device=device, dtype=dtype),
        "timestep": torch.tensor(500, device=device),
        "encoder_hidden_states": torch.randn(batch, 77, width, device=device, dtype=dtype),
        "return_dict": False,
    }
    if size.startswith("sdxl"):
        inputs["added_cond_kwargs"] = {
            "text_embeds": torch.randn(batch, 1280, device=device, dtype=dtype),
            "time_ids": torch.randn(batch, 6, device=device, dtype=dtype),
        }
    return inputs


def write_kohya(pipe: Any, path: Path, seed: int, rank: int = 16) -> int:
    """
    Write a Kohya file over the UNet's attention, feed-forward and projection layers and all text encoder layers.

    Returns:
        The file's size in bytes.
    """
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for component, prefix in (
        ("unet", "lora_unet"),
        ("text_encoder", "lora_te1"),
        ("text_encoder_2", "lora_te2"),
    ):
        module = getattr(pipe, component, None)
        if module is None:
            continue
        for name, layer in module.named_modules():
            weight = getattr(layer, "weight", None)
            inside = (
                "attentions." in name if component == "unet" else ".layers." in name and "norm" not in name
            )
            if weight is None or weight.ndim < 2 or not inside:
                continue
            kernel = [1] * (weight.ndim - 2)
            key = f"{prefix}_{name.replace('.', '_')}"
            if component == "text_encoder" and not name.startswith("text_model."):
                key = f"{prefix}_text_model_{name.replace('.', '_')}"
            down = torch.randn(rank, weight.shape[1], *kernel, generator=generator) / weight.shape[1] ** 0.5
            up = torch.randn(weight.shape[0], rank, *kernel, generator=generator) * 0.02
            tensors[f"{key}.lora_down.weight"] = down.half()
            tensors[f"{key}.lora_up.weight"] = up.half()
            tensors[f"{key}.alpha"] = torch.tensor(rank / 2).half()
    save_file(tensors, path, {"ss_network_module": "networks.lora", "note": json.dumps({"seed": seed})})
    return path.stat().st_size


def data_bytes(path: Path) -> int:
    """Give the size of a safetensors file's data section."""
    with path.open("rb") as stream:
        (header,) = struct.unpack("<Q", stream.read(8))
    return int(path.stat().st_size - 8 - header)
