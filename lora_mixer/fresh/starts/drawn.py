"""Pairs whose halves are drawn, or are zeros: PEFT's default, its Gaussian, and both halves drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lora_mixer.fresh.draws import kaiming, normal
from lora_mixer.fresh.starts.start import Start

if TYPE_CHECKING:
    from lora_mixer.fresh.targets import Target


def _zeros(target: Target) -> torch.Tensor:
    """Return B (out, rank, 1, ...) of zeros."""
    return torch.zeros(target.shape[0], target.rank, *_ones(target))


def _ones(target: Target) -> tuple[int, ...]:
    return (1,) * (len(target.shape) - 2)


def usual(target: Target) -> tuple[torch.Tensor, torch.Tensor]:
    """Return A as ``torch.nn.Linear`` draws it, and B of zeros."""
    return kaiming(target.rank, *target.shape[1:]), _zeros(target)


def _both(target: Target) -> tuple[torch.Tensor, torch.Tensor]:
    return kaiming(target.rank, *target.shape[1:]), kaiming(target.shape[0], target.rank, *_ones(target))


def _both_of_lookup(target: Target) -> tuple[torch.Tensor, torch.Tensor]:
    return normal(target.rank, target.shape[0]), normal(target.shape[1], target.rank)


def _gaussian(target: Target) -> tuple[torch.Tensor, torch.Tensor]:
    return normal(target.rank, *target.shape[1:], std=1 / target.rank), _zeros(target)


USUAL = Start(True, usual)
BOTH = Start(False, _both, _both_of_lookup)
GAUSSIAN = Start("gaussian", _gaussian)
