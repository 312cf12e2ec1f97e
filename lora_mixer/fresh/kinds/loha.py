"""LoHa: the element-wise product of two low-rank matrices (arXiv:2108.06098)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch

from lora_mixer.fresh.config import AdapterConfig
from lora_mixer.fresh.draws import kaiming
from lora_mixer.fresh.kinds.kind import FreshKind, flags, number, rank_beyond, ranks, whole

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lora_mixer.fresh.targets import Target
    from lora_mixer.problem import Problem


@dataclass(frozen=True, kw_only=True)
class LoHaConfig(AdapterConfig):
    """
    Two pairs on each target, whose products are multiplied entry by entry.

    Attributes:
        r: The rank of each pair.
        alpha: The scale is ``alpha / r``.
        rank_pattern: Other ranks by pattern.
        alpha_pattern: Other alphas by pattern.
        use_effective_conv2d: Whether kernels above 1x1 have a core of their own (Tucker).
        init_weights: Whether it begins without an effect.
        rank_dropout: Must be 0: rows are not dropped here.
        module_dropout: Must be 0: layers are not left out here.

    Example:
        >>> import torch
        >>> from lora_mixer import LoraMixer
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4))
        >>> mixer = LoraMixer(model)
        >>> mixer.add_adapter(LoHaConfig(r=4, target_modules=["0"]), "mine").matched
        1
    """

    peft_type: ClassVar[str] = "LOHA"

    r: int = 8
    alpha: float = 8
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    use_effective_conv2d: bool = False
    init_weights: bool = True
    rank_dropout: float = 0.0
    module_dropout: float = 0.0


def _problems(config: LoHaConfig) -> Iterator[Problem]:
    yield from whole(config, "r")
    yield from number(config, "alpha")
    yield from number(config, "rank_dropout", "module_dropout", below=1.0)
    yield from ranks(config, "rank_pattern", "alpha_pattern")
    yield from flags(config, "use_effective_conv2d", "init_weights")


def _refuses(_: LoHaConfig, target: Target) -> str | None:
    if target.layer not in ("linear", "conv") or len(target.shape) > 4:
        return "has no place for it: LoHa is for linear layers and convolutions over lines and pictures"
    return rank_beyond(target.rank, target)


def _start(config: LoHaConfig, target: Target) -> dict[str, torch.Tensor]:
    rank, shape = target.rank, target.shape
    kernel = shape[2:] if config.use_effective_conv2d and any(size > 1 for size in shape[2:]) else ()
    tensors: dict[str, torch.Tensor] = {}
    if kernel:
        core = (rank, rank, *kernel, *[1] * (2 - len(kernel)))
        sizes = {
            "1_a": (rank, shape[0]),
            "1_b": (rank, shape[1]),
            "2_a": (rank, shape[0]),
            "2_b": (rank, shape[1]),
        }
        tensors = {".hada_t1": kaiming(*core), ".hada_t2": kaiming(*core)}
    else:
        rows, columns = target.matrix
        sizes = {"1_a": (rows, rank), "1_b": (rank, columns), "2_a": (rows, rank), "2_b": (rank, columns)}
    for name, size in sizes.items():
        idle = name == "2_b" and config.init_weights
        tensors[f".hada_w{name}"] = torch.zeros(size) if idle else kaiming(*size)
    return tensors


LOHA = FreshKind(LoHaConfig, _problems, _refuses, _start)
