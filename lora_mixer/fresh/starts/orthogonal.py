"""Pairs whose product is 0 while neither half is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lora_mixer.fresh.starts.start import Start

if TYPE_CHECKING:
    from lora_mixer.fresh.targets import Target


def orthogonal(rank: int, inputs: int, outputs: int) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Draw a pair whose product is 0 while neither half is: rows of A and columns of B from two halves of one basis.

    Returns:
        A (rank, inputs) and B (outputs, rank).

    Example:
        >>> down, up = orthogonal(4, 6, 5)
        >>> bool((up @ down).abs().max() < 1e-6), bool(up.abs().max() > 0)
        (True, True)
    """
    basis = torch.linalg.qr(torch.randn(rank, rank)).Q
    down = (torch.randn(inputs, rank // 2) @ basis[0::2]).T / 10
    up = torch.randn(outputs, rank // 2) @ basis[1::2] / 10
    return down.contiguous(), up.contiguous()


def _pair(target: Target) -> tuple[torch.Tensor, torch.Tensor]:
    return orthogonal(target.rank, target.shape[1], target.shape[0])


ORTHOGONAL = Start("orthogonal", _pair, only_linear=True, even_rank=True)
