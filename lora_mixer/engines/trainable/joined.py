"""
A layer's own product and its adapter's as one operation, with a backward pass of its own.

What a training step costs beside the base's is mostly the number of its operations: casts of factors and of their gradients, sums of
outputs and of gradients of inputs. Here the pair's part is summed into the layer's output by the product that makes it, the same for
inputs' gradients, and factors' gradients come in the parameters' own type. With t = x W^T + s (x D^T) U^T, shift c (0 for a plain
pair) and gradient g of the output y = t + c t + b:

    g' = g + c g,   dU = s g'^T (x D^T),   dD = s (g' U)^T x,   dx = g' W + s (g' U) D,   dm = sum(g t) / n

where c = m / n - 1, m the magnitude and n the length of a DoRA's turned rows, a constant.

Several pairs of one rank have equal blocks of a batch's rows each. Gradients of gradients are those of :func:`apart`, which is the
same in operations of torch.
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
_WIDE = (torch.float64, torch.float32)


class Terms(NamedTuple):
    """
    What an adapter adds to a layer of weight (out, in, *kernel).

    Attributes:
        down: D, (rank, in * kernel).
        up: U, (out, rank).
        scale: s.
        turn: What a DoRA needs to multiply outputs without their bias by its magnitude over their rows' length; None for plain pairs.
    """

    down: torch.Tensor
    up: torch.Tensor
    scale: float
    turn: Turn | None = None

    @property
    def factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Both halves."""
        return self.down, self.up


class Turn(NamedTuple):
    """
    A DoRA's magnitude, and what rows' lengths are worked out of.

    Attributes:
        dora: The magnitude over a pair.
        magnitude: m, (out,).
        squares: |w|^2 of the base's rows, (out,).
        weight: The base's weight, (out, in * kernel).
    """

    dora: Dora
    magnitude: torch.Tensor
    squares: torch.Tensor
    weight: torch.Tensor


class ReadyTerms(NamedTuple):
    """
    What a call computes with, made of :class:`Terms`, constants of the backward pass.

    Attributes:
        down: D of all blocks in the type of the inputs, ([blocks,] rank, in * kernel).
        up: U, likewise, ([blocks,] out, rank).
        shift: c = m / n - 1 in the type of the inputs, (out,), or None.
        divisor: n, (out,), or None.
    """

    down: torch.Tensor
    up: torch.Tensor
    shift: torch.Tensor | None = None
    divisor: torch.Tensor | None = None


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
def made_ready(layers: Sequence[Sequence[Terms]], kind: torch.dtype) -> list[ReadyTerms]:
    """
    Return what calls of layers compute with: all factors cast at once, and lengths of one size worked out together.

    Args:
        layers: The terms of each layer, one for each block of rows.
        kind: The type of the inputs.

    Example:
        >>> (ready,) = made_ready([[Terms(torch.ones(1, 2), torch.ones(2, 1), 1.0)]], torch.bfloat16)
        >>> ready.down.dtype, tuple(ready.up.shape)
        (torch.bfloat16, (2, 1))
    """
    stacks = [half for terms in layers for half in zip(*(one.factors for one in terms), strict=True)]
    cast = _all_cast(stacks, kind)
    ready = [ReadyTerms(down, up) for down, up in zip(cast[::2], cast[1::2], strict=True)]
    turned = [
        (place, terms[0], turn) for place, terms in enumerate(layers) if (turn := terms[0].turn) is not None
    ]
    if not turned:
        return ready
    parts = []
    for place, (down, up, scale, _), turn in turned:
        weight, short = turn.weight, ready[place].down
        narrow = short if short.dtype is weight.dtype else down.to(weight.dtype)
        met = _product(weight, narrow.T, up.dtype)
        parts.append(RankParts(turn.squares, met, up, down, scale))
    lengths = lengths_in_ranks(parts)
    kinds = [
        (turn.dora.strength, n.shape, n.dtype, n.device)
        for (_, _, turn), n in zip(turned, lengths, strict=True)
    ]
    for places in alike(kinds):
        turns = [turned[place][2] for place in places]
        divisors = turns[0].dora.divisor_of(torch.stack([lengths[place] for place in places]))
        shifts = (torch.stack([turn.magnitude for turn in turns]).to(divisors) / divisors - 1).to(kind)
        for place, shift, divisor in zip(places, shifts, divisors, strict=True):
            layer = turned[place][0]
            ready[layer] = ready[layer]._replace(shift=shift, divisor=divisor)
    return ready


def _all_cast(stacks: Sequence[Sequence[torch.Tensor]], kind: torch.dtype) -> list[torch.Tensor]:
    """Return tensors of one shape as one each, in a type; all that is not in it yet goes there by one operation for each device."""
    short = [place for place, stack in enumerate(stacks) if stack[0].dtype is not kind]
    whole = {
        place: stack[0] if len(stack) == 1 else torch.stack(tuple(stack))
        for place, stack in enumerate(stacks)
        if stack[0].dtype is kind
    }
    for places in alike([(stacks[place][0].dtype, stacks[place][0].device) for place in short]):
        members = [short[place] for place in places]
        flat = torch.cat([one.reshape(-1) for place in members for one in stacks[place]]).to(kind)
        sizes = [len(stacks[place]) * stacks[place][0].numel() for place in members]
        for place, piece in zip(members, torch.split(flat, sizes), strict=True):
            shape = stacks[place][0].shape
            whole[place] = piece.view(shape if len(stacks[place]) == 1 else (len(stacks[place]), *shape))
    return [whole[place] for place in range(len(stacks))]


def type_of(x: torch.Tensor, terms: Terms, weight: torch.Tensor) -> torch.dtype | None:
    """Return the type that a layer computes in; None where types differ that autocast does not bring together."""
    device = x.device.type
    if torch.is_autocast_enabled(device):
        types = (x.dtype, weight.dtype, terms.down.dtype, terms.up.dtype)
        fits = all(one.is_floating_point and one is not torch.float64 for one in types)
        return torch.get_autocast_dtype(device) if fits else None
    return x.dtype if weight.dtype is x.dtype and terms.down.dtype is x.dtype else None


def joined(
    module: nn.Module, x: torch.Tensor, terms: Sequence[Terms], ready: ReadyTerms | None = None
) -> torch.Tensor | None:
    """
    Return what a layer gives with what adapters add to it, or None where it has to be computed apart.

    Args:
        module: A layer of which :func:`can_join` is true.
        x: Its input, (rows, ..., in), or (rows, in, *places).
        terms: One for all rows, or one for each of equal blocks of rows, of one rank.
        ready: What :func:`made_ready` made of them, where that is there already.

    Example:
        >>> layer, x = nn.Linear(2, 2, bias=False).requires_grad_(False), torch.ones(1, 2)
        >>> found = joined(layer, x, [Terms(torch.ones(1, 2), torch.ones(2, 1), 0.5)])
        >>> torch.allclose(found, layer(x) + 1)
        True
    """
    layer: Any = module
    weight, bias, first = layer.weight, layer.bias, terms[0]
    kind = type_of(x, first, weight)
    is_linear = weight.ndim == 2
    if (
        kind is None
        or weight.requires_grad
        or (bias is not None and bias.requires_grad)
        or not x.device == weight.device == first.down.device
        or x.ndim < 2
        or (not is_linear and x.ndim != weight.ndim)
        or len(x) % len(terms)
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
        None if first.turn is None else first.turn.magnitude,
        ready,
        None if is_linear else (layer.stride, layer.padding, layer.dilation),
        [one.scale for one in terms],
        *(one.down for one in terms),
        *(one.up for one in terms),
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
        magnitude: torch.Tensor | None,
        ready: ReadyTerms,
        kept: tuple[Any, ...] | None,
        scales: Sequence[float],
        *factors: torch.Tensor,
    ) -> torch.Tensor:
        kind, (down, up, shift, divisor) = x.dtype, ready
        clean, added = weight.to(kind), None if bias is None or shift is not None else bias.to(kind)
        if kept is None:
            hidden, out = _linear(x, clean, added, down, up, scales)
        else:
            hidden, out = _convolution(x, clean, added, down, up, scales, kept)
        turned = None
        if shift is not None:
            # the shift is small: a short type rounds the change only
            turned, across = out, _across(shift, out, kept)
            out = torch.addcmul(turned, turned, across)
            if bias is not None:
                out += _across(bias.to(kind), out, kept)
        ctx.save_for_backward(x, weight, down, up, hidden, turned, shift, divisor)
        ctx.bias, ctx.magnitude, ctx.kept, ctx.scales, ctx.factors = bias, magnitude, kept, scales, factors
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        (g,) = gradients
        x, weight, down, up, hidden, turned, shift, divisor = ctx.saved_tensors
        kept, scales, factors = ctx.kept, ctx.scales, ctx.factors
        wanted, fixed = ctx.needs_input_grad, (None, None)
        if torch.is_grad_enabled():  # the gradient's own gradient will be asked for
            return _again(ctx, g, x, weight, divisor)
        of_magnitude = None
        if shift is not None:
            if wanted[3]:
                of_magnitude = (_over_all(g * turned, kept, divisor.dtype) / divisor).to(ctx.magnitude.dtype)
            g = torch.addcmul(g, g, _across(shift, g, kept))
        back = _linear_back if kept is None else _convolution_back
        of_x, of_down, of_up = back(
            g, x, weight.to(x.dtype), down, up, hidden, scales, kept, wanted[0], factors[0].dtype
        )
        single = len(scales) == 1
        halves = (*((of_down,) if single else of_down.unbind()), *((of_up,) if single else of_up.unbind()))
        of_factors = [
            one.view_as(like) if need else None
            for one, like, need in zip(halves, factors, wanted[7:], strict=True)
        ]
        return (of_x, *fixed, of_magnitude, None, *fixed, *of_factors)


def apart(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    shift: torch.Tensor | None,
    kept: tuple[Any, ...] | None,
    scales: Sequence[float],
    *factors: torch.Tensor,
) -> torch.Tensor:
    """
    Return the same in operations of torch, which can be differentiated as often as is asked.

    Args:
        x: Inputs, (rows, ..., in), or (rows, in, *places).
        weight: (out, in, *kernel).
        bias: (out,), or None.
        shift: c, (out,), or None.
        kept: Stride, padding and dilation of a convolution; None for a linear layer.
        scales: s of each block of rows.
        factors: D of each block, then U of each.
    """
    kind, blocks = x.dtype, len(scales)
    weight = weight.to(kind)
    pieces = []
    for part, down, up, scale in zip(
        x.chunk(blocks), factors[:blocks], factors[blocks:], scales, strict=True
    ):
        d, u = down.to(kind), up.to(kind)
        if kept is None:
            total = functional.linear(part, weight) + functional.linear(functional.linear(part, d), u) * scale
        else:
            convolve: Any = _CONVOLUTIONS[weight.ndim - 2]
            inner = convolve(part, d.view(-1, *weight.shape[1:]), None, *kept)
            points = u.view(*u.shape, *[1] * (weight.ndim - 2))
            total = convolve(part, weight, None, *kept) + convolve(inner, points) * scale
        pieces.append(total)
    out = pieces[0] if blocks == 1 else torch.cat(pieces)
    if shift is not None:
        out = out + out * _across(shift.to(kind), out, kept)
    return out if bias is None else out + _across(bias.to(kind), out, kept)


def _again(
    ctx: Any, g: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, divisor: torch.Tensor | None
) -> tuple[Any, ...]:
    """Return the gradients as functions of the inputs and of ``g``."""
    wanted = ctx.needs_input_grad
    given = [x, ctx.magnitude, *ctx.factors]
    needs = [wanted[0], wanted[3], *wanted[7:]]
    seen = [one.view_as(one) if need else one for one, need in zip(given, needs, strict=True)]
    shift = None if divisor is None else seen[1].to(divisor) / divisor - 1
    out = apart(seen[0], weight, ctx.bias, shift, ctx.kept, ctx.scales, *seen[2:])
    asked = [one for one, need in zip(seen, needs, strict=True) if need]
    gradients = iter(torch.autograd.grad(out, asked, g, create_graph=True))
    of_x, of_magnitude, *others = [next(gradients) if need else None for need in needs]
    return (of_x, None, None, of_magnitude, None, None, None, *others)


def _linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    down: torch.Tensor,
    up: torch.Tensor,
    scales: Sequence[float],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return s x D^T ([blocks,] n, rank) and the output (rows, ..., out)."""
    flat = x.reshape(-1, x.shape[-1])
    out = functional.linear(flat, weight, bias)
    if len(scales) == 1:
        hidden = _scaled(torch.mm(flat, down.T), scales)
        out.addmm_(hidden, up.T)
    else:
        hidden = _scaled(torch.bmm(flat.view(len(scales), -1, x.shape[-1]), down.mT), scales)
        out.view(len(scales), -1, out.shape[-1]).baddbmm_(hidden, up.mT)
    return hidden, out.view(*x.shape[:-1], out.shape[-1])


def _linear_back(
    g: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    down: torch.Tensor,
    up: torch.Tensor,
    hidden: torch.Tensor,
    scales: Sequence[float],
    kept: None,  # noqa: ARG001
    wants_x: bool,
    to: torch.dtype,
) -> tuple[torch.Tensor | None, torch.Tensor, torch.Tensor]:
    """Return the gradients of x, D and U."""
    flat, g = x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1])
    of_x = torch.mm(g, weight) if wants_x else None
    if len(scales) == 1:
        inner = _scaled(torch.mm(g, up), scales)  # (n, rank)
        if of_x is not None:
            of_x.addmm_(inner, down)
        of_down, of_up = _product(inner.T, flat, to), _product(g.T, hidden, to)
    else:
        blocks = len(scales)
        g3, x3 = g.view(blocks, -1, g.shape[-1]), flat.view(blocks, -1, flat.shape[-1])
        inner = _scaled(torch.bmm(g3, up), scales)  # (blocks, n, rank)
        if of_x is not None:
            of_x.view(x3.shape).baddbmm_(inner, down)
        of_down, of_up = _product(inner.mT, x3, to), _product(g3.mT, hidden, to)
    return None if of_x is None else of_x.view(x.shape), of_down, of_up


def _convolution(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    down: torch.Tensor,
    up: torch.Tensor,
    scales: Sequence[float],
    kept: tuple[Any, ...],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what the narrow convolution gives to each row, times s, (rows, rank, n), and the output (rows, out, *places)."""
    convolve: Any = _CONVOLUTIONS[weight.ndim - 2]
    out = convolve(x, weight, bias, *kept)
    hidden = convolve(x, down.reshape(-1, *weight.shape[1:]), None, *kept).flatten(
        2
    )  # (rows, blocks * rank, n)
    hidden = _scaled(_of_own_block(hidden, len(scales)), scales)
    flat = _flat(out)
    if flat is None:
        out = out + torch.bmm(_of_rows(up, len(x)), hidden).view(out.shape)
    elif flat.is_contiguous():
        flat.baddbmm_(_of_rows(up, len(x)), hidden)  # (rows, out, n)
    else:  # channels last
        flat.mT.baddbmm_(hidden.mT, _of_rows(up, len(x)).mT)
    return hidden, out


def _convolution_back(
    g: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    down: torch.Tensor,
    up: torch.Tensor,
    hidden: torch.Tensor,
    scales: Sequence[float],
    kept: tuple[Any, ...],
    wants_x: bool,
    to: torch.dtype,
) -> tuple[torch.Tensor | None, torch.Tensor, torch.Tensor]:
    """Return the gradients of x, D and U."""
    blocks, rows, rank = len(scales), len(x), hidden.shape[1]
    flat = g.flatten(2)  # (rows, out, n)
    each = torch.bmm(flat, hidden.mT)  # (rows, out, rank)
    of_up = each.view(blocks, -1, *each.shape[1:]).sum(1, dtype=to)
    inner = _scaled(torch.bmm(_of_rows(up, rows).mT, flat), scales)  # (rows, rank, n)
    if blocks > 1:  # what other blocks' ranks have given a row counts for nothing
        spread = inner.new_zeros(blocks, rows // blocks, blocks, rank, inner.shape[2])
        spread.diagonal(dim1=0, dim2=2).copy_(inner.view(blocks, -1, *inner.shape[1:]).permute(1, 2, 3, 0))
        inner = spread.view(rows, blocks * rank, -1)
    kernel = down.reshape(-1, *weight.shape[1:])
    back = torch.ops.aten.convolution_backward
    zeros = [0] * (weight.ndim - 2)
    inner = inner.reshape(*inner.shape[:2], *g.shape[2:])
    of_x, of_down, _ = back(inner, x, kernel, None, *map(list, kept), False, zeros, 1, [wants_x, True, False])
    if wants_x:
        through, _, _ = back(g, x, weight, None, *map(list, kept), False, zeros, 1, [True, False, False])
        of_x = through.add_(of_x)
    of_down = of_down.reshape(blocks, rank, -1).to(to)
    return (of_x, of_down[0], of_up[0]) if blocks == 1 else (of_x, of_down, of_up)


def _scaled(inner: torch.Tensor, scales: Sequence[float]) -> torch.Tensor:
    """Return what is narrow, ([blocks * rows,] ...), times the scale of its block."""
    first = scales[0]
    if all(one == first for one in scales):
        return inner if first == 1 else inner.mul_(first)
    for part, scale in zip(inner.chunk(len(scales)), scales, strict=True):
        part.mul_(scale)
    return inner


def _of_own_block(hidden: torch.Tensor, blocks: int) -> torch.Tensor:
    """Return of (rows, blocks * rank, n) the ranks of each row's own block, (rows, rank, n)."""
    if blocks == 1:
        return hidden
    rows, ranks, n = hidden.shape
    by_block = hidden.view(blocks, rows // blocks, blocks, ranks // blocks, n)
    diagonal = by_block.diagonal(dim1=0, dim2=2).permute(3, 0, 1, 2)  # (blocks, rows of one, rank, n)
    return diagonal.reshape(rows, ranks // blocks, n)


def _of_rows(up: torch.Tensor, rows: int) -> torch.Tensor:
    """Return the second half, ([blocks,] out, rank), for each of so many rows, (rows, out, rank)."""
    if up.ndim == 2:
        return up.expand(rows, -1, -1)
    return up.unsqueeze(1).expand(-1, rows // len(up), -1, -1).reshape(rows, *up.shape[1:])


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
    """Return a product of two matrices, or of two stacks of them, in a type, rounded once where the device can do that."""
    if left.dtype is to:
        return left @ right
    if to is torch.float32 and left.is_cuda and _sums_wide(left.dtype):
        product = torch.mm if left.ndim == 2 else torch.bmm
        summed: torch.Tensor = product(left, right, out_dtype=to)
        return summed
    return (left @ right).to(to)


@cache
def _sums_wide(kind: torch.dtype) -> bool:
    """Say whether the GPU's library gives products of a short type in fp32."""
    unit = torch.ones(1, 16, 16, device="cuda", dtype=kind)
    try:
        torch.mm(unit[0], unit[0], out_dtype=torch.float32)
        torch.bmm(unit, unit, out_dtype=torch.float32)
    except (RuntimeError, TypeError, NotImplementedError):  # an older torch, another vendor
        return False
    return True
