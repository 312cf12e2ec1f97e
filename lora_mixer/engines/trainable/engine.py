"""
Trains adapters beside weights that stay as they are.

A pair on a linear layer or a convolution is two products beside the layer's, and any other change of a linear layer is a product
with it. Everything else is one idea: the layer's class computes with the live weight plus the change, which is a function of the parameters, so that its gradient is the formula's, for every
kind of adapter and of layer (:func:`~lora_mixer.engines.merged.tied_use.standing_in`). Modules that share a parameter have
their own changes. While any adapter is in training, no parameter of the model asks for a gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn
from torch.nn import functional

from lora_mixer.algorithms.adalora import AdaLora
from lora_mixer.algorithms.combined import Stack
from lora_mixer.algorithms.lora import LowRank
from lora_mixer.algorithms.started import Started
from lora_mixer.algorithms.values import Values
from lora_mixer.engines.denoiser.scaled import Scales
from lora_mixer.engines.denoiser.steps import START
from lora_mixer.engines.engine import Engine
from lora_mixer.engines.hooks import hook_output
from lora_mixer.engines.merged.kept_weight import unsupported
from lora_mixer.engines.merged.tied_use import standing_in
from lora_mixer.engines.placement import compute_device
from lora_mixer.engines.products import product, weight_of
from lora_mixer.engines.side.support import layer_kind
from lora_mixer.engines.trainable.parameters import as_they_are
from lora_mixer.engines.trainable.registry import register, unregister
from lora_mixer.errors import MixError, PipelineStateError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from lora_mixer.algorithms import LayerWeights
    from lora_mixer.binding import BoundLayer
    from lora_mixer.engines.engine import Effect, Wish
    from lora_mixer.engines.hooks import HookHandle
    from lora_mixer.engines.trainable.parameters import Trained

    Clean = Callable[[], torch.Tensor]
    """Gives a clean base."""
    Held = tuple[torch.Tensor, torch.Tensor]
    """A product of two matrices (out, rank) and (rank, in) that is not trained."""

_CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}


class Bases(Protocol):
    """What keeps clean weights."""

    def clean_weights(self, name: str) -> Sequence[Clean]:
        """Return what gives the clean weight (out, in, *kernel) of each layer of an adapter."""


@dataclass(frozen=True)
class TrainableRecord:
    """What was in training at one time."""

    own: Mapping[str, Trained]
    frozen: Sequence[nn.Parameter]
    roots: Mapping[str, Sequence[nn.Module]]


class TrainableEngine(Engine):
    """
    Holds the adapters in training, their hooks, and which parameters of the model asked for gradients before.

    Args:
        bases: What keeps the clean weights.
    """

    name = "trainable"

    def __init__(self, bases: Bases) -> None:
        """Start with none."""
        self._bases = bases
        self._own: dict[str, Trained] = {}
        self._handles: list[HookHandle] = []
        self._frozen: list[nn.Parameter] = []
        self._roots: dict[str, list[nn.Module]] = {}
        self._beside: list[Beside] = []
        self._scales = Scales()

    @property
    def acts(self) -> bool:
        """Whether any adapter in training takes part."""
        return bool(self._handles)

    def clear(self) -> None:
        """Take every hook away."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._beside.clear()

    def show_again(self, component: str) -> None:
        """Multiply what adapters in training add in a component by the scale that calls of it have now."""
        for beside in self._beside:
            if beside.component == component:
                beside.scale = self._scales.of(component)

    def own(self, name: str) -> Trained | None:
        """Return what is trained of an adapter."""
        return self._own.get(name)

    def claim(self, name: str, own: Trained, roots: Sequence[nn.Module]) -> None:
        """
        Take an adapter that is to be trained; its parameters are the components' from now on.

        Args:
            name: Its name.
            own: Its parameters.
            roots: The components that it reaches, whose own parameters ask for no gradient from now on.
        """
        trained = {id(p) for held in self._own.values() for p in held.parameters.values()}
        self._own[name] = own
        for root in roots:
            for parameter in root.parameters():
                if parameter.requires_grad and id(parameter) not in trained:
                    self._frozen.append(parameter)
                    parameter.requires_grad_(False)
        self._roots[name] = [root for root in roots if own.on(root)]
        for root in self._roots[name]:
            register(root, name, own.on(root), own.of_norms())

    def forget(self, name: str) -> None:
        """Let an adapter go; with the last one, the model's parameters ask for gradients as they did."""
        self._own.pop(name, None)
        for root in self._roots.pop(name, ()):
            unregister(root, name)
        if not self._own:
            for parameter in self._frozen:
                parameter.requires_grad_(True)
            self._frozen.clear()

    def record(self) -> TrainableRecord:
        """Note what is in training, and which parameters ask for no gradient because of that."""
        return TrainableRecord(dict(self._own), tuple(self._frozen), dict(self._roots))

    def put_back(self, record: TrainableRecord) -> None:
        """Have the same in training again, whatever was let go or came since."""
        for name in {*self._own, *self._roots}:
            if name not in record.own or self._own.get(name) is not record.own[name]:
                self.forget(name)
        for name, roots in record.roots.items():
            own = record.own[name]
            for root in roots:  # also where it was let go half-way: what is there stays the same
                register(root, name, own.on(root), own.of_norms())
        kept = {id(parameter) for parameter in record.frozen}
        for parameter in self._frozen:
            if id(parameter) not in kept:
                parameter.requires_grad_(True)
        for parameter in record.frozen:
            parameter.requires_grad_(False)
        self._own, self._frozen = dict(record.own), list(record.frozen)
        self._roots = {name: list(roots) for name, roots in record.roots.items()}

    def look(self, wish: Wish) -> None:
        """
        Check that adapters in training have one weight.

        Raises:
            MixError: Where they have not.
        """
        names = [name for name in sorted(wish.setting.names) if name in self._own]
        if names and (wish.is_by_place or wish.is_moving):
            raise MixError(
                f"{', '.join(names)}: an adapter in training has one weight for all rows and steps; set a mix without "
                "schedules, masks and lists"
            )

    def enter(self, effect: Effect) -> None:
        """
        Stand beside the modules that adapters in training reach.

        Raises:
            PipelineStateError: When a change other than a pair's is for a weight that is packed.
        """
        names = sorted(effect.served[self.name])
        if not names:
            return
        gains, self._scales = effect.mixes[0].at(START), effect.mixes[0].scales
        self._stand(
            [
                (layer, clean, gain, self._own[name].dropout)
                for name in names
                for layer, clean, gain in zip(
                    effect.layers[name], self._bases.clean_weights(name), gains[name], strict=True
                )
                if gain
            ],
            effect.components,
        )

    def _stand(
        self, layers: Sequence[tuple[BoundLayer, Clean, float, float]], roots: Mapping[str, nn.Module]
    ) -> None:
        """Stand beside modules: layers come with their clean base (out, in, *kernel), weight and dropout."""
        by_module: dict[int, Beside] = {}
        for layer, clean, gain, dropout in layers:
            live = layer.live
            modules = [live.module]
            if live.tied and layer.weights.reaches_twins:
                weight = live.weight
                modules = [
                    module
                    for module in roots[live.component].modules()
                    if module._parameters.get("weight") is weight  # noqa: SLF001 -- shared by identity
                ]
            for module in modules:
                beside = by_module.setdefault(id(module), Beside(module, live.component))
                shape = live.shape
                beside.add(
                    live.attribute, layer.weights, clean, gain, dropout, shape, transposed=live.transposed
                )
        for beside in by_module.values():
            beside.check()
        self._beside = list(by_module.values())
        for beside in self._beside:
            self._handles.append(hook_output(beside.module, beside, first=True))


class Beside:
    """
    A forward hook that gives a module what its adapters in training make of it.

    Args:
        module: The module.
        component: The component that it is in.
    """

    def __init__(self, module: nn.Module, component: str = "") -> None:
        """Start with no adapter."""
        self.module, self.component, self.scale = module, component, 1.0
        self._pairs: list[tuple[LayerWeights, Held | None, tuple[int, ...], float, float]] = []
        self._products: list[tuple[LayerWeights, Clean, float]] = []
        self._outputs: list[tuple[LayerWeights, tuple[int, ...], float]] = []
        self._others: list[tuple[str, LayerWeights, Clean, float, bool]] = []

    def add(
        self,
        attribute: str,
        weights: LayerWeights,
        clean: Clean,
        gain: float,
        dropout: float,
        shape: tuple[int, ...],
        *,
        transposed: bool,
    ) -> None:
        """Take an adapter's part of one of the module's parameters; ``shape`` is the weight's as (out, in, *kernel)."""
        has_groups = getattr(self.module, "groups", 1) != 1
        kind = layer_kind(self.module) if attribute == "weight" and not has_groups else None
        if isinstance(weights, Stack):  # each part is computed from the clean base
            for part in weights.parts:
                self.add(
                    attribute,
                    part,
                    clean,
                    gain,
                    0.0 if isinstance(part, Values) else dropout,
                    shape,
                    transposed=transposed,
                )
        elif kind is not None and isinstance(weights, LowRank | AdaLora):
            self._pairs.append((weights, None, shape, gain, dropout))
        elif kind == "linear" and isinstance(weights, Started):
            packed = self._is_packed
            device = compute_device(self.module)
            taken = weights.taken(weight_of(self.module, shape) if packed else _wide(clean().to(device)))
            self._pairs.append((weights.pair, taken, shape, gain, dropout))
        elif dropout and not isinstance(self.module, nn.Embedding):  # PEFT drops nothing of a lookup
            raise PipelineStateError(
                f"lora_dropout = {dropout} on {type(self.module).__name__} ({'+'.join(weights.algorithms)}): inputs are "
                "dropped of pairs on linear layers and convolutions only; set it to 0"
            )
        elif kind == "linear" and not transposed and self._is_packed:
            self._outputs.append((weights, shape, gain))
        elif kind == "linear":
            self._products.append((weights, clean, gain))
        else:
            self._others.append((attribute, weights, clean, gain, transposed))

    @property
    def _is_packed(self) -> bool:
        """Whether the module's weight cannot be read as a tensor."""
        weight = getattr(self.module, "weight", None)
        return isinstance(weight, torch.Tensor) and unsupported(weight) is not None

    def check(self) -> None:
        """
        Check that what has to be computed anew can be.

        Raises:
            PipelineStateError: When the weight is packed.
        """
        for attribute, weights in (
            *((attribute, weights) for attribute, weights, *_ in self._others),
            *(("weight", weights) for weights, *_ in self._products),
        ):
            reason = unsupported(getattr(self.module, attribute))
            if reason:
                raise PipelineStateError(
                    f"{type(self.module).__name__}: {reason}; {'+'.join(weights.algorithms)} cannot be trained beside it"
                )

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Return the output with the adapters' part."""
        for weights, *_ in self._products:
            weights.confine()
        for _, weights, *_ in self._others:
            weights.confine()
        for weights, *_ in self._outputs:
            weights.confine()
        own = output
        if self._others:
            output = standing_in(module, self._weights(module)).forward(*args)
        for weights, clean, gain in self._products:
            scaled = gain * self.scale
            output = output + self._product(module, args[0], weights, clean, scaled).to(output.dtype)
        for weights, shape, gain in self._outputs:
            part = self._on_output(module, args[0], own, weights, shape, gain * self.scale)
            output = output + part.to(output.dtype)
        for weights, taken, shape, gain, dropout in self._pairs:
            scaled = gain * self.scale
            part = self._pair(module, args[0], weights, taken, shape, scaled, dropout)
            output = output + part.to(output.dtype)
        return output

    @staticmethod
    def _on_output(
        module: nn.Module,
        x: torch.Tensor,
        output: torch.Tensor,
        weights: LayerWeights,
        shape: tuple[int, ...],
        gain: float,
    ) -> torch.Tensor:
        """Return what a change adds to the output of a linear layer whose weight is packed."""
        now, bias = as_they_are(weights), getattr(module, "bias", None)
        change = now.on_outputs(lambda: weight_of(module, shape), shape, gain)
        own = output if bias is None else output - bias.to(output.device)
        part = change.added(x.to(output.device), own, lambda inputs: product(module, inputs))
        moved = now.bias_delta(None if bias is None else _wide(bias), gain)
        return part if moved is None else part + moved.to(part.device)

    def _pair(
        self,
        module: nn.Module,
        given: torch.Tensor,
        weights: LayerWeights,
        taken: Held | None,
        shape: tuple[int, ...],
        gain: float,
        dropout: float,
    ) -> torch.Tensor:
        """Return what a pair adds to a layer's output, less what its start took out of the base."""
        pair = weights.factors(shape)
        assert pair is not None  # noqa: S101 -- kinds that are pairs
        x = given.to(pair.down.dtype)
        dropped = functional.dropout(x, dropout, module.training) if dropout else x
        part = through(module, dropped, pair.down, pair.up, shape) * (gain * pair.scale)
        if taken is not None:
            part = part - through(module, x, taken[1], taken[0], shape)
        moved = weights.bias_delta(None, gain)
        if moved is None:
            return part
        return part + (moved if len(shape) == 2 else moved.view(-1, *[1] * (len(shape) - 2)))

    @staticmethod
    def _product(
        module: nn.Module, x: torch.Tensor, weights: LayerWeights, clean: Clean, gain: float
    ) -> torch.Tensor:
        """Return what a change adds to a linear layer's output."""
        bias, now = getattr(module, "bias", None), as_they_are(weights)
        if not weights.changes_weight:
            moved = now.bias_delta(None if bias is None else _wide(bias), gain)
            return x.new_zeros(()) if moved is None else moved
        base = _wide(clean().to(x.device))
        return functional.linear(
            x.to(base.dtype),
            now.delta(base, gain),
            now.bias_delta(None if bias is None else _wide(bias), gain),
        )

    def _weights(self, module: nn.Module) -> dict[str, torch.Tensor]:
        """Return the module's parameters with the changes in them."""
        found: dict[str, torch.Tensor] = {}
        for attribute, weights, clean, gain, transposed in self._others:
            live = found.get(attribute, getattr(module, attribute))
            base = _wide(clean().to(live.device))
            gain = gain * self.scale  # noqa: PLW2901
            change = as_they_are(weights).delta(base, gain)
            found[attribute] = live + (change.T if transposed else change).to(live.dtype)
            bias = found.get("bias", getattr(module, "bias", None)) if attribute == "weight" else None
            moved = weights.bias_delta(bias, gain) if attribute == "weight" else None
            if moved is not None:
                found["bias"] = moved if bias is None else bias + moved.to(bias.dtype)
        return found


def through(
    module: nn.Module, x: torch.Tensor, down: torch.Tensor, up: torch.Tensor, shape: tuple[int, ...]
) -> torch.Tensor:
    """
    Return what two matrices make of a layer's input: two products, or the layer's own convolution and one of size 1.

    Args:
        module: The layer, whose stride, padding and dilation are the first convolution's.
        x: Its input.
        down: (rank, in * kernel).
        up: (out, rank).
        shape: The layer's weight as (out, in, *kernel).
    """
    if len(shape) == 2:
        return functional.linear(functional.linear(x, down), up)
    layer: Any = module
    convolve: Any = _CONVOLUTIONS[len(shape) - 2]
    hidden = convolve(
        x, down.view(-1, *shape[1:]), None, layer.stride, layer.padding, layer.dilation
    )  # (b, r, *places)
    out: torch.Tensor = convolve(hidden, up.view(*up.shape, *[1] * (len(shape) - 2)))
    return out


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.dtype.itemsize > 2 else tensor.float()
