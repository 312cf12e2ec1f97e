"""
Write a whole SDXL pipeline with random weights, VAE and tokenizers included, and Kohya files for it, into a folder.

``python -m benchmarks.whole FOLDER`` (7 GB), then, say, ``python -m benchmarks.batch_speed speed --model FOLDER/model
--device cuda --lora FOLDER/style0.safetensors ...``. What such a pipeline makes is noise; what it costs is what SDXL costs.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKL

from benchmarks.models import pipeline, write_kohya
from tests.models import tokenizer

ADAPTERS = 4


def write(folder: Path, device: str) -> None:
    """Write the pipeline and its adapters."""
    pipe = pipeline("sdxl", device, torch.float16)
    with torch.device(device):
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            sample_size=1024,
            scaling_factor=0.13025,
            force_upcast=False,
        )
    pipe.register_modules(vae=vae.half(), tokenizer=tokenizer(), tokenizer_2=tokenizer())
    pipe.save_pretrained(folder / "model")
    for seed in range(ADAPTERS):
        write_kohya(pipe, folder / f"style{seed}.safetensors", seed)


if __name__ == "__main__":
    write(Path(sys.argv[1]), "cuda" if torch.cuda.is_available() else "cpu")
