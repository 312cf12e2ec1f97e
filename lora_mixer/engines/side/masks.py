"""A picture's mask on the tokens and feature maps of a layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_mixer.engines.denoiser.places import Span
    from lora_mixer.mixes import Mix


def stacked_masks(mixes: Sequence[Mix], names: Sequence[str]) -> torch.Tensor | None:
    """
    Return the masks of all mixes' adapters at one size, ones where there is none.

    Args:
        mixes: The mix of each image.
        names: The adapters, in the order wanted.

    Returns:
        (images * adapters, frames, height, width), or None where nobody has a mask.
    """
    masks = {
        (image, name): torch.tensor(mask.load(), dtype=torch.float32)
        for image, mix in enumerate(mixes)
        for name in mix.names
        if (mask := mix[name].mask) is not None
    }
    if not masks:
        return None
    films = {key: mask[None] if mask.ndim == 2 else mask for key, mask in masks.items()}  # (frames, h, w)
    frames, height, width = (max(film.shape[axis] for film in films.values()) for axis in range(3))
    rows = []
    for image in range(len(mixes)):
        for name in names:
            film = films.get((image, name), torch.ones(1, 1, 1))[None]  # (1, frames, h, w)
            film = functional.interpolate(
                film, (height, width), mode="bilinear"
            )  # (1, frames, height, width)
            rows.append(scale_mask(film, (frames, height, width))[0])  # (frames, height, width)
    return torch.stack(rows).clamp_(0, 1)  # (images * adapters, frames, height, width)


def scale_mask(mask: torch.Tensor, size: tuple[int, int, int]) -> torch.Tensor:
    """
    Scale a mask to a feature map by averaging, so that soft edges and covered areas stay.

    Args:
        mask: (n, frames, height, width), values 0 to 1; one frame is for all.
        size: (frames, rows, columns).

    Returns:
        (n, frames, rows, columns).

    Example:
        >>> scale_mask(torch.tensor([[[[1.0, 1.0, 0.0, 0.0]]]]), (2, 1, 2)).tolist()
        [[[[1.0, 0.0]], [[1.0, 0.0]]]]
    """
    frames, *flat = size
    if tuple(mask.shape[2:]) != tuple(flat):
        smaller = mask.shape[2] >= flat[0] and mask.shape[3] >= flat[1]
        mask = functional.interpolate(mask, size=flat, mode="area" if smaller else "bilinear")
    if mask.shape[1] == 1:
        return mask.expand(-1, frames, -1, -1)  # (n, frames, rows, columns)
    if mask.shape[1] != frames:  # each frame of the latents is several of the film, or the other way round
        along = mask.flatten(2).transpose(1, 2)  # (n, places, frames)
        mode = "area" if mask.shape[1] > frames else "linear"
        along = functional.interpolate(along, size=frames, mode=mode)
        mask = along.transpose(1, 2).reshape(len(mask), frames, *mask.shape[2:])
    return mask


def lay_out(mask: torch.Tensor, span: Span) -> torch.Tensor:
    """
    Lay a mask out on a row of tokens with the picture in it; what else is in the row has the mask's coverage.

    Args:
        mask: (n, frames, height, width).
        span: Where the picture is in the row.

    Returns:
        (n, tokens).

    Example:
        >>> from lora_mixer.engines.denoiser.places import Span
        >>> lay_out(torch.tensor([[[[1.0, 0.0]]]]), Span(1, 1, 1, 2, 0)).tolist()
        [[0.5, 1.0, 0.0]]
    """
    placed = scale_mask(mask, (span.frames, span.height, span.width)).flatten(1)  # (n, tokens of the picture)
    share = coverage(mask)[:, None]  # (n, 1)
    return torch.cat(
        [share.expand(-1, span.before), placed, share.expand(-1, span.after)], dim=1
    )  # (n, tokens)


def coverage(mask: torch.Tensor) -> torch.Tensor:
    """
    Return the share of the picture that each mask covers: the weight of layers that see no places, such as those on text.

    Args:
        mask: (n, frames, height, width).

    Returns:
        (n,).
    """
    return mask.mean(dim=(1, 2, 3))  # (n,)
