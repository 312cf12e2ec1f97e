"""
A layer's own product and a DoRA's part of it as one operation, with a backward pass of its own.

What a training step costs beside the base's is mostly the number of its operations: casts of factors and of their gradients, sums of
outputs and of gradients of inputs. Here the pair's part is summed into the layer's output by the product that makes it, the same for
inputs' gradients, and factors' gradients come in the parameters' own type. With t = x W^T + s (x D^T) U^T, shift c = m / n - 1 and
gradient g of the output y = t + c t + b:

    g' = g + c g,   dU = s g'^T (x D^T),   dD = s (g' U)^T x,   dx = g' W + s (g' U) D,   dm = sum(g t) / n

where m is the magnitude and n the length of the turned rows, a constant. Gradients of gradients are those of :func:`apart`, which is
the same in operations of torch.

Plain pairs are left to torch's own operations: a backward pass in Python costs them more time than the operations that it saves.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional

from lora_mixer.algorithms.dora import RankParts, alike, lengths_in_ranks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_mixer.algorithms.dora import Dora

_CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Terms(NamedTuple):
    """
    What a DoRA adds to a layer of weight (out, in, *kernel), and what its rows' lengths are worked out of.

    Attributes:
        down: D, (rank, in * kernel).
        up: U, (out, rank).
        scale: s.
        dora: The magnitude over the pair.
        magnitude: m, (out,).
        squares: |w|^2 of the base's rows, (out,).
        weight: The base's weight, (out, in * kernel).
    """

    down: torch.Tensor
    up: torch.Tensor
    scale: float
    dora: Dora
    magnitude: torch.Tensor
    squares: torch.Tensor
    weight: torch.Tensor


class ReadyTerms(NamedTuple):
    """
    What a call computes with, made of :class:`Terms`, constants of the backward pass.

    Attributes:
        down: D in the type of the inputs.
        up: U, likewise.
        shift: c = m / n - 1 in the type of the inputs, (out,).
        divisor: n, (out,).
    """

    down: torch.Tensor
    up: torch.Tensor
    shift: torch.Tensor
    divisor: torch.Tensor


def can_join(module: nn.Module) -> bool:
    """
    Say whether a layer computes as torch's own does, of a weight that is a tensor of torch's own.

    Example:
        >>> can_join(nn.Linear(2, 3)), can_join(nn.Embedding(2, 3)), can_join(nn.Conv2d(2, 2, 3, padding="same"))
        (True, False, False)
    """
    if type(module) not in _LAYERS or type(module.weight) is not nn.Parameter:
        return False
    if isinstance(module, nn.Linear):
        return True
    plain: Any = module
    return plain.groups == 1 and plain.padding_mode == "zeros" and not isinstance(plain.padding, str)


@torch.no_grad()
def made_ready(layers: Sequence[Terms], kind: torch.dtype) -> list[ReadyTerms]:
    """
    Return what calls of layers compute with: all factors cast at once, and lengths of one size worked out together.

    Args:
        layers: The terms of each layer.
        kind: The type of the inputs.

    Example:
        >>> from lora_mixer.algorithms.dora import Dora
        >>> weight, ones = torch.tensor([[3.0, 4.0]]), torch.ones(1)
        >>> dora = Dora(None, ones, True, "peft", None)
        >>> terms = Terms(torch.zeros(1, 2), torch.ones(1, 1), 1.0, dora, ones, torch.tensor([25.0]), weight)
        >>> (ready,) = made_ready([terms], torch.bfloat16)
        >>> ready.down.dtype, ready.divisor.tolist()
        (torch.bfloat16, [5.0])
    """
    cast = _all_cast([half for terms in layers for half in (terms.down, terms.up)], kind)
    parts = []
    for terms, short in zip(layers, cast[::2], strict=True):
        weight, down, up = terms.weight, terms.down, terms.up
        narrow = short if short.dtype is weight.dtype else down.to(weight.dtype)
        parts.append(RankParts(terms.squares, _product(weight, narrow.T, up.dtype), up, down, terms.scale))
    lengths = lengths_in_ranks(parts)
    ready: dict[int, ReadyTerms] = {}
    kinds = [
        (terms.dora.strength, n.shape, n.dtype, n.device) for terms, n in zip(layers, lengths, strict=True)
    ]
    for places in alike(kinds):
        dora = layers[places[0]].dora
        divisors = dora.divisor_of(torch.stack([lengths[place] for place in places]))
        magnitudes = torch.stack([layers[place].magnitude for place in places])
        shifts = (magnitudes.to(divisors) / divisors - 1).to(kind)
        for place, shift, divisor in zip(places, shifts, divisors, strict=True):
            ready[place] = ReadyTerms(cast[2 * place], cast[2 * place + 1], shift, divisor)
    return [ready[place] for place in range(len(layers))]


def _all_cast(tensors: Sequence[torch.Tensor], kind: torch.dtype) -> list[torch.Tensor]:
    """Return tensors in a type; all that are not in it yet go there by one operation for each device."""
    whole = list(tensors)
    short = [place for place, one in enumerate(tensors) if one.dtype is not kind]
    for places in alike([(tensors[place].dtype, tensors[place].device) for place in short]):
        members = [short[place] for place in places]
        flat = torch.cat([tensors[place].reshape(-1) for place in members]).to(kind)
        pieces = torch.split(flat, [tensors[place].numel() for place in members])
        for place, piece in zip(members, pieces, strict=True):
            whole[place] = piece.view(tensors[place].shape)
    return whole


def type_of(x: torch.Tensor, terms: Terms, weight: torch.Tensor) -> torch.dtype | None:
    """Return the type that a layer computes in; None where types differ that autocast does not bring together."""
    device = x.device.type
    if torch.is_autocast_enabled(device):
        types = (x.dtype, weight.dtype, terms.down.dtype, terms.up.dtype)
        fits = all(one.is_floating_point and one is not torch.float64 for one in types)
        return torch.get_autocast_dtype(device) if fits else None
    return x.dtype if weight.dtype is x.dtype and terms.down.dtype is x.dtype else None


def joined(
    module: nn.Module, x: torch.Tensor, terms: Terms, ready: ReadyTerms | None = None
) -> torch.Tensor | None:
    """
    Return what a layer gives with what a DoRA makes of it, or None where it has to be computed apart.

    Args:
        module: A layer of which :func:`can_join` is true.
        x: Its input, (rows, ..., in), or (rows, in, *places).
        terms: The DoRA's.
        ready: What :func:`made_ready` made of them, where that is there already.

    Example:
        >>> from lora_mixer.algorithms.dora import Dora
        >>> layer, length = nn.Linear(2, 1, bias=False).requires_grad_(False), torch.tensor([10.0])
        >>> _ = layer.weight.copy_(torch.tensor([[3.0, 4.0]]))  # five long
        >>> dora = Dora(None, length, True, "peft", None)
        >>> terms = Terms(torch.ones(1, 2), torch.zeros(1, 1), 1.0, dora, length, torch.tensor([25.0]), layer.weight)
        >>> joined(layer, torch.ones(1, 2), terms).item()
        14.0
    """
    layer: Any = module
    weight, bias = layer.weight, layer.bias
    kind = type_of(x, terms, weight)
    is_linear = weight.ndim == 2
    if (
        kind is None
        or weight.requires_grad
        or (bias is not None and bias.requires_grad)
        or not x.device == weight.device == terms.down.device
        or x.ndim < 2
        or (not is_linear and x.ndim != weight.ndim)
        or torch._C._are_functorch_transforms_active()  # noqa: SLF001 -- as torch's own functions ask
    ):
        return None
    if ready is None or ready.down.dtype is not kind:
        with torch.autocast(x.device.type, enabled=False):
            (ready,) = made_ready([terms], kind)
    out: torch.Tensor = _Joined.apply(  # type: ignore[no-untyped-call]
        x if x.dtype is kind else x.to(kind),
        weight,
        bias,
        terms.magnitude,
        terms.down,
        terms.up,
        terms.scale,
        ready,
        None if is_linear else (layer.stride, layer.padding, layer.dilation),
    )
    return out


class _Joined(torch.autograd.Function):
    """The operation; arguments are those of :func:`apart`."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        magnitude: torch.Tensor,
        down: torch.Tensor,
        up: torch.Tensor,
        scale: float,
        ready: ReadyTerms,
        kept: tuple[Any, ...] | None,
    ) -> torch.Tensor:
        clean = weight.to(x.dtype)
        if kept is None:
            hidden, turned = _linear(x, clean, ready, scale)
        else:
            hidden, turned = _convolution(x, clean, ready, scale, kept)
        # the shift is small: a short type rounds the change only
        out = torch.addcmul(turned, turned, _across(ready.shift, turned, kept))
        if bias is not None:
            out += _across(bias.to(x.dtype), out, kept)
        ctx.save_for_backward(x, weight, hidden, turned, *ready)
        ctx.bias, ctx.magnitude, ctx.factors, ctx.scale, ctx.kept = bias, magnitude, (down, up), scale, kept
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        (g,) = gradients
        x, weight, hidden, turned, *parts = ctx.saved_tensors
        ready, kept, (down, up) = ReadyTerms(*parts), ctx.kept, ctx.factors
        wants_x, _, _, wants_magnitude, wants_down, wants_up, *_ = ctx.needs_input_grad
        if torch.is_grad_enabled():  # the gradient's own gradient will be asked for
            return _again(ctx, g, x, weight, ready.divisor)
        of_magnitude = None
        if wants_magnitude:
            of_lengths = _over_all(g * turned, kept, ready.divisor.dtype) / ready.divisor
            of_magnitude = of_lengths.to(ctx.magnitude.dtype)
        g = torch.addcmul(g, g, _across(ready.shift, g, kept))
        back = _linear_back if kept is None else _convolution_back
        of_x, of_down, of_up = back(
            g, x, weight.to(x.dtype), ready, hidden, ctx.scale, kept, wants_x, down.dtype
        )
        return (
            of_x,
            None,
            None,
            of_magnitude,
            of_down.view_as(down) if wants_down else None,
            of_up.view_as(up) if wants_up else None,
            None,
            None,
            None,
        )


def apart(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    shift: torch.Tensor,
    down: torch.Tensor,
    up: torch.Tensor,
    scale: float,
    kept: tuple[Any, ...] | None,
) -> torch.Tensor:
    """
    Return the same in operations of torch, which can be differentiated as often as is asked.

    Args:
        x: Inputs, (rows, ..., in), or (rows, in, *places).
        weight: (out, in, *kernel).
        bias: (out,), or None.
        shift: c, (out,).
        down: D.
        up: U.
        scale: s.
        kept: Stride, padding and dilation of a convolution; None for a linear layer.
    """
    kind = x.dtype
    weight, down, up = weight.to(kind), down.to(kind), up.to(kind)
    if kept is None:
        turned = functional.linear(x, weight) + functional.linear(functional.linear(x, down), up) * scale
    else:
        convolve: Any = _CONVOLUTIONS[weight.ndim - 2]
        inner = convolve(x, down.view(-1, *weight.shape[1:]), None, *kept)
        points = up.view(*up.shape, *[1] * (weight.ndim - 2))
        turned = convolve(x, weight, None, *kept) + convolve(inner, points) * scale
    out = turned + turned * _across(shift.to(kind), turned, kept)
    return out if bias is None else out + _across(bias.to(kind), out, kept)


def _again(
    ctx: Any, g: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, divisor: torch.Tensor
) -> tuple[Any, ...]:
    """Return the gradients as functions of the inputs and of ``g``."""
    wanted = ctx.needs_input_grad
    given = [x, ctx.magnitude, *ctx.factors]
    needs = [wanted[0], *wanted[3:6]]
    seen = [one.view_as(one) if need else one for one, need in zip(given, needs, strict=True)]
    shift = seen[1].to(divisor) / divisor - 1
    out = apart(seen[0], weight, ctx.bias, shift, seen[2], seen[3], ctx.scale, ctx.kept)
    asked = [one for one, need in zip(seen, needs, strict=True) if need]
    gradients = iter(torch.autograd.grad(out, asked, g, create_graph=True))
    of_x, *others = [next(gradients) if need else None for need in needs]
    return (of_x, None, None, *others, None, None, None)


def _linear(
    x: torch.Tensor, weight: torch.Tensor, ready: ReadyTerms, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return s x D^T (n, rank) and the output (rows, ..., out)."""
    flat = x.reshape(-1, x.shape[-1])
    out = functional.linear(flat, weight)
    hidden = _scaled(torch.mm(flat, ready.down.T), scale)
    out.addmm_(hidden, ready.up.T)
    return hidden, out.view(*x.shape[:-1], out.shape[-1])


def _linear_back(
    g: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    ready: ReadyTerms,
    hidden: torch.Tensor,
    scale: float,
    kept: None,  # noqa: ARG001
    wants_x: bool,
    to: torch.dtype,
) -> tuple[torch.Tensor | None, torch.Tensor, torch.Tensor]:
    """Return the gradients of x, D and U."""
    flat, g = x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1])
    inner = _scaled(torch.mm(g, ready.up), scale)  # (n, rank)
    of_x = torch.mm(g, weight).addmm_(inner, ready.down).view(x.shape) if wants_x else None
    return of_x, _product(inner.T, flat, to), _product(g.T, hidden, to)


def _convolution(
    x: torch.Tensor, weight: torch.Tensor, ready: ReadyTerms, scale: float, kept: tuple[Any, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what the narrow convolution gives to each row, times s, (rows, rank, n), and the output (rows, out, *places)."""
    convolve: Any = _CONVOLUTIONS[weight.ndim - 2]
    out = convolve(x, weight, None, *kept)
    hidden = convolve(x, ready.down.reshape(-1, *weight.shape[1:]), None, *kept).flatten(2)
    hidden = _scaled(hidden, scale)  # (rows, rank, n)
    up = ready.up.expand(len(x), -1, -1)
    flat = _flat(out)
    if flat is None:
        out = out + torch.bmm(up, hidden).view(out.shape)
    elif flat.is_contiguous():
        flat.baddbmm_(up, hidden)  # (rows, out, n)
    else:  # channels last
        flat.mT.baddbmm_(hidden.mT, up.mT)
    return hidden, out


def _convolution_back(
    g: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    ready: ReadyTerms,
    hidden: torch.Tensor,
    scale: float,
    kept: tuple[Any, ...],
    wants_x: bool,
    to: torch.dtype,
) -> tuple[torch.Tensor | None, torch.Tensor, torch.Tensor]:
    """Return the gradients of x, D and U."""
    flat = g.flatten(2)  # (rows, out, n)
    of_up = torch.bmm(flat, hidden.mT).sum(0, dtype=to)
    inner = _scaled(torch.bmm(ready.up.expand(len(x), -1, -1).mT, flat), scale)  # (rows, rank, n)
    kernel = ready.down.reshape(-1, *weight.shape[1:])
    back = torch.ops.aten.convolution_backward
    zeros = [0] * (weight.ndim - 2)
    inner = inner.reshape(*inner.shape[:2], *g.shape[2:])
    of_x, of_down, _ = back(inner, x, kernel, None, *map(list, kept), False, zeros, 1, [wants_x, True, False])
    if wants_x:
        through, _, _ = back(g, x, weight, None, *map(list, kept), False, zeros, 1, [True, False, False])
        of_x = through.add_(of_x)
    return of_x, of_down.flatten(1).to(to), of_up


def _scaled(inner: torch.Tensor, scale: float) -> torch.Tensor:
    """Return what is narrow times the scale."""
    return inner if scale == 1 else inner.mul_(scale)


def _flat(out: torch.Tensor) -> torch.Tensor | None:
    """Return an output (rows, out, *places) as (rows, out, n), where that is a view that can be summed into."""
    if out.is_contiguous():
        return out.view(*out.shape[:2], -1)
    last = out.movedim(1, -1)
    return last.view(len(out), -1, out.shape[1]).mT if last.is_contiguous() else None


def _across(values: torch.Tensor, out: torch.Tensor, kept: tuple[Any, ...] | None) -> torch.Tensor:
    """Return one value for each output in a shape that meets outputs."""
    return values if kept is None else values.view(-1, *[1] * (out.ndim - 2))


def _over_all(values: torch.Tensor, kept: tuple[Any, ...] | None, to: torch.dtype) -> torch.Tensor:
    """Return the sum of all that belongs to one output, (out,)."""
    if kept is None:
        return values.reshape(-1, values.shape[-1]).sum(0, dtype=to)
    return values.flatten(2).sum((0, 2), dtype=to)


def _product(left: torch.Tensor, right: torch.Tensor, to: torch.dtype) -> torch.Tensor:
    """Return a product of two matrices in a type, rounded once where the device can do that."""
    if left.dtype is to:
        return left @ right
    if to is torch.float32 and left.is_cuda and _sums_wide(left.dtype):
        summed: torch.Tensor = torch.mm(left, right, out_dtype=to)
        return summed
    return (left @ right).to(to)


@cache
def _sums_wide(kind: torch.dtype) -> bool:
    """Say whether the GPU's library gives products of a short type in fp32."""
    unit = torch.ones(16, 16, device="cuda", dtype=kind)
    try:
        torch.mm(unit, unit, out_dtype=torch.float32)
    except (RuntimeError, TypeError, NotImplementedError):  # an older torch, another vendor
        return False
    return True
