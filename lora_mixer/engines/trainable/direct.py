"""
Plain pairs in training whose factors are parameters as they are, with nothing looked up that could be known before.

A step waits for Python and for the nodes of its graph, not for the products: what is asked here is asked for each layer and call. On
torch's own layers rows are made one axis once, and the second product is summed into the layer's output as it is made. The operations
are torch's own, with its backward passes; the formula is that of :func:`lora_mixer.engines.trainable.forms.with_pair`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from lora_mixer.engines.trainable.joined import can_join

if TYPE_CHECKING:
    from collections.abc import Sequence

_CONVOLUTIONS = {3: functional.conv1d, 4: functional.conv2d, 5: functional.conv3d}


class DirectPair:
    """
    What a layer gives with one pair's part of it.

    Args:
        module: The layer.
        down: (rank, in, *kernel).
        up: (out, rank, *ones).
        scale: What the product is multiplied by.
        dropout: The share of inputs that training drops.

    Attributes:
        is_plain: Whether the layer computes as torch's own does.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> _ = nn.init.zeros_(layer.weight), nn.init.zeros_(layer.bias)
        >>> DirectPair(layer, torch.ones(1, 2), torch.ones(2, 1), 0.5, 0.0)(torch.ones(1, 2), 3.0)
        tensor([[3., 3.]], grad_fn=<AddmmBackward0>)
    """

    __slots__ = ("_convolve", "_dropout", "_forward", "_kept", "down", "is_plain", "module", "scale", "up")

    def __init__(
        self, module: nn.Module, down: torch.Tensor, up: torch.Tensor, scale: float, dropout: float
    ) -> None:
        """Look at the layer once."""
        layer: Any = module
        self.module, self.down, self.up, self.scale, self._dropout = module, down, up, scale, dropout
        self._forward: Any = type(module).forward
        self._convolve: Any = None if down.ndim == 2 else convolve_by(down.ndim)
        self._kept = () if down.ndim == 2 else (None, layer.stride, layer.padding, layer.dilation)
        self.is_plain = can_join(module)

    def __call__(self, x: torch.Tensor, scale: float) -> torch.Tensor:
        """
        Return the layer's output with the pair's part.

        Args:
            x: The layer's input.
            scale: What the part is multiplied by, beside the pair's own scale.
        """
        module, down, up = self.module, self.down, self.up
        convolve, scale = self._convolve, scale * self.scale
        is_one_type = self.is_plain and (x.dtype is down.dtype is module.weight.dtype or casts(x))
        if convolve is None and is_one_type:
            rows = x.reshape(-1, x.shape[-1])
            flat = self._forward(module, rows)  # (n, out)
            total = torch.addmm(flat, functional.linear(self._dropped(rows), down), up.t(), alpha=scale)
            return total if x.ndim == 2 else total.view(*x.shape[:-1], -1)
        output: torch.Tensor = self._forward(module, x)
        x = self._dropped(x if x.dtype is down.dtype else meeting(x, down))
        hidden = functional.linear(x, down) if convolve is None else convolve(x, down, *self._kept)
        is_short = output.dtype.itemsize < 4  # convolutions in fp32 are begun as quickly
        if (
            convolve is not None
            and is_one_type
            and is_short
            and output.ndim == down.ndim
            and output.is_contiguous()
        ):
            point = up.flatten(1).expand(len(output), -1, -1)  # (b, out, rank)
            total = torch.baddbmm(output.flatten(2), point, hidden.flatten(2), alpha=scale)
            return total.view(output.shape)
        if scale != 1:
            hidden = hidden * scale  # what is smallest
        part = functional.linear(hidden, up) if convolve is None else convolve(hidden, up)
        return output + (part if part.dtype is output.dtype else part.to(output.dtype))

    def _dropped(self, x: torch.Tensor) -> torch.Tensor:
        return functional.dropout(x, self._dropout) if self._dropout and self.module.training else x


class DirectBlocks:
    """
    What a layer gives with the part of one pair in each of equal blocks of a batch's rows, in one product for all.

    Args:
        pairs: That of each block, on one linear layer of torch, of one rank and without dropout.

    Example:
        >>> layer, ones = nn.Linear(1, 1), torch.ones(1, 1)
        >>> _ = nn.init.zeros_(layer.weight), nn.init.zeros_(layer.bias)
        >>> pairs = [DirectPair(layer, ones, up * ones, 1.0, 0.0) for up in (2.0, 3.0)]
        >>> DirectBlocks(pairs)(torch.ones(2, 1), 1.0).flatten().tolist()
        [2.0, 3.0]
    """

    __slots__ = ("_downs", "_forward", "_module", "_scales", "_ups")

    def __init__(self, pairs: Sequence[DirectPair]) -> None:
        """Hold what they are made of."""
        self._module = pairs[0].module
        self._downs, self._ups = [pair.down for pair in pairs], [pair.up for pair in pairs]
        self._scales = [pair.scale for pair in pairs]
        self._forward: Any = type(self._module).forward

    @classmethod
    def of(cls, pairs: Sequence[DirectPair | None]) -> DirectBlocks | None:
        """Return it of pairs that it can be made of, else None."""
        own = [pair for pair in pairs if pair is not None and pair.is_plain and pair.down.ndim == 2]
        kinds = {(pair.down.shape, pair.down.dtype) for pair in own}
        return cls(own) if len(own) == len(pairs) and len(kinds) == 1 else None

    def __call__(self, x: torch.Tensor, scale: float) -> torch.Tensor | None:
        """
        Return the layer's output with each block's part; None where types differ.

        Args:
            x: The layer's input, (blocks * rows, ..., in).
            scale: What all parts are multiplied by, beside their own scales.
        """
        module, downs, ups, first = self._module, self._downs, self._ups, self._scales[0]
        if not (x.dtype is downs[0].dtype is module.weight.dtype or casts(x)):
            return None
        rows = x.reshape(-1, x.shape[-1])
        flat = self._forward(module, rows)  # (n, out)
        blocks = rows.view(len(downs), -1, x.shape[-1])
        if any(own != first for own in self._scales):
            ups, first = [up * own for up, own in zip(ups, self._scales, strict=True)], 1.0
        hidden = torch.bmm(blocks, torch.stack(downs).mT)  # (blocks, n, rank)
        spread = flat.view(len(downs), -1, flat.shape[-1])
        total = torch.baddbmm(spread, hidden, torch.stack(ups).mT, alpha=scale * first)
        return total.view(*x.shape[:-1], -1)


def convolve_by(dimensions: int) -> Any:
    """Return the convolution of weights that have so many dimensions, (out, in, *kernel)."""
    return _CONVOLUTIONS[dimensions]


def casts(x: torch.Tensor) -> bool:
    """Whether autocast brings the inputs of products to one type by itself."""
    return torch.is_autocast_enabled(x.device.type)


def meeting(x: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """Return inputs in the type of the parameters, unless autocast chooses one for both."""
    return x if casts(x) else x.to(parameter.dtype)
