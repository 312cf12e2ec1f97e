"""Small adapter files for tests of folders: written in a moment, each a whole Kohya LoRA."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file

if TYPE_CHECKING:
    from pathlib import Path

ATTENTION = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
WIDTHS = {"SD 1.x": 768, "SD 2.x": 1024, "SDXL": 2048}


def tensors(base: str = "SD 1.x", rank: int = 4, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        f"{ATTENTION}.lora_down.weight": torch.randn(rank, WIDTHS[base], generator=generator).half(),
        f"{ATTENTION}.lora_up.weight": torch.randn(8, rank, generator=generator).half(),
        f"{ATTENTION}.alpha": torch.tensor(float(rank)),
    }


def write_lora(path: Path, base: str = "SD 1.x", rank: int = 4, seed: int = 0, **metadata: str) -> Path:
    """Write a LoRA; its header has the file's first name, so that two are never equal by chance."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors(base, rank, seed), path, {"ss_output_name": path.stem, **metadata})
    return path


def tag_frequency(**counts: int) -> str:
    """Kohya's counts of training tags."""
    return json.dumps({"10_x": counts})
