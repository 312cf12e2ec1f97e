"""A bias for a module that has none, without touching its parameters or keys."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn


class AddBias:
    """
    A forward hook that adds a bias to a module's output.

    PEFT's ``lora_B.bias`` on a layer without bias cannot be merged into weights; a new parameter would change the
    model's ``state_dict``.

    Args:
        bias: (out,).
    """

    def __init__(self, bias: torch.Tensor) -> None:
        """Hold the bias, as it is: what outputs are in under autocast may differ from call to call."""
        self._bias = bias

    def __call__(self, module: nn.Module, _args: object, output: torch.Tensor) -> torch.Tensor:
        """Add the bias along the channels: the last dimension, or the one before a convolution's places."""
        bias = self._bias.to(output)  # (out,)
        kernel = getattr(module, "kernel_size", None)
        if kernel is not None:
            places = len(kernel) if isinstance(kernel, tuple) else output.ndim - 2
            return output + bias.view(-1, *[1] * places)  # ([b, ]out, *places)
        return output + bias  # (b, ..., out)
