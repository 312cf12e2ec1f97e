"""A picture's mask on the tokens and feature maps of a layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.nn import functional

if TYPE_CHECKING:
    import torch


def token_grid(tokens: int, height: int, width: int) -> tuple[int, int] | None:
    """
    Find the feature map that a row of tokens stands for.

    Args:
        tokens: Length of the row.
        height: Height of the latents.
        width: Width of the latents.

    Returns:
        (rows, columns) of the level with so many places; None where the tokens are no places (text, say).

    Example:
        >>> token_grid(24, 8, 12), token_grid(77, 8, 12)
        ((4, 6), None)
    """
    while height * width > tokens and (height > 1 or width > 1):
        height, width = -(-height // 2), -(-width // 2)
    return (height, width) if height * width == tokens else None


def scale_mask(mask: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """
    Scale a mask to a feature map by averaging, so that soft edges and covered areas stay.

    Args:
        mask: (n, height, width), values 0 to 1.
        size: (rows, columns).

    Returns:
        (n, rows, columns).
    """
    if tuple(mask.shape[1:]) == size:
        return mask
    smaller = mask.shape[1] >= size[0] and mask.shape[2] >= size[1]
    mode = "area" if smaller else "bilinear"
    return functional.interpolate(mask[None], size=size, mode=mode)[0]


def coverage(mask: torch.Tensor) -> torch.Tensor:
    """
    Give the share of the picture that each mask covers: the weight of layers that see no places, such as those on text.

    Args:
        mask: (n, height, width).

    Returns:
        (n,).
    """
    return mask.mean(dim=(1, 2))
