"""Weights that modules compute from other parameters, since somebody has asked for that after a mix was written: the base under them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn.utils import prune
from torch.nn.utils.weight_norm import WeightNorm

if TYPE_CHECKING:
    from torch import nn


@torch.no_grad()
def write_under(module: nn.Module, attribute: str, base: torch.Tensor) -> bool:
    """
    Let a module compute a weight from a base, as if that had been there when the parametrisation, the norm or the pruning came.

    Args:
        module: The module.
        attribute: Which of its weights.
        base: Its values.

    Returns:
        Whether there is a way; else nothing was written.

    Example:
        >>> layer, base = torch.nn.Linear(2, 2), torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        >>> _ = prune.l1_unstructured(layer, "weight", amount=0)
        >>> write_under(layer, "weight", base), torch.equal(layer.weight, base)
        (True, True)
    """
    if attribute in getattr(module, "parametrizations", ()):
        try:
            setattr(module, attribute, base)  # goes backward through all of its steps
        except (NotImplementedError, RuntimeError, ValueError):
            return False  # a step that cannot be gone backward
        return True
    parameters: Any = module._parameters  # noqa: SLF001
    original, direction = parameters.get(f"{attribute}_orig"), parameters.get(f"{attribute}_v")
    for hook in module._forward_pre_hooks.values():  # noqa: SLF001
        if isinstance(hook, prune.BasePruningMethod) and hook._tensor_name == attribute:  # noqa: SLF001
            original.copy_(base)
        elif isinstance(hook, WeightNorm) and hook.name == attribute:
            direction.copy_(base)
            parameters[f"{attribute}_g"].copy_(torch.norm_except_dim(base, 2, hook.dim))
        else:
            continue
        hook(module, ())
        return True
    return False
