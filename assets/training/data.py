"""Pictures and captions from the sprites, and their latents, on the training device."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from augment import Look, compose, random_looks
from subjects import BACKGROUNDS, COLOURS, HELD_OUT, HELD_OUT_PAIRS, caption, without_colour


@dataclass
class Art:
    sprites: torch.Tensor  # (k, 4, 128, 128) uint8, on the device
    names: list[str]
    mascots: torch.Tensor
    mascot_names: list[str]

    def style_subjects(self) -> list[int]:
        """The subjects that style LoRAs may see: none that is held out, and no namesake of one."""
        hidden = {without_colour(n) for n in HELD_OUT}
        return [i for i, n in enumerate(self.names) if n not in HELD_OUT and without_colour(n) not in hidden]


def load_art(path: Path, device: torch.device) -> Art:
    d = np.load(path)

    def pictures(key: str) -> torch.Tensor:
        return torch.from_numpy(d[key]).permute(0, 3, 1, 2).contiguous().to(device)

    return Art(
        pictures("sprites"),
        [str(n) for n in d["names"]],
        pictures("mascots"),
        [str(n) for n in d["mascot_names"]],
    )


def looks_and_captions(
    names: list[str], each: int, seed: int, recolour: bool = True
) -> tuple[Look, list[str]]:
    look = random_looks(len(names), each, torch.Generator().manual_seed(seed))
    if not recolour:
        look.colour[:] = -1
    rng = random.Random(seed)
    colours, backgrounds = list(COLOURS), list(BACKGROUNDS)
    captions = []
    for i, s in enumerate(look.sprite.tolist()):
        name = names[s]
        colour = colours[look.colour[i]] if look.colour[i] >= 0 else None
        if colour and (colour, without_colour(name)) in HELD_OUT_PAIRS:
            colour, look.colour[i] = None, -1
        background = backgrounds[look.background[i]] if look.background[i] >= 0 else None
        captions.append(caption(rng, name, colour, background))
    return look, captions


@torch.no_grad()
def encode(
    vae: Any,
    sprites: torch.Tensor,
    look: Look,
    style: Callable[[torch.Tensor], torch.Tensor] | None = None,
    batch: int = 256,
) -> torch.Tensor:
    """Latents (the distribution's mean) of every look, optionally in a style."""
    out = []
    for at in range(0, len(look.sprite), batch):
        x = compose(sprites, look.part(slice(at, at + batch), sprites.device))
        x = (style(x) if style else x) * 2 - 1
        with torch.autocast(x.device.type, torch.bfloat16, enabled=x.is_cuda):
            z = vae.encode(x).latent_dist.mean
        out.append(z.float() * vae.config.scaling_factor)
    return torch.cat(out)


def token_ids(tokenizer: Any, captions: list[str], length: int) -> torch.Tensor:
    return tokenizer(
        captions, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
    ).input_ids
