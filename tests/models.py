"""
Small random pipelines with the module trees of the real ones, made in code in a fraction of a second.

The UNets have the block structure of SD 1.x and SDXL (so that the original code's names fit them), the text encoders
either layout of CLIP's modules: transformers 4 has ``text_model.encoder...``, transformers 5 ``encoder...``.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

Layout = Literal["as installed", "flat", "nested"]

SD_WIDTH = 12
"""Width of the text that :func:`tiny_sd`'s UNet attends to."""
SDXL_WIDTHS = (12, 16)
"""Widths of the two text encoders of :func:`tiny_sdxl`; its UNet attends to both side by side."""
PRIME = 37  # of the text encoders' hidden layers: no other size is equal to it by chance


class NestedText(nn.Module):
    """A text encoder whose modules lie under ``text_model``, as transformers 4 has them."""

    def __init__(self, text_model: nn.Module, config: Any) -> None:
        super().__init__()
        self.text_model = text_model
        self.config = config

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights, which pipelines ask for."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are, which pipelines ask for."""
        return next(self.parameters()).device

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the inner model."""
        return self.text_model(*args, **kwargs)


def in_layout(encoder: nn.Module, layout: Layout) -> nn.Module:
    """Give a CLIP text model with its modules named as transformers 4 (nested) or 5 (flat) names them."""
    inner = getattr(encoder, "text_model", encoder)
    if layout == "nested" and inner is encoder:
        return NestedText(encoder, encoder.config)
    return inner if layout == "flat" else encoder


def perturb(module: nn.Module, seed: int) -> None:
    """Move every one-dimensional parameter away from its 0 or 1, so that norms and biases are not trivial."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def _byte_letters() -> list[str]:
    """List the 256 letters that GPT-2's byte alphabet uses."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(b) for b in plain] + [chr(256 + i) for i in range(256 - len(plain))]


def tokenizer() -> CLIPTokenizer:
    """Make a CLIP tokenizer that knows single bytes only."""
    letters = _byte_letters()
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "vocab.json").write_text(
            json.dumps({word: i for i, word in enumerate(words)}), encoding="utf-8"
        )
        Path(folder, "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
        return CLIPTokenizer.from_pretrained(folder, model_max_length=77)


def text_encoder(
    width: int, *, projection: bool = False, seed: int = 0
) -> CLIPTextModel | CLIPTextModelWithProjection:
    """Make a CLIP text encoder of two layers."""
    config = CLIPTextConfig(
        vocab_size=514,
        hidden_size=width,
        intermediate_size=PRIME,
        num_hidden_layers=2,
        num_attention_heads=4,
        projection_dim=width,
        bos_token_id=512,
        eos_token_id=513,
        pad_token_id=513,
    )
    torch.manual_seed(seed)
    model = (CLIPTextModelWithProjection if projection else CLIPTextModel)(config).eval()
    perturb(model, seed)
    return model


def sd_unet(
    width: int = SD_WIDTH, *, in_channels: int = 4, linear: bool = False, seed: int = 1
) -> UNet2DConditionModel:
    """Make a UNet with SD 1.x's blocks: four down, four up; ``linear`` as SD 2.x has its projections."""
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=in_channels,
        block_out_channels=(8, 12, 16, 16),
        norm_num_groups=4,
        cross_attention_dim=width,
        attention_head_dim=2,
        use_linear_projection=linear,
    ).eval()
    perturb(unet, seed)
    return unet


def sdxl_unet(widths: tuple[int, int] = SDXL_WIDTHS, *, seed: int = 2) -> UNet2DConditionModel:
    """Make a UNet with SDXL's blocks: three down, three up, one to three transformer blocks deep."""
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 3),
        norm_num_groups=4,
        cross_attention_dim=sum(widths),
        attention_head_dim=(2, 4, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + widths[1],
    ).eval()
    perturb(unet, seed)
    return unet


def _vae(seed: int = 3) -> AutoencoderKL:
    torch.manual_seed(seed)
    return AutoencoderKL(
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=2,
        sample_size=16,
    ).eval()


def _scheduler() -> EulerDiscreteScheduler:
    return EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
    )


def tiny_sd(*, text_layout: Layout = "as installed", in_channels: int = 4) -> StableDiffusionPipeline:
    """Make a Stable Diffusion 1.x pipeline, random and small; the same weights each time."""
    pipe = StableDiffusionPipeline(
        vae=_vae(),
        text_encoder=text_encoder(SD_WIDTH),
        tokenizer=tokenizer(),
        unet=sd_unet(in_channels=in_channels),
        scheduler=_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.text_encoder = in_layout(pipe.text_encoder, text_layout)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tiny_sdxl(
    *, text_layout: Layout = "as installed", widths: tuple[int, int] = SDXL_WIDTHS
) -> StableDiffusionXLPipeline:
    """Make an SDXL pipeline, random and small; the same weights each time."""
    pipe = StableDiffusionXLPipeline(
        vae=_vae(),
        text_encoder=text_encoder(widths[0]),
        text_encoder_2=text_encoder(widths[1], projection=True, seed=10),
        tokenizer=tokenizer(),
        tokenizer_2=tokenizer(),
        unet=sdxl_unet(widths),
        scheduler=_scheduler(),
        add_watermarker=False,
    )
    pipe.text_encoder = in_layout(pipe.text_encoder, text_layout)
    pipe.set_progress_bar_config(disable=True)
    return pipe
