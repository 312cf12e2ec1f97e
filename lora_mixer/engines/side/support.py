"""What the side path can stand beside: the kinds of layers, where they compute, and in which type."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

if TYPE_CHECKING:
    from lora_mixer.algorithms import Factors
    from lora_mixer.binding import BoundLayer

LayerKind = Literal["linear", "conv"]


def layer_kind(module: nn.Module) -> LayerKind | None:
    """
    Say how a layer computes: packed weights do not matter, the module's own sizes do.

    Args:
        module: The live layer, of torch or of a quantisation library.

    Returns:
        ``linear`` or ``conv``; None for layers that no side path can serve: other kinds, convolutions with padding that
        is not zeros, and layers whose weight others use without calling them.

    Example:
        >>> layer_kind(nn.Linear(2, 3)), layer_kind(nn.Conv2d(4, 4, 3)), layer_kind(nn.ConvTranspose2d(4, 4, 3))
        ('linear', 'conv', None)
    """
    if isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return None  # the output projection of nn.MultiheadAttention: its forward is never called
    if hasattr(module, "kernel_size"):
        plain = getattr(module, "padding_mode", "zeros") == "zeros" and not getattr(
            module, "transposed", False
        )
        return "conv" if plain else None
    is_linear = isinstance(getattr(module, "in_features", None), int) or hasattr(module, "nf")
    return "linear" if is_linear else None


def side_pair(layer: BoundLayer) -> Factors | None:
    """
    Return the factors that a side path needs for a layer, over all of its inputs, or None where it has none.

    A change of the weight of a convolution in groups hears the inputs of each group apart, which is no such pair.
    """
    if (
        layer.live.is_bare
        or layer.widening is not None
        or (getattr(layer.live.module, "groups", 1) != 1 and not layer.weights.beside_only)
        or layer_kind(layer.live.module) is None
        or layer.weights.bias_delta(None, 1.0) is not None
    ):
        return None
    return layer.weights.factors(layer.live.shape)


def compute_dtype(module: nn.Module, root: nn.Module) -> torch.dtype:
    """Return the type that a layer's inputs have; where its weight does not tell, that of the model's plain weights."""
    parameters = getattr(module, "weight", None), getattr(module, "bias", None)
    for tensor in chain(
        parameters, root.parameters()
    ):  # a generator: thousands, asked for only where it comes to that
        if isinstance(tensor, torch.Tensor) and tensor.is_floating_point() and tensor.dtype.itemsize > 1:
            return tensor.dtype
    return torch.float32
