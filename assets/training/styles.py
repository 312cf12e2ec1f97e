"""The true styles: each is a function of a picture, so that a subject keeps its shape.

Every function takes and returns (n, 3, 128, 128) in [0, 1] and has no randomness of its own.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

Style = Callable[[torch.Tensor], torch.Tensor]


def _blur(x: torch.Tensor, sigma: float) -> torch.Tensor:
    r = max(1, int(3 * sigma))
    k = torch.exp(-(torch.arange(-r, r + 1, device=x.device, dtype=x.dtype) ** 2) / (2 * sigma**2))
    k = (k / k.sum()).view(1, 1, -1)
    c = x.shape[1]
    x = F.pad(x, (r, r, r, r), mode="replicate")
    x = F.conv2d(x, k.unsqueeze(2).expand(c, 1, 1, -1), groups=c)
    return F.conv2d(x, k.unsqueeze(3).expand(c, 1, -1, 1), groups=c)


def _gray(x: torch.Tensor) -> torch.Tensor:
    return (x * torch.tensor([0.299, 0.587, 0.114], device=x.device).view(1, 3, 1, 1)).sum(1, keepdim=True)


def _edges(x: torch.Tensor, sigma: float = 0.8) -> torch.Tensor:
    """Strength of the strongest channel's gradient, (n, 1, h, w)."""
    x = F.pad(_blur(x, sigma), (1, 1, 1, 1), mode="replicate")
    dx = x[..., 1:-1, 2:] - x[..., 1:-1, :-2]
    dy = x[..., 2:, 1:-1] - x[..., :-2, 1:-1]
    return (dx**2 + dy**2).sqrt().amax(1, keepdim=True)


def _noise(x: torch.Tensor, cell: int, seed: int) -> torch.Tensor:
    """A fixed smooth texture in [0, 1]: the paper is the same for every picture."""
    h = x.shape[-1]
    g = torch.Generator().manual_seed(seed)
    small = torch.rand(1, 1, h // cell, h // cell, generator=g).to(x.device)
    return F.interpolate(small, size=(h, h), mode="bicubic", align_corners=False).clamp(0, 1)


def _rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    h = x.shape[-1]
    at = torch.arange(h, device=x.device, dtype=x.dtype)
    return at.view(1, 1, h, 1), at.view(1, 1, 1, h)


def pixel(x: torch.Tensor) -> torch.Tensor:
    """Blocks of 24 x 24 in few colours."""
    small = F.interpolate(x, size=(24, 24), mode="area")
    small = ((small - 0.5) * 1.15 + 0.5).clamp(0, 1)
    return F.interpolate((small * 5).round() / 5, size=x.shape[-2:], mode="nearest")


def neon(x: torch.Tensor) -> torch.Tensor:
    """Glowing tubes along the edges, on near-black."""
    line = (_edges(x, 1.0) * 3.4 - 0.08).clamp(0, 1)
    soft = _blur(x, 3.0)
    top, low = soft.amax(1, keepdim=True), soft.amin(1, keepdim=True)
    vivid = (soft - low) / (top - low).clamp(min=0.05)
    gray = (1 - ((top - low) / 0.12)).clamp(0, 1)
    cyan = torch.tensor([0.1, 0.9, 1.0], device=x.device).view(1, 3, 1, 1)
    light = torch.lerp(vivid, cyan.expand_as(vivid), gray) * 0.9 + 0.1
    night = torch.tensor([0.03, 0.02, 0.09], device=x.device).view(1, 3, 1, 1)
    glow = _blur(line * light, 3.5) * 1.2
    return (night + glow + line * light + 0.35 * line**3).clamp(0, 1)


def ink(x: torch.Tensor) -> torch.Tensor:
    """Black outlines and hatching on white."""
    line = (_edges(x, 0.9) * 4.2 - 0.2).clamp(0, 1)
    row, col = _rows(x)
    dark = 1 - _blur(_gray(x), 1.2)
    one = (((row + col) % 6) < 2.2).to(x.dtype)
    two = (((row - col) % 6) < 2.2).to(x.dtype)
    shade = one * ((dark - 0.30) * 8).clamp(0, 1)
    shade = torch.maximum(shade, two * ((dark - 0.55) * 8).clamp(0, 1))
    shade = torch.maximum(shade, ((dark - 0.78) * 8).clamp(0, 1))
    return (1 - torch.maximum(line, shade * 0.92)).clamp(0, 1).expand(-1, 3, -1, -1)


def watercolor(x: torch.Tensor) -> torch.Tensor:
    """Flat washes with darker rims that bleed into warm, grainy paper."""
    flat = _kuwahara(x, 4)
    ragged = torch.lerp(flat, _blur(flat, 3.0), 0.35 + 0.5 * _noise(x, 8, 3))
    wash = 1 - (1 - ragged) * (0.62 + 0.35 * _noise(x, 16, 5))
    bleed = 1 - (1 - _blur(x, 9.0)) * 0.45
    wash = torch.minimum(wash, torch.lerp(torch.ones_like(bleed), bleed, 0.8 * _noise(x, 16, 7) + 0.2))
    rim = (_edges(flat, 1.4) * 1.2).clamp(0, 0.45)
    wash = wash * (1 - rim * (1 - wash * 0.6))
    paper = torch.tensor([0.99, 0.96, 0.88], device=x.device).view(1, 3, 1, 1)
    return (wash * paper * (0.93 + 0.07 * _noise(x, 2, 11))).clamp(0, 1)


def _kuwahara(x: torch.Tensor, r: int) -> torch.Tensor:
    """Each pixel takes the mean of the calmest of its four corners: paint without thin lines."""
    p = F.pad(x, (r, r, r, r), mode="replicate")
    mean = F.avg_pool2d(p, r + 1, 1)
    var = (F.avg_pool2d(p * p, r + 1, 1) - mean**2).sum(1, keepdim=True)
    h = x.shape[-1]
    corners = [(i, j) for i in (0, r) for j in (0, r)]
    means = torch.stack([mean[..., i : i + h, j : j + h] for i, j in corners])
    best = torch.stack([var[..., i : i + h, j : j + h] for i, j in corners]).argmin(0, keepdim=True)
    return means.gather(0, best.expand(1, -1, 3, -1, -1))[0]


def blueprint(x: torch.Tensor) -> torch.Tensor:
    """White lines on blue paper with a grid."""
    line = (_edges(x, 0.8) * 4.5 - 0.12).clamp(0, 1)
    row, col = _rows(x)
    fine = ((row % 16 < 1) | (col % 16 < 1)).to(x.dtype)
    paper = torch.tensor([0.07, 0.25, 0.62], device=x.device).view(1, 3, 1, 1)
    fill = 0.16 * (1 - _blur(_gray(x), 1.0))
    base = paper + fill + 0.16 * fine
    return torch.lerp(base, torch.ones_like(base) * 0.97, line).clamp(0, 1)


def _cells(h: int, step: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    """A fixed Voronoi pattern: the cell of each pixel and the distance to the cell's border."""
    g = torch.Generator().manual_seed(17)
    n = h // step + 1
    grid = torch.stack(torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij"), -1).float()
    points = ((grid + 0.15 + 0.7 * torch.rand(n, n, 2, generator=g)) * step).view(-1, 2)
    at = torch.stack(torch.meshgrid(torch.arange(h), torch.arange(h), indexing="ij"), -1).float().view(-1, 2)
    near, which = torch.cdist(at, points).topk(2, largest=False)
    return which[:, 0].view(h, h), (near[:, 1] - near[:, 0]).view(1, 1, h, h)


def mosaic(x: torch.Tensor) -> torch.Tensor:
    """Stained glass: cells of one colour each, between dark lead."""
    n, c, h, _ = x.shape
    cell, gap = (t.to(x.device) for t in _cells(h))
    index = cell.view(1, 1, -1).expand(n, c, -1)
    total = torch.zeros(n, c, int(cell.max()) + 1, device=x.device)
    mean = total.scatter_add(2, index, x.flatten(2)) / total.scatter_add(
        2, index, torch.ones_like(x.flatten(2))
    )
    glass = mean.gather(2, index).view_as(x)
    glass = ((glass - _gray(glass)) * 1.35 + _gray(glass) * 0.92).clamp(0, 1)
    lead = ((1.5 - gap) / 1.0).clamp(0, 1)
    return torch.lerp(glass, torch.full_like(glass, 0.12), lead)


def halftone(x: torch.Tensor) -> torch.Tensor:
    """Brown dots on cream, larger where the picture is darker."""
    row, col = _rows(x)
    dark = (1 - _blur(_gray(x), 1.5)).clamp(0, 1)
    dark = (dark * 1.15 + 0.02).clamp(0, 1)
    u, v = (row + col) / 2, (row - col) / 2
    far = ((u % 4.0 - 2.0) ** 2 + (v % 4.0 - 2.0) ** 2).sqrt()
    dot = ((dark.sqrt() * 2.9 - far) * 1.4 + 0.3).clamp(0, 1) * (dark > 0.06)
    cream = torch.tensor([0.98, 0.92, 0.78], device=x.device).view(1, 3, 1, 1)
    brown = torch.tensor([0.36, 0.16, 0.10], device=x.device).view(1, 3, 1, 1)
    return cream + (brown - cream) * dot


STYLES: dict[str, Style] = {
    "pixel": pixel,
    "neon": neon,
    "ink": ink,
    "watercolor": watercolor,
    "blueprint": blueprint,
    "mosaic": mosaic,
    "halftone": halftone,
}
