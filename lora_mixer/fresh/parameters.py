"""Pairs on bare parameters, such as the experts of a layer in one tensor: PEFT's ``target_parameters``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from lora_mixer.fresh.draws import kaiming
from lora_mixer.parsing.module_ends import ends
from lora_mixer.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lora_mixer.fresh.targets import ModuleTree

_VALUES = ("weight", "bias")


def parameter_pairs(
    names: Sequence[str],
    tree: ModuleTree,
    rank_of: Callable[[str], int],
    problems: list[Problem],
    *,
    idle: bool,
) -> dict[str, torch.Tensor]:
    """
    Return pairs as training begins, by PEFT's nested keys: the first of a module's parameters inside, the last outside.

    Args:
        names: Ends of the parameters' paths.
        tree: The component's modules.
        rank_of: Gives the rank of a parameter at a path.
        problems: What is wrong is added to these.
        idle: Whether they begin without an effect.

    Returns:
        A (experts * rank, in) and B (out, rank * experts) of each.
    """
    tensors: dict[str, torch.Tensor] = {}
    used, wanted = set[str](), set(names)
    for path, module in tree.modules.items():
        parameters: list[tuple[str, tuple[int, ...]]] = []
        for name, parameter in module.named_parameters(recurse=False):
            spelled = f"{path}.{name}"
            named = wanted.intersection(ends(spelled))
            used.update(named)
            if named and name in _VALUES:
                problems.append(
                    Problem(
                        "target_parameters", f"{spelled} is a layer's own; name {path} in target_modules."
                    )
                )
            elif named:
                parameters.append((spelled, tuple(parameter.shape)))
        layer: Any = module
        for depth, (spelled, shape) in enumerate(reversed(parameters)):
            rank = rank_of(spelled)
            if len(shape) not in (2, 3) or getattr(layer, "is_transposed", False) or rank > min(shape[-2:]):
                problems.append(
                    Problem(
                        "target_parameters",
                        f"{spelled} of shape {shape} has no place for a pair of rank {rank}: expected (experts, out, in) or (out, in) of "
                        "at least that many rows and columns.",
                    )
                )
                continue
            experts, (rows, columns) = shape[0] if len(shape) == 3 else 1, shape[-2:]
            front = f"{path}{'.base_layer' * depth}"
            tensors[f"{front}.lora_A.weight"] = kaiming(experts * rank, columns)
            up = (rows, rank * experts)
            tensors[f"{front}.lora_B.weight"] = torch.zeros(up) if idle else kaiming(*up)
    problems += [
        Problem("target_parameters", f"no parameter of the model ends with {name!r}.")
        for name in names
        if name not in used
    ]
    return tensors
