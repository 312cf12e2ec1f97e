"""Pictures of a list of prompts on the training device, with the shipped scheduler's settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from data import token_ids
from nets import new_scheduler
from PIL import Image
from tokenizer import LENGTH


@torch.no_grad()
def sample(
    unet: Any,
    te: Any,
    vae: Any,
    tokenizer: Any,
    prompts: list[str],
    steps: int = 20,
    guidance: float = 3.0,
    seed: int = 0,
) -> torch.Tensor:
    """RGB uint8 pictures (n, 3, 128, 128)."""
    device = next(unet.parameters()).device
    cuda = device.type == "cuda"
    scheduler = new_scheduler()
    scheduler.set_timesteps(steps)
    out = []
    for at in range(0, len(prompts), 128):
        part = prompts[at : at + 128]
        ids = token_ids(tokenizer, [*part, *[""] * len(part)], LENGTH).to(device)
        z = torch.stack(
            [
                torch.randn(4, 32, 32, generator=torch.Generator().manual_seed(seed + at + i))
                for i in range(len(part))
            ]
        ).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=cuda):
            text = te(ids)[0]
            for t in scheduler.timesteps:
                cond, free = (
                    unet(torch.cat([z, z]), t.to(device), text, return_dict=False)[0].float().chunk(2)
                )
                z = scheduler.step(free + guidance * (cond - free), t, z).prev_sample
            x = vae.decode(z / vae.config.scaling_factor).sample.float()
        out.append(((x.clamp(-1, 1) + 1) * 127.5).round().byte())
    return torch.cat(out)


def grid(pictures: torch.Tensor, columns: int, path: Path) -> None:
    blank = (-len(pictures)) % columns
    if blank:
        pictures = torch.cat([pictures, pictures.new_full((blank, *pictures.shape[1:]), 255)])
    rows = [torch.cat(list(r), 2) for r in pictures.split(columns)]
    Image.fromarray(torch.cat(rows, 1).permute(1, 2, 0).cpu().numpy()).save(path)


def sheet(
    unet: Any,
    te: Any,
    vae: Any,
    tokenizer: Any,
    prompts: list[str],
    path: Path,
    columns: int = 12,
    seed: int = 0,
) -> None:
    training = unet.training
    unet.eval(), te.eval()
    grid(sample(unet, te, vae, tokenizer, prompts, seed=seed), columns, path)
    unet.train(training), te.train(training)
