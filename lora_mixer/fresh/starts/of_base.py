"""Pairs that start from a part of the base: PiSSA (arXiv:2404.02948) and OLoRA (arXiv:2406.01775)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lora_mixer.algorithms.started import started_from
from lora_mixer.fresh.starts.start import Start

if TYPE_CHECKING:
    from lora_mixer.fresh.targets import Target


def _pissa(target: Target) -> tuple[torch.Tensor, torch.Tensor]:
    """Return both halves with the root of the singular values over the scale in each."""
    left, right = started_from("pissa", target.clean(), target.rank, target.scale)
    lengths = torch.linalg.vector_norm(left, dim=0)
    root = lengths.div(target.scale).sqrt()
    return right * root[:, None], left / left.norm(dim=0).clamp_min(torch.finfo(left.dtype).tiny) * root


def _olora(target: Target) -> tuple[torch.Tensor, torch.Tensor]:
    """Return R and Q."""
    left, right = started_from("olora", target.clean(), target.rank, target.scale)
    return right.clone(), left / target.scale


PISSA = Start("pissa", _pissa, only_linear=True)
OLORA = Start("olora", _olora, only_linear=True)
