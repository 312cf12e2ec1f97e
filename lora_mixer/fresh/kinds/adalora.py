"""AdaLoRA: a singular value decomposition whose ranks are given up while it is trained (arXiv:2303.10512)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from lora_mixer.fresh.config import AdapterConfig
from lora_mixer.fresh.draws import normal
from lora_mixer.fresh.kinds.kind import FreshKind, number, rank_beyond, whole
from lora_mixer.fresh.usual_targets import of_adalora
from lora_mixer.problem import Problem
from lora_mixer.wording import shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lora_mixer.fresh.targets import Target


@dataclass(frozen=True, kw_only=True)
class AdaLoraConfig(AdapterConfig):
    """
    Singular values with their rows and columns on each target, fewer and fewer of them.

    Attributes:
        init_r: Ranks of each target at the start.
        target_r: Ranks of each target in the end, on average.
        lora_alpha: The scale is ``lora_alpha / init_r``.
        lora_dropout: The share of a layer's inputs that is not seen in training.
        tinit: Steps before ranks are given up.
        tfinal: Steps in the end during which the ranks stay.
        deltaT: Steps between two choices of ranks.
        beta1: How much of the importance is kept from step to step.
        beta2: How much of its spread is kept.
        orth_reg_weight: The weight of the orthogonality in :meth:`lora_mixer.LoraMixer.adapter_loss`.
        total_step: Optimizer steps of the whole training; must be given.
        init_lora_weights: Whether it begins without an effect.
        fan_in_fan_out: Whether weights lie as (in, out); found out where an adapter is made.

    Example:
        >>> import torch
        >>> from lora_mixer import LoraMixer
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4))
        >>> mixer = LoraMixer(model)
        >>> mixer.add_adapter(AdaLoraConfig(init_r=4, target_r=2, total_step=100, target_modules=["0"]), "mine").matched
        1
    """

    peft_type: ClassVar[str] = "ADALORA"

    init_r: int = 12
    target_r: int = 8
    lora_alpha: float = 8
    lora_dropout: float = 0.0
    tinit: int = 0
    tfinal: int = 0
    deltaT: int = 1  # noqa: N815 -- PEFT's name
    beta1: float = 0.85
    beta2: float = 0.85
    orth_reg_weight: float = 0.5
    total_step: int | None = None
    init_lora_weights: bool = True
    fan_in_fan_out: bool = False


def _problems(config: AdaLoraConfig) -> Iterator[Problem]:
    yield from whole(config, "init_r", "target_r", "deltaT")
    yield from whole(config, "tinit", "tfinal", least=0)
    yield from number(config, "lora_alpha", "orth_reg_weight")
    yield from number(config, "lora_dropout", "beta1", "beta2", below=1.0)
    if not isinstance(config.init_lora_weights, bool):
        yield Problem("init_lora_weights", f"expected True or False, got {shown(config.init_lora_weights)}.")
    total = config.total_step
    if type(total) is not int or total < 1:
        yield Problem(
            "total_step", f"expected the number of optimizer steps of the whole training, got {shown(total)}."
        )
    elif type(config.tinit) is int and type(config.tfinal) is int and config.tinit >= total - config.tfinal:
        yield Problem(
            "total_step",
            f"{total} steps leave none between tinit = {config.tinit} and the last tfinal = {config.tfinal}.",
        )
    if type(config.init_r) is int and type(config.target_r) is int and config.target_r > config.init_r:
        yield Problem(
            "target_r", f"{config.target_r} is above init_r = {config.init_r}; ranks are given up only."
        )


def _refuses(config: AdaLoraConfig, target: Target) -> str | None:
    if target.layer not in ("linear", "conv"):
        return "has no place for it: AdaLoRA is for linear layers and convolutions"
    if target.groups > 1:
        return f"is a convolution in {target.groups} groups, which AdaLoRA is not made for"
    return rank_beyond(config.init_r, target)


def _start(config: AdaLoraConfig, target: Target) -> dict[str, torch.Tensor]:
    rows, columns = target.matrix
    rank, std = config.init_r, 0.02 if config.init_lora_weights else 1.0
    values = torch.zeros(rank, 1) if config.init_lora_weights else normal(rank, 1)
    return {
        ".lora_A": normal(rank, columns, std=std),
        ".lora_E": values,
        ".lora_B": normal(rows, rank, std=std),
    }


ADALORA = FreshKind(
    AdaLoraConfig, _problems, _refuses, _start, irrelevant=frozenset(("r", "rank_pattern")), usual=of_adalora
)
