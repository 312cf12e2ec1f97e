"""Full differences as PEFT can have them: the weights and biases themselves, in ``modules_to_save``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from lora_mixer.algorithms.full import Full
from lora_mixer.formats.fronts import PEFT_ROOT

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn

    from lora_mixer.algorithms import LayerWeights
    from lora_mixer.binding import BoundLayer

_NO_TARGETS = "dummy-target-modules"  # PEFT's word


def full_as_values(
    held: Iterable[tuple[BoundLayer, nn.Module, LayerWeights, torch.Tensor, torch.Tensor | None]],
) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
    """
    Return an adapter of full differences of one component's modules, at weight 1, as PEFT has them.

    Args:
        held: Each layer as bound, its module, change, clean weight (out, in, *kernel) and clean bias.

    Returns:
        The tensors by PEFT's keys and the configuration; None where the adapter is anything else.
    """
    tensors: dict[str, torch.Tensor] = {}
    paths: dict[str, None] = {}
    components = set()
    for layer, _, weights, base, bias in held:
        if not isinstance(weights, Full) or layer.live.is_bare:
            return None
        components.add(layer.live.component)
        paths.setdefault(layer.live.path)
        with torch.no_grad():
            value = _wide(base) + weights.delta(_wide(base), 1.0)
            tensors[f"{PEFT_ROOT}{layer.live.path}.weight"] = (
                value.T.contiguous() if layer.live.transposed else value
            )
            moved = weights.bias_delta(None if bias is None else _wide(bias), 1.0)
            if moved is not None:
                tensors[f"{PEFT_ROOT}{layer.live.path}.bias"] = moved if bias is None else _wide(bias) + moved
    if len(components) != 1:
        return None
    config = {"peft_type": "LORA", "target_modules": _NO_TARGETS, "modules_to_save": list(paths)}
    return tensors, config


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.dtype.itemsize > 2 else tensor.float()
