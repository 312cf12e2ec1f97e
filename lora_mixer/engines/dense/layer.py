"""
A layer and the changes of its weight beside it: y = f(x; W, b) + g f(x; dW, db), for layers whose output is linear in both.

Where all rows have the same gains the changes of all adapters are added up first, so that a step costs one such product.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from lora_mixer.algorithms import Factors
from lora_mixer.engines.side.gain_buffers import AdapterPart
from lora_mixer.engines.side.support import layer_kind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_mixer.engines.side.gain_buffers import GainBuffers

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_PLAIN = (*_CONVOLUTIONS, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


NO_PAIR = Factors(torch.zeros(0, 0), torch.zeros(0, 0), 1.0)
"""For changes that are held whole."""


@dataclass(frozen=True)
class DensePart(AdapterPart):
    """
    One adapter's change beside one layer: a pair, or the change itself, and that of the bias.

    Attributes:
        weight: The change of the weight at a gain of 1, (out, in, *kernel), where there is no pair; or None.
        bias: That of the bias, (out,), or None.
    """

    weight: torch.Tensor | None = None
    bias: torch.Tensor | None = None

    @property
    def rank(self) -> int:
        """How many gains it has: one."""
        return 1

    @property
    def has_pair(self) -> bool:
        """Whether the weight's change is a pair."""
        return self.pair.up.numel() > 0


def stands_beside(module: nn.Module) -> bool:
    """
    Say whether a layer's output is linear in its weight and bias, and its own forward computes it.

    Example:
        >>> stands_beside(nn.LayerNorm(4)), stands_beside(nn.Conv2d(4, 4, 3, groups=4)), stands_beside(nn.BatchNorm2d(4))
        (True, True, False)
    """
    if isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return False  # the output projection of nn.MultiheadAttention: its forward is never called
    if isinstance(module, nn.Embedding):
        return module.max_norm is None
    is_norm = type(module).__name__.endswith(("RMSNorm", "LayerNorm"))
    return layer_kind(module) == "linear" or isinstance(module, _PLAIN) or is_norm


class DenseLayer:
    """
    The forward hook of one layer with changes beside it.

    Args:
        name: Component and path, for messages.
        parts: The changes.
        buffers: The gains of the layer's component.
        span: The place of its gains among those of the component.
        like: A tensor where the layer computes, of the type in which it does.
        sees_text: Whether its rows are a text's.
    """

    def __init__(
        self,
        name: str,
        parts: Sequence[DensePart],
        buffers: GainBuffers,
        span: slice,
        like: torch.Tensor,
        *,
        sees_text: bool,
    ) -> None:
        """Hold the changes; gains come with the first fold."""
        self.name = name
        self.span = span
        self.sees_text = sees_text
        self.alone = True  # no stack folds its gains
        self.down = like
        self.buffers = buffers
        self._parts = tuple(parts)
        self._folded: tuple[torch.Tensor | None, torch.Tensor | None] = (None, None)
        self.gain = buffers.gain_of(self)

    def load(self, parts: Sequence[AdapterPart]) -> None:
        """Nothing to take: the changes are held from the start."""

    def join(self, stacked: tuple[torch.Tensor, torch.Tensor] | None) -> None:
        """Nothing is shared with other layers."""

    def fold(self) -> None:
        """Add up the changes of all adapters at the gains that all rows have."""
        gains = self.gain[0].tolist()
        self._folded = (
            _total([part.weight for part in self._parts], gains, self.down),
            _total([part.bias for part in self._parts], gains, self.down),
        )

    def __call__(
        self, module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor
    ) -> torch.Tensor:
        """Add what the adapters add."""
        x = args[0]
        if x.device != output.device:  # offloading moves inputs behind the hooks' back
            x = x.to(output.device)
        first = isinstance(module, (*_CONVOLUTIONS, nn.GroupNorm))
        if self.buffers.folds:
            changes = [_apply(module, x, *self._folded, like=output, channels_first=first)]
            for number, part in enumerate(self._parts):
                if part.has_pair:
                    product = _product(module, x, part.pair, output)
                    changes.append(product * self.gain[0, number].to(product))
        else:
            changes = []
            for number, part in enumerate(self._parts):
                change = _apply(module, x, part.weight, part.bias, like=output, channels_first=first)
                if part.has_pair:
                    product = _product(module, x, part.pair, output)
                    change = product if change is None else change + product
                if change is not None:
                    changes.append(change * self._gain(change, number, channels_first=first))
        for change in changes:
            if change is not None:
                output = output + change
        return output

    def _gain(self, change: torch.Tensor, number: int, *, channels_first: bool) -> torch.Tensor:
        """Return a part's gain in a shape that multiplies its change."""
        buffers = self.buffers
        if buffers.masks is not None:
            placed = buffers.placed(self, change, channels_first=channels_first)
            return placed.narrow(1 if channels_first else -1, number, 1)
        batch = change.shape[0]
        gain = (
            self.gain[:batch] if buffers.count == batch else buffers.repeated(self, self.gain, batch)
        )  # (b, parts)
        return gain[:, number].to(change).view(-1, *[1] * (change.ndim - 1))


def _total(
    changes: Sequence[torch.Tensor | None], gains: Sequence[float], like: torch.Tensor
) -> torch.Tensor | None:
    """Add up changes at their gains in fp32 at least, rounded once; None where there is nothing to add."""
    total: torch.Tensor | None = None
    for change, gain in zip(changes, gains, strict=True):
        if change is not None and gain:
            own = change.to(torch.promote_types(torch.float32, change.dtype)) * gain
            total = own if total is None else total + own
    return None if total is None else total.to(like)


def _apply(
    module: nn.Module,
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    *,
    like: torch.Tensor,
    channels_first: bool,
) -> torch.Tensor | None:
    """Return what a layer gives with these in the place of its weight and bias; None where both are none."""
    kept = like.dtype if x.dtype in (torch.int64, torch.int32) else x.dtype
    change = None if weight is None else _computed(module, x, weight.to(x.device, kept))
    if bias is not None:
        added = bias.to(like.device, like.dtype)
        spread = [1] * (like.ndim - 2) if channels_first and like.ndim > 1 else []
        along = added.view(-1, *spread)
        change = along.expand_as(like) if change is None else change + along
    return None if change is None else change.to(like.dtype)


def _product(module: Any, x: torch.Tensor, pair: Factors, like: torch.Tensor) -> torch.Tensor:
    """Return what a pair gives beside a linear layer or a convolution."""
    down, up = (half.to(x.device, x.dtype) for half in (pair.down * pair.scale, pair.up))
    rank = down.shape[0]
    if layer_kind(module) == "linear":
        return functional.linear(functional.linear(x, down.reshape(rank, -1)), up).to(like.dtype)
    kernel = tuple(module.kernel_size)
    convolve = getattr(functional, f"conv{len(kernel)}d")
    hidden = convolve(
        x, down.reshape(rank, -1, *kernel), None, module.stride, module.padding, module.dilation
    )
    result: torch.Tensor = convolve(hidden, up.reshape(*up.shape[:2], *[1] * len(kernel)))
    return result.to(like.dtype)


def _computed(module: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    if layer_kind(module) == "linear":
        return functional.linear(x, weight)
    if isinstance(module, _CONVOLUTIONS) and module.padding_mode == "zeros":
        convolve = getattr(functional, f"conv{module.weight.ndim - 2}d")
        result: torch.Tensor = convolve(
            x, weight, None, module.stride, module.padding, module.dilation, module.groups
        )
        return result
    if isinstance(module, nn.Embedding):
        return functional.embedding(x, weight)
    with_change: torch.Tensor = _standin(module, weight)(x)
    if isinstance(module, _PLAIN):
        return with_change
    # some norms multiply by 1 + weight
    without: torch.Tensor = _standin(module, torch.zeros_like(weight))(x)
    return with_change - without


def _standin(module: nn.Module, weight: torch.Tensor) -> Any:
    """Return the forward of a module that is like another but for its weight, and has no bias and no hooks."""
    other = copy.copy(module)
    own = other.__dict__
    own["_parameters"] = {
        key: weight if key == "weight" else None if value is None or key == "bias" else value
        for key, value in module._parameters.items()  # noqa: SLF001
    }
    for hooks in ("_forward_hooks", "_forward_pre_hooks"):
        own[hooks] = OrderedDict()
    own.pop("forward", None)
    return other.forward
