"""Sprites to pictures, in torch on any device: recolouring, placing, backgrounds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from subjects import BACKGROUNDS, COLOURS

# hue (turns), saturation factor, saturation floor for gray pixels, value exponent
_TARGETS = {
    "red": (0.0, 1.0, 0.72, 1.0),
    "orange": (0.075, 1.05, 0.80, 0.75),
    "yellow": (0.145, 1.0, 0.75, 0.55),
    "green": (0.345, 0.95, 0.65, 1.0),
    "blue": (0.595, 1.0, 0.70, 1.0),
    "purple": (0.765, 0.90, 0.60, 1.0),
    "pink": (0.92, 0.50, 0.42, 0.5),
    "gray": (0.0, 0.0, 0.0, 1.0),
}


@dataclass
class Look:
    """One row per picture; -1 means 'as it is' (colour) and 'white' (background)."""

    sprite: torch.Tensor  # int64
    colour: torch.Tensor  # int64, index into COLOURS or -1
    background: torch.Tensor  # int64, index into BACKGROUNDS or -1
    flip: torch.Tensor  # bool
    scale: torch.Tensor  # float
    shift: torch.Tensor  # float (n, 2), in picture halves

    def pick(self, index: torch.Tensor) -> Look:
        return Look(*(getattr(self, f)[index] for f in self.__dataclass_fields__))

    def part(self, at: slice, device: torch.device) -> Look:
        return Look(*(getattr(self, f)[at].to(device) for f in self.__dataclass_fields__))


def to_hsv(rgb: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    value, at = rgb.max(1)
    spread = value - rgb.min(1).values
    r, g, b = rgb.unbind(1)
    safe = spread.clamp(min=1e-6)
    hue = (
        torch.where(at == 0, (g - b) / safe, torch.where(at == 1, (b - r) / safe + 2, (r - g) / safe + 4)) / 6
    )
    return hue % 1.0, spread / value.clamp(min=1e-6), value


def from_hsv(hue: torch.Tensor, saturation: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    k = (torch.tensor([5.0, 3.0, 1.0], device=hue.device).view(1, 3, 1, 1) + hue.unsqueeze(1) * 6) % 6
    return value.unsqueeze(1) * (1 - saturation.unsqueeze(1) * torch.minimum(k, 4 - k).clamp(0, 1))


def recolour(rgba: torch.Tensor, colour: torch.Tensor) -> torch.Tensor:
    """Turns the subject's main colour into another and leaves the rest (a leaf, an eye) as drawn.

    Subjects that are mostly gray are tinted; black outlines stay.
    """
    rgb, alpha = rgba[:, :3], rgba[:, 3]
    hue, sat, val = to_hsv(rgb)
    weight = alpha * sat * val
    # The main hue is the fullest of 36 smoothed bins: a mean would lie between two colours.
    bins = (hue * 36).long().clamp(0, 35).flatten(1)
    hist = torch.zeros(len(hue), 36, device=hue.device).scatter_add_(1, bins, weight.flatten(1))
    hist = sum((hist.roll(s, 1) for s in (-1, 0, 1)), torch.zeros_like(hist))
    main = ((hist.argmax(1).float() + 0.5) / 36).view(-1, 1, 1)
    colourful = weight.flatten(1).sum(1) / alpha.flatten(1).sum(1).clamp(min=1)
    is_gray = (colourful < 0.16).view(-1, 1, 1)
    apart = (torch.remainder(hue - main + 0.5, 1.0) - 0.5).abs() * 360
    mine = ((75 - apart) / 25).clamp(0, 1) * (sat / 0.15).clamp(0, 1)
    mine = torch.where(is_gray, torch.ones_like(mine), mine)
    table = torch.tensor([_TARGETS[c] for c in COLOURS], device=hue.device)[colour.clamp(min=0)]
    target, factor, floor, power = (x.view(-1, 1, 1) for x in table.unbind(1))
    residue = torch.where(is_gray, torch.zeros_like(hue), torch.remainder(hue - main + 0.5, 1.0) - 0.5)
    new_sat = torch.where(is_gray, torch.maximum(sat * factor, floor), (sat * factor).clamp(max=1))
    new = from_hsv((target + 0.35 * residue) % 1.0, new_sat, val.clamp(min=1e-6) ** power)
    # Full value is white without its hue: gray follows the luminance instead.
    light = (rgb * rgb.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    new = torch.where((factor == 0).unsqueeze(1), 0.25 + 0.5 * light.expand_as(rgb), new)
    out = torch.lerp(rgb, new, mine.unsqueeze(1))
    return torch.where((colour >= 0).view(-1, 1, 1, 1), torch.cat([out, alpha.unsqueeze(1)], 1), rgba)


def compose(sprites: torch.Tensor, look: Look) -> torch.Tensor:
    """RGBA uint8 sprites (k, 4, s, s) to RGB pictures (n, 3, s, s) in [0, 1]."""
    rgba = recolour(sprites[look.sprite].float() / 255, look.colour)
    premultiplied = torch.cat([rgba[:, :3] * rgba[:, 3:], rgba[:, 3:]], 1)
    n, device = len(rgba), rgba.device
    theta = torch.zeros(n, 2, 3, device=device)
    theta[:, 0, 0] = torch.where(look.flip, -1.0, 1.0) / look.scale
    theta[:, 1, 1] = 1 / look.scale
    theta[:, :, 2] = -look.shift / look.scale.view(-1, 1)
    theta[:, 0, 2] *= torch.where(look.flip, -1.0, 1.0)
    grid = F.affine_grid(theta, list(premultiplied.shape), align_corners=False)
    placed = F.grid_sample(premultiplied, grid, mode="bicubic", align_corners=False).clamp(0, 1)
    paper = torch.tensor([*BACKGROUNDS.values(), (1.0, 1.0, 1.0)], device=device)[look.background]
    return (placed[:, :3] + (1 - placed[:, 3:]) * paper.view(-1, 3, 1, 1)).clamp(0, 1)


def random_looks(n_sprites: int, each: int, generator: torch.Generator) -> Look:
    """`each` looks of every sprite: half plain, the rest recoloured, on a coloured background, or both."""
    n = n_sprites * each

    def rand(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator)

    kind = rand(n)
    colour = torch.randint(len(COLOURS), (n,), generator=generator)
    background = torch.randint(len(BACKGROUNDS), (n,), generator=generator)
    return Look(
        sprite=torch.arange(n_sprites).repeat_interleave(each),
        colour=torch.where((kind > 0.5) & (kind < 0.9), colour, -1),
        background=torch.where(kind > 0.8, background, -1),
        flip=rand(n) < 0.3,
        scale=0.84 + 0.12 * rand(n),
        shift=(rand(n, 2) - 0.5) * 0.1,
    )
