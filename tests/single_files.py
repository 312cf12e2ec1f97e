"""Checkpoints in one file, in the names of the original code, written from small diffusers pipelines without the package."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file

from tests.spellings import ldm

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import nn

Tensors = dict[str, torch.Tensor]
_VAE_LEAVES = {"conv_shortcut": "nin_shortcut", "group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v"}


def unet_tensors(unet: nn.Module, *, sdxl: bool) -> Tensors:
    """Name a UNet's tensors as the original code does."""
    found = {}
    for key, value in unet.state_dict().items():
        path, _, leaf = key.rpartition(".")
        name = "out.0" if path == "conv_norm_out" else ldm(path, sdxl=sdxl)
        found[f"model.diffusion_model.{name}.{leaf}"] = value
    return found


def vae_tensors(vae: Any, prefix: str = "first_stage_model.") -> Tensors:
    """Name a VAE's tensors as the original code does; its attentions are convolutions there."""
    last = len(vae.config.block_out_channels) - 1
    found = {}
    for key, value in vae.state_dict().items():
        name = re.sub(r"down_blocks\.(\d+)\.resnets\.", r"down.\1.block.", key)
        name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
        name = re.sub(r"up_blocks\.(\d+)\.resnets\.", lambda m: f"up.{last - int(m[1])}.block.", name)
        name = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{last - int(m[1])}.upsample", name)
        name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
        name = name.replace("mid_block.attentions.0", "mid.attn_1").replace("to_out.0", "proj_out")
        name = name.replace("conv_norm_out", "norm_out")
        parts = [_VAE_LEAVES.get(part, part) for part in name.split(".")]
        is_projection = "attn_1" in parts and value.ndim == 2
        found[prefix + ".".join(parts)] = value[:, :, None, None] if is_projection else value
    return found


def clip_tensors(encoder: nn.Module, prefix: str) -> Tensors:
    """Name the tensors of CLIP-L as checkpoints do: those of transformers 4 behind a prefix."""
    return {
        f"{prefix}text_model.{key.removeprefix('text_model.')}": value
        for key, value in encoder.state_dict().items()
        if "text_projection" not in key
    }


def open_clip_tensors(encoder: nn.Module, prefix: str) -> Tensors:
    """Name the tensors of a text encoder as OpenCLIP does: q, k and v in one."""
    state = {key.removeprefix("text_model."): value for key, value in encoder.state_dict().items()}
    found: Tensors = {
        "token_embedding.weight": state["embeddings.token_embedding.weight"],
        "positional_embedding": state["embeddings.position_embedding.weight"],
        "ln_final.weight": state["final_layer_norm.weight"],
        "ln_final.bias": state["final_layer_norm.bias"],
        "text_projection": state["text_projection.weight"].T.contiguous(),
        "logit_scale": torch.tensor(4.6),
    }
    layers = {int(match[1]) for key in state if (match := re.match(r"encoder\.layers\.(\d+)\.", key))}
    for i in layers:
        here, there = f"encoder.layers.{i}.", f"transformer.resblocks.{i}."
        for leaf in ("weight", "bias"):
            found[f"{there}attn.in_proj_{leaf}"] = torch.cat(
                [state[f"{here}self_attn.{part}_proj.{leaf}"] for part in "qkv"]
            )
            for ours, theirs in {
                "self_attn.out_proj": "attn.out_proj", "layer_norm1": "ln_1", "layer_norm2": "ln_2",
                "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
            }.items():  # fmt: skip
                found[f"{there}{theirs}.{leaf}"] = state[f"{here}{ours}.{leaf}"]
    return {prefix + key: value for key, value in found.items()}


def pipeline_tensors(pipe: Any) -> Tensors:
    """Give all tensors of an SD or SDXL pipeline as one checkpoint has them."""
    sdxl = hasattr(pipe, "text_encoder_2")
    front = "conditioner.embedders.0.transformer." if sdxl else "cond_stage_model.transformer."
    found = {
        **unet_tensors(pipe.unet, sdxl=sdxl),
        **vae_tensors(pipe.vae),
        **clip_tensors(pipe.text_encoder, front),
    }
    if sdxl:
        found |= open_clip_tensors(pipe.text_encoder_2, "conditioner.embedders.1.model.")
    return found


def write_checkpoint(pipe: Any, path: Path, more: Mapping[str, torch.Tensor] | None = None) -> Path:
    """Write a pipeline as one file, and its configuration as a folder of its name beside it."""
    save(pipeline_tensors(pipe) | dict(more or {}), path)
    pipe.save_pretrained(path.with_suffix(""))
    for weights in path.with_suffix("").rglob("*.safetensors"):
        weights.unlink()
    return path


def save(tensors: Mapping[str, torch.Tensor], path: Path) -> Path:
    """Write tensors."""
    save_file({key: value.detach().clone().contiguous() for key, value in tensors.items()}, path)
    return path
