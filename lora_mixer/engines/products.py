"""What a linear layer computes with, told by its own products, however its weight is stored."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lora_mixer.engines.offloaded import value_of

if TYPE_CHECKING:
    from torch import nn

_AT_ONCE = 1024
"""Rows of a weight that are asked of a layer in one product."""


def weight_of(module: nn.Module, shape: tuple[int, ...]) -> torch.Tensor:
    """
    Return a linear layer's weight (out, in) in fp32, as the layer itself computes with it, however it is stored.

    Args:
        module: The layer, of torch or of a quantisation library; hooks of others have their part.
        shape: The weight's, (out, in).

    Example:
        >>> layer = torch.nn.Linear(3, 2, bias=False)
        >>> torch.equal(weight_of(layer, (2, 3)), layer.weight)
        True
    """
    kind = next(
        (t.dtype for t in module.parameters() if t.is_floating_point() and t.dtype.itemsize > 1), None
    )
    device = next(module.parameters()).device
    weight = torch.empty(shape, device=device if device.type != "meta" else "cpu", dtype=torch.float32)
    with torch.no_grad():
        for start in range(0, shape[1], _AT_ONCE):
            stop = min(start + _AT_ONCE, shape[1])
            units = torch.zeros(stop - start, shape[1], device=weight.device, dtype=kind or torch.float32)
            units[:, start:stop] = torch.eye(stop - start, device=weight.device)
            weight[:, start:stop] = product(module, units).float().T
    return weight


def product(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Return inputs times a linear layer's weight, without its bias."""
    output: torch.Tensor = module.forward(x)
    bias = value_of(module, "bias")
    return output if bias is None else output - bias.to(output)
