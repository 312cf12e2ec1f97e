"""Looks at pictures that are not finished: the clean latents a run is heading for, and small decodings of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL.Image import Image

Level = tuple[float, float]
"""How much picture and how much noise the latents hold: x = picture * x0 + noise * eps."""

SIDE = 32
"""Longest side of the latents that a preview decodes; larger ones are scaled down first."""


def noise_levels(scheduler: Any) -> list[Level] | None:
    """
    Return the mixture of picture and noise before each step of a run, and after the last.

    Args:
        scheduler: A scheduler of diffusers whose timesteps are set.

    Returns:
        One more than there are steps; None for a scheduler that does not tell.
    """
    steps = len(scheduler.timesteps)
    sigmas = getattr(scheduler, "sigmas", None)
    if hasattr(scheduler, "scale_noise") and sigmas is not None:  # flow matching
        return [(1 - float(s), float(s)) for s in sigmas][: steps + 1]
    if sigmas is not None and float(getattr(scheduler, "init_noise_sigma", 1.0)) > 1.0:  # noise is added
        return [(1.0, float(s)) for s in sigmas][: steps + 1]
    kept = getattr(scheduler, "alphas_cumprod", None)
    if kept is None:
        return None
    shares = [float(kept[min(int(t), len(kept) - 1)]) for t in scheduler.timesteps]
    return [(a**0.5, (1 - a) ** 0.5) for a in shares] + [(1.0, 0.0)]


def heading_for(before: torch.Tensor, after: torch.Tensor, start: Level, end: Level) -> torch.Tensor:
    """
    Solve for the clean latents that one step moved towards: two mixtures of the same picture and noise.

    Args:
        before: Latents before the step, (n, c, h, w).
        after: Latents after it.
        start: Their mixture before.
        end: Their mixture after.

    Returns:
        x0, (n, c, h, w); ``after`` where the two mixtures are one.

    Example:
        >>> x0, eps = torch.tensor([2.0]), torch.tensor([-1.0])
        >>> heading_for(0.6 * x0 + 0.8 * eps, 0.8 * x0 + 0.6 * eps, (0.6, 0.8), (0.8, 0.6))
        tensor([2.])
    """
    share = start[1] * end[0] - end[1] * start[0]
    return after if abs(share) < 1e-6 else (start[1] * after - end[1] * before) / share


@torch.no_grad()
def decode_small(pipe: Any, latents: torch.Tensor) -> list[Image]:
    """
    Decode latents at a reduced size.

    Args:
        pipe: A pipeline with a ``vae``.
        latents: (n, c, h, w).

    Returns:
        One picture each; none where the pipeline or its latents are of another kind.
    """
    vae = getattr(pipe, "vae", None)
    if vae is None or latents.ndim != 4 or latents.device.type == "meta":
        return []
    shrink = SIDE / max(latents.shape[-2:])
    if shrink < 1:
        latents = functional.interpolate(latents.float(), scale_factor=shrink, mode="area").to(latents.dtype)
    scaled = latents / vae.config.scaling_factor + (getattr(vae.config, "shift_factor", None) or 0.0)
    decoded = vae.decode(scaled.to(vae.dtype), return_dict=False)[0]
    return pil_images(decoded)


def pil_images(decoded: torch.Tensor) -> list[Image]:
    """
    Make pictures of a decoder's output.

    Args:
        decoded: (n, 3, h, w) in [-1, 1]; NaN becomes grey.
    """
    from PIL import Image

    values = (decoded.float() / 2 + 0.5).nan_to_num(0.5).clamp(0, 1).mul(255).round().byte()
    return [Image.fromarray(rows) for rows in values.permute(0, 2, 3, 1).cpu().numpy()]


class Progress:
    """
    Follows the latents of one call of a pipeline.

    Args:
        pipe: The pipeline.
    """

    def __init__(self, pipe: Any) -> None:
        """Start before the first step."""
        self._pipe = pipe
        self._levels: Sequence[Level] | None = None
        self._before: torch.Tensor | None = None
        self._after: torch.Tensor | None = None
        self._step = -1

    def moved(self, step: int, latents: torch.Tensor | None) -> None:
        """Note the latents after a step."""
        if step == 0:
            self._levels = noise_levels(self._pipe.scheduler)
        follows = step == self._step + 1
        self._before = self._after if follows else None
        self._after = latents
        self._step = step

    def previews(self) -> list[Image]:
        """Decode what the last step moved towards, small."""
        if self._after is None:
            return []
        clean = self._after
        step, levels = self._step, self._levels
        if self._before is not None and levels is not None and step + 1 < len(levels):
            clean = heading_for(self._before, clean, levels[step], levels[step + 1])
        return decode_small(self._pipe, clean)
