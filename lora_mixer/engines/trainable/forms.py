"""
How a layer's adapter in training changes what the layer gives, one class for each form.

A form is made once for each layer and looks at the parameters at each call, so an optimizer's step is seen at once. All that it
computes is the formula of :mod:`lora_mixer.algorithms`; the form says only in which order, so that nothing as large as the weight is
made where that can be avoided, and so that no pass over the outputs is made twice.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from lora_mixer.algorithms.adalora import AdaLora
from lora_mixer.algorithms.dora import Dora
from lora_mixer.algorithms.lora import LowRank
from lora_mixer.algorithms.started import Started
from lora_mixer.engines.merged.kept_weight import unsupported
from lora_mixer.engines.merged.tied_use import standing_in
from lora_mixer.engines.placement import compute_device
from lora_mixer.engines.products import product, weight_of
from lora_mixer.engines.side.support import layer_kind
from lora_mixer.engines.trainable.direct import DirectPair, casts, convolve_by, meeting
from lora_mixer.engines.trainable.joined import Terms
from lora_mixer.engines.trainable.parameters import Live
from lora_mixer.errors import PipelineStateError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lora_mixer.algorithms import Factors, LayerWeights

    Clean = Callable[[], torch.Tensor]
    """Gives a clean base (out, in, *kernel)."""
    Held = tuple[torch.Tensor, torch.Tensor]
    """A product of two matrices (out, rank) and (rank, in) that is not trained."""


@dataclass
class Layer:
    """
    A module as forms see it.

    Attributes:
        module: The module.
        shape: Its weight's, (out, in, *kernel).
        clean: Gives its clean weight.
        is_own: Whether what the module gives before any form is the product with the clean weight: no other mix is in the weight or
            stands beside it.
        component: Its component.
        path: Its path there.
    """

    module: nn.Module
    shape: tuple[int, ...]
    clean: Clean
    is_own: bool = True
    component: str = ""
    path: str = ""

    @property
    def is_packed(self) -> bool:
        """Whether the weight cannot be read as a tensor."""
        weight = getattr(self.module, "weight", None)
        return isinstance(weight, torch.Tensor) and unsupported(weight) is not None

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """Return inputs through the layer with its clean weight and without its bias."""
        if self.is_packed:
            return product(self.module, x)
        if self.is_own:
            module: Any = self.module
            return product(module, x if casts(x) else x.to(module.weight.dtype))
        weight = self.clean().to(x.device)
        if not casts(x):
            weight = weight.to(x.dtype)
        if len(self.shape) == 2:
            return functional.linear(x, weight)
        return convolved(self.module, x, weight)

    def own(self, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """Return what the layer gives with its clean weight and without its bias; ``output`` is what came so far."""
        if not self.is_own:
            return self.product(x)
        bias = getattr(self.module, "bias", None)
        return output if bias is None else output - spread(bias.to(output), output, self.shape)


class Form(ABC):
    """
    One adapter's part of one layer.

    Attributes:
        weights: The change.
    """

    weights: Any

    @abstractmethod
    def added(self, x: torch.Tensor, output: torch.Tensor, plain: torch.Tensor, gain: float) -> torch.Tensor:
        """
        Return the output with the adapter's part.

        Args:
            x: The module's input.
            output: What has come together so far.
            plain: What the module itself gave.
            gain: The adapter's weight.
        """

    @property
    def can_join(self) -> bool:
        """Whether it can be one operation with the layer's own product; it asks the module for no other product then."""
        return False

    def terms(self, gain: float) -> Terms | None:  # noqa: ARG002
        """Return what it adds to a layer at a weight, where that can be one operation with the layer's own; else None."""
        return None


@dataclass
class PairForm(Form):
    """
    A low-rank pair: two products beside the layer's own, the second added in one go.

    Attributes:
        layer: The layer.
        weights: A pair, or another kind that is one.
        dropout: The share of inputs that training drops.
        taken: What the pair's start took out of the base, or None.
    """

    layer: Layer
    weights: LayerWeights
    dropout: float
    taken: Held | None = None

    def added(self, x: torch.Tensor, output: torch.Tensor, plain: torch.Tensor, gain: float) -> torch.Tensor:  # noqa: ARG002
        """Return output + gain * scale * (x A^T) B^T."""
        pair = self.pair()
        x = meeting(x, pair.down)
        module, shape = self.layer.module, self.layer.shape
        dropped = functional.dropout(x, self.dropout, module.training) if self.dropout else x
        total = with_pair(module, output, dropped, pair.down, pair.up, gain * pair.scale, shape)
        if self.taken is not None:
            left, right = self.taken
            total = with_pair(module, total, x, right, left, -1.0, shape)
        moved = self.weights.bias_delta(None, gain) if self._adds_more else None
        return total if moved is None else total + spread(moved, total, shape).to(total.dtype)

    def pair(self) -> Factors:
        """Return the factors as they are by now."""
        pair = self.weights.factors(self.layer.shape)
        assert pair is not None  # noqa: S101 -- kinds that are pairs
        return pair

    def __post_init__(self) -> None:
        """Look once for what there is beside the two products."""
        self._adds_more = self.taken is not None or self.weights.bias_delta(None, 1.0) is not None

    @property
    def is_plain(self) -> bool:
        """Whether there are the two products and nothing else."""
        return not self.dropout and not self._adds_more

    def direct(self, gain: float) -> DirectPair | None:
        """Return the pair at a weight where its factors are parameters as they are and there is nothing else; else None."""
        pair, shape = self.weights, self.layer.shape
        if self._adds_more or not isinstance(pair, LowRank) or pair.mid is not None or pair.shape != shape:
            return None
        if not isinstance(pair.down, nn.Parameter) or not isinstance(pair.up, nn.Parameter):
            return None  # views are looked up at each call
        return DirectPair(self.layer.module, pair.down, pair.up, gain * pair.scale, self.dropout)


@dataclass
class DoraForm(Form):
    """
    A pair that turns the weight, and lengths of outputs: the pair's products, and outputs multiplied.

    Attributes:
        layer: The layer.
        weights: The magnitude over a pair.
        dropout: The share of inputs that training drops.
    """

    layer: Layer
    weights: Dora
    dropout: float

    def __post_init__(self) -> None:
        """Look at the base once."""
        self._squares = self._squares_of_base()

    @property
    def can_join(self) -> bool:
        """Where no inputs are dropped, and there is no bias beside."""
        return self.layer.is_own and not self.dropout and self.weights.bias_delta(None, 1.0) is None

    def terms(self, gain: float) -> Terms | None:
        """Return the pair, and outputs multiplied."""
        at, share = self.weights.shares(gain)
        if share != 1:
            return None
        dora = self.weights
        pair = dora.inner.factors(self.layer.shape)
        assert pair is not None  # noqa: S101 -- kinds that are pairs
        if self._squares.device != pair.down.device:
            self._squares = self._squares_of_base()
        weight: Any = self.layer.module.weight
        flat = weight.detach().flatten(1)
        return Terms(pair.down, pair.up, at * pair.scale, dora, dora.magnitude.flatten(), self._squares, flat)

    def added(self, x: torch.Tensor, output: torch.Tensor, plain: torch.Tensor, gain: float) -> torch.Tensor:
        """Return the output with the turned weight's product, as long as the magnitude says, in the place of the weight's."""
        layer, dora = self.layer, self.weights
        pair = dora.inner.factors(layer.shape)
        assert pair is not None  # noqa: S101 -- kinds that are pairs
        at, share = dora.shares(gain)
        given = meeting(x, pair.down)
        if self.dropout and layer.module.training:
            given = functional.dropout(given, self.dropout)
            clean = layer.product(given.to(x.dtype))
        else:
            clean = layer.own(x, plain)
        turned = with_pair(layer.module, clean, given, pair.down, pair.up, at * pair.scale, layer.shape)
        with torch.autocast(x.device.type, enabled=False):
            shift = dora.ratio_to(self._length(pair, at)) - 1  # (out,)
        shift = spread(shift, turned, layer.shape).to(turned.dtype)
        long = torch.addcmul(turned, turned, shift)  # the shift is small: a short type rounds the change only
        bias = getattr(layer.module, "bias", None)
        if output is plain and layer.is_own and share == 1 and not self.dropout:
            total = long if bias is None else long + spread(bias.to(long), long, layer.shape)
        else:
            total = output + (long - clean if share == 1 else (long - clean) * share)
        moved = dora.bias_delta(None, gain)
        return total if moved is None else total + spread(moved, total, layer.shape).to(total.dtype)

    @torch.no_grad()
    def _length(self, pair: Factors, at: float) -> torch.Tensor:
        """Return the lengths (out,) of the turned weight's rows, constants in the backward pass."""
        layer = self.layer
        down, up = pair.down.detach(), pair.up.detach()
        if self._squares.device != down.device:
            self._squares = self._squares_of_base()
        if layer.is_packed:
            kind = next((p.dtype for p in layer.module.parameters() if p.is_floating_point()), down.dtype)
            met = product(layer.module, down.to(kind if kind.itemsize > 1 else torch.float32)).T  # (out, r)
        else:
            weight = layer.clean().detach().to(down.device).flatten(1)  # (out, in * kernel)
            met = functional.linear(weight, down.to(weight.dtype))  # (out, r)
        return self.weights.length_in_ranks(self._squares, met.to(up.dtype), up, down, at * pair.scale)

    @torch.no_grad()
    def _squares_of_base(self) -> torch.Tensor:
        """Return |w|^2 of the base's rows, (out,), which stay while an adapter is in training."""
        layer, device = self.layer, next(self.weights.tensors()).device
        if layer.is_packed:
            return weight_of(layer.module, layer.shape).square().sum(1).to(device)
        weight = layer.clean().detach().to(device).flatten(1)
        lengths: torch.Tensor = torch.linalg.vector_norm(weight, dim=1, dtype=_wide_type(weight))
        return lengths.square()


@dataclass
class OutputForm(Form):
    """
    Any other change of a linear layer, by what it does to outputs.

    Attributes:
        layer: The layer.
        weights: The change.
    """

    layer: Layer
    weights: Live

    def added(self, x: torch.Tensor, output: torch.Tensor, plain: torch.Tensor, gain: float) -> torch.Tensor:
        """Return the output with what the change adds."""
        layer, now = self.layer, self.weights.now
        bias = getattr(layer.module, "bias", None)
        moved = now.bias_delta(None if bias is None else wide(bias), gain)
        total = output
        if now.changes_weight:
            change = now.on_outputs(partial(self._base, x.device), layer.shape, gain)
            # packed layers round what they are given, others take what the parameters are
            like = next((t for t in now.tensors() if t.is_floating_point()), x)
            given = x if layer.is_packed else meeting(x, like)
            clean = layer.own(x, plain) if change.uses_own else plain
            total = total + change.added(given.to(output.device), clean, layer.product).to(output.dtype)
        return total if moved is None else total + moved.to(total)

    def _base(self, device: torch.device) -> torch.Tensor:
        if self.layer.is_packed:
            return weight_of(self.layer.module, self.layer.shape)
        return wide(self.layer.clean().to(device))


@dataclass
class TableForm(Form):
    """
    A pair on a lookup table: rows are looked up in the narrow table, by the module's own class, and go through the other half.

    Attributes:
        layer: The table.
        weights: A pair, ``up`` (rows, rank), ``down`` (rank, width).
    """

    layer: Layer
    weights: Live

    def added(self, x: torch.Tensor, output: torch.Tensor, plain: torch.Tensor, gain: float) -> torch.Tensor:  # noqa: ARG002
        """Return output + gain * scale * U[x] D."""
        pair = self.weights.now.factors(self.layer.shape)
        assert pair is not None  # noqa: S101 -- kinds that are pairs
        rows = standing_in(self.layer.module, {"weight": pair.up}).forward(x)  # (..., r)
        return output + (functional.linear(rows, pair.down.T) * (gain * pair.scale)).to(output.dtype)


@dataclass
class WholeForm:
    """
    Anything else: the module's class computes with the live parameter plus the change.

    Attributes:
        layer: The module.
        weights: The change.
        attribute: Which parameter.
        transposed: Whether the module stores it (in, out).
    """

    layer: Layer
    weights: Live
    attribute: str
    transposed: bool

    def into(self, tensors: dict[str, torch.Tensor], gain: float) -> None:
        """Put the module's parameters with the change in them into a table of those that differ."""
        module = self.layer.module
        live = tensors.get(self.attribute, getattr(module, self.attribute))
        base = wide(self.layer.clean().to(live.device))
        now = self.weights.now
        change = now.delta(base, gain)
        tensors[self.attribute] = live + (change.T if self.transposed else change).to(live.dtype)
        if self.attribute != "weight":
            return
        bias = tensors.get("bias", getattr(module, "bias", None))
        moved = now.bias_delta(bias, gain)
        if moved is not None:
            tensors["bias"] = moved if bias is None else bias + moved.to(bias.dtype)


def form_of(
    layer: Layer, weights: LayerWeights, attribute: str, dropout: float, *, transposed: bool
) -> Form | WholeForm:
    """
    Return the cheapest form that a change of a module's parameter has.

    Raises:
        PipelineStateError: When inputs are to be dropped where no form does that, or a packed weight would have to be read.
    """
    module = layer.module
    has_groups = getattr(module, "groups", 1) != 1
    kind = layer_kind(module) if attribute == "weight" and not has_groups else None
    is_pair = isinstance(weights, LowRank | AdaLora)
    if kind is not None and is_pair:
        return PairForm(layer, weights, dropout)
    if kind == "linear" and isinstance(weights, Started):
        base = weight_of(module, layer.shape) if layer.is_packed else wide(layer.clean())
        return PairForm(layer, weights.pair, dropout, weights.taken(base.to(compute_device(module))))
    if kind is not None and isinstance(weights, Dora) and weights.is_of_outputs(layer.shape):
        return DoraForm(layer, weights, dropout)
    if isinstance(module, nn.Embedding):  # PEFT drops nothing of a lookup
        if isinstance(weights, LowRank) and attribute == "weight" and module.max_norm is None:
            return TableForm(layer, Live(weights))
    elif dropout:
        raise PipelineStateError(
            f"lora_dropout = {dropout} on {type(module).__name__} ({'+'.join(weights.algorithms)}): inputs are "
            "dropped of pairs on linear layers and convolutions only; set it to 0",
            argument="lora_dropout",
            component=layer.component,
            key=layer.path,
        )
    if kind == "linear" and not (transposed and layer.is_packed):
        return OutputForm(layer, Live(weights))
    reason = unsupported(getattr(module, attribute))
    if reason:
        raise PipelineStateError(
            f"{type(module).__name__}: {reason}; {'+'.join(weights.algorithms)} cannot be trained beside it",
            component=layer.component,
            key=layer.path,
        )
    return WholeForm(layer, Live(weights), attribute, transposed)


def with_pair(
    module: nn.Module,
    output: torch.Tensor,
    x: torch.Tensor,
    down: torch.Tensor,
    up: torch.Tensor,
    scale: float,
    shape: tuple[int, ...],
) -> torch.Tensor:
    """
    Return an output with what two matrices make of a layer's input: two products, or the layer's own convolution and one of size 1.

    Args:
        module: The layer, whose stride, padding and dilation are the first convolution's.
        output: (..., out), or (b, out, *places).
        x: Its input.
        down: (rank, in * kernel).
        up: (out, rank).
        scale: What the product is multiplied by.
        shape: The layer's weight as (out, in, *kernel).

    Example:
        >>> layer, x = torch.nn.Linear(2, 2), torch.ones(1, 2)
        >>> with_pair(layer, torch.zeros(1, 2), x, torch.ones(1, 2), torch.ones(2, 1), 0.5, (2, 2))
        tensor([[1., 1.]])
    """
    is_linear = len(shape) == 2
    hidden = (
        functional.linear(x, down) if is_linear else convolved(module, x, down.view(-1, *shape[1:]))
    )  # (..., r)
    if scale != 1:
        hidden = hidden * scale  # what is smallest
    if is_linear:
        part = functional.linear(hidden, up)
    else:
        part = convolve_by(len(shape))(hidden, up.view(*up.shape, *[1] * (len(shape) - 2)))
    return output + (part if part.dtype == output.dtype else part.to(output.dtype))


def convolved(module: nn.Module, x: torch.Tensor, weight: torch.Tensor, groups: int = 1) -> torch.Tensor:
    """Return a convolution of a layer's input with another weight (n, in / groups, *kernel), without bias."""
    layer: Any = module
    out: torch.Tensor = convolve_by(weight.ndim)(
        x, weight, None, layer.stride, layer.padding, layer.dilation, groups
    )
    return out


def with_pairs_of_blocks(
    module: nn.Module,
    output: torch.Tensor,
    x: torch.Tensor,
    pairs: Sequence[Factors],
    scales: Sequence[float],
    shape: tuple[int, ...],
) -> torch.Tensor:
    """
    Return an output of which each of equal blocks of rows has what its own pair makes of it, in one product for all.

    Args:
        module: The layer.
        output: (blocks * rows, ..., out), or (blocks * rows, out, *places).
        x: The layer's input.
        pairs: One of each block, of one rank.
        scales: What each product is multiplied by.
        shape: The layer's weight as (out, in, *kernel).

    Example:
        >>> from lora_mixer.algorithms import Factors
        >>> pairs = [Factors(torch.full((1, 1), up), torch.ones(1, 1), 1.0) for up in (2.0, 3.0)]
        >>> with_pairs_of_blocks(nn.Linear(1, 1), torch.zeros(2, 1), torch.ones(2, 1), pairs, [1.0, 1.0], (1, 1)).flatten()
        tensor([2., 3.])
    """
    blocks, scale = len(pairs), scales[0]
    down = torch.stack([pair.down for pair in pairs])  # (blocks, r, in * kernel)
    ups = [pair.up for pair in pairs]
    if any(other != scale for other in scales):
        ups, scale = [up * scale_of for up, scale_of in zip(ups, scales, strict=True)], 1.0
    up = torch.stack(ups)  # (blocks, out, r)
    x = meeting(x, down)
    if len(shape) == 2:
        hidden = torch.bmm(x.reshape(blocks, -1, x.shape[-1]), down.mT)  # (blocks, n, r)
        part = torch.bmm(hidden if scale == 1 else hidden * scale, up.mT)  # (blocks, n, out)
        return output + part.view(output.shape).to(output.dtype)
    # one group of channels for each block
    rows = len(x) // blocks
    grouped = x.view(blocks, rows, *x.shape[1:]).transpose(0, 1).flatten(1, 2)  # (rows, blocks * in, *places)
    hidden = convolved(module, grouped, down.view(-1, *shape[1:]), blocks)  # (rows, blocks * r, *places)
    point = up.flatten(0, 1).view(-1, up.shape[2], *[1] * (len(shape) - 2))
    points: torch.Tensor = convolve_by(len(shape))(
        hidden if scale == 1 else hidden * scale, point, groups=blocks
    )
    apart = points.view(rows, blocks, -1, *points.shape[2:]).transpose(0, 1)  # (blocks, rows, out, *places)
    return output + apart.reshape(output.shape).to(output.dtype)


def spread(values: torch.Tensor, output: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Return one value for each output channel in a shape that meets outputs of a layer of weight ``shape``."""
    flat = values.flatten()
    return flat if len(shape) == 2 or output.ndim < 2 else flat.view(-1, *[1] * (len(shape) - 2))


def wide(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor in fp32 at least."""
    return tensor if tensor.dtype.itemsize > 2 else tensor.float()


def _wide_type(tensor: torch.Tensor) -> torch.dtype:
    return tensor.dtype if tensor.dtype.itemsize > 2 else torch.float32
