"""Full differences: every number of the targets' weights and biases is trained, and what is saved is the change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from lora_mixer.fresh.config import AdapterConfig
from lora_mixer.fresh.kinds.kind import FreshKind, flags
from lora_mixer.fresh.usual_targets import none_usual

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lora_mixer.fresh.targets import Target
    from lora_mixer.problem import Problem


@dataclass(frozen=True, kw_only=True)
class FullConfig(AdapterConfig):
    """
    A change of each target's whole weight, as LyCORIS' ``full`` has it; PEFT's nearest is ``modules_to_save``.

    Attributes:
        train_bias: Whether biases of the targets are trained as well.

    Example:
        >>> import torch
        >>> from lora_mixer import LoraMixer
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4))
        >>> mixer = LoraMixer(model)
        >>> mixer.add_adapter(FullConfig(target_modules=["0"]), "mine").matched
        1
    """

    peft_type: ClassVar[str] = "FULL"

    train_bias: bool = True


def _problems(config: FullConfig) -> Iterator[Problem]:
    yield from flags(config, "train_bias")


def _refuses(_: FullConfig, target: Target) -> str | None:
    if target.layer == "other" and len(target.shape) != 1:
        return "has no place for it: full differences are for linear layers, convolutions, lookup tables and norms"
    return None


def _start(config: FullConfig, target: Target) -> dict[str, torch.Tensor]:
    tensors = {".diff": torch.zeros(target.shape)}
    if config.train_bias and target.bias is not None:
        tensors[".diff_b"] = torch.zeros(target.bias.shape)
    return tensors


FULL = FreshKind(FullConfig, _problems, _refuses, _start, is_peft=False, usual=none_usual)
