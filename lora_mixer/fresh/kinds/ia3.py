"""IA3: one number for each output of a target, or for each input of a feed-forward one (arXiv:2205.05638)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from lora_mixer.fresh.config import AdapterConfig
from lora_mixer.fresh.kinds.kind import FreshKind, flags
from lora_mixer.fresh.usual_targets import of_ia3
from lora_mixer.problem import Problem
from lora_mixer.wording import first_of, shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lora_mixer.fresh.targets import Target


@dataclass(frozen=True, kw_only=True)
class IA3Config(AdapterConfig):
    """
    A factor for each output, or each input, of each target.

    Attributes:
        feedforward_modules: Those of the targets whose inputs are scaled: suffixes or a regular expression.
        init_ia3_weights: Whether all factors begin at 1; else they are drawn.
        fan_in_fan_out: Whether weights lie as (in, out); found out where an adapter is made.

    Example:
        >>> import torch
        >>> from lora_mixer import LoraMixer
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4))
        >>> mixer = LoraMixer(model)
        >>> mixer.add_adapter(IA3Config(target_modules=["0"], feedforward_modules=[]), "mine").matched
        1
    """

    peft_type: ClassVar[str] = "IA3"

    feedforward_modules: list[str] | str | None = None
    init_ia3_weights: bool = True
    fan_in_fan_out: bool = False


def _problems(config: IA3Config) -> Iterator[Problem]:
    yield from flags(config, "init_ia3_weights", "fan_in_fan_out")
    names = config.feedforward_modules
    texts = list(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else None
    if texts is None and not isinstance(names, str | None):
        yield Problem(
            "feedforward_modules", f"expected a list of suffixes or a regular expression, got {shown(names)}."
        )
    elif texts is not None and isinstance(config.target_modules, list):
        given: list[Any] = config.target_modules
        targets = {name for name in given if isinstance(name, str)}
        odd = [name for name in texts if name not in targets]
        if odd:
            yield Problem(
                "feedforward_modules", f"{first_of([*map(shown, odd)], 20)} is not in target_modules."
            )


def _refuses(_: IA3Config, target: Target) -> str | None:
    return (
        None
        if target.layer in ("linear", "conv")
        else "has no factors: IA3 is for linear layers and convolutions"
    )


def _start(config: IA3Config, target: Target) -> dict[str, torch.Tensor]:
    names = config.feedforward_modules or ()
    is_input = (
        re.fullmatch(names, target.path) is not None
        if isinstance(names, str)
        else any(target.path.endswith(name) for name in names)
    )
    shape = target.shape
    if target.layer == "conv":
        layer: Any = target.live.module
        size: tuple[int, ...] = (1, layer.in_channels if is_input else shape[0], *[1] * (len(shape) - 2))
    else:
        size = (1, shape[1]) if is_input else (shape[0], 1)
    return {".ia3_l": torch.ones(size) if config.init_ia3_weights else torch.randn(size)}


IA3 = FreshKind(
    IA3Config, _problems, _refuses, _start, lacks=("layers_to_transform", "layers_pattern"), usual=of_ia3
)
