"""
Trains adapters beside weights that stay as they are.

A pair on a linear layer is two products beside the layer's, and any other change of one is a product with it. Everything else
is one idea: the layer's class computes with the live weight plus the change, which is a function of the parameters, so that its gradient is the formula's, for every
kind of adapter and of layer (:func:`~lora_mixer.engines.merged.tied_use.standing_in`). Modules that share a parameter have
their own changes. While any adapter is in training, no parameter of the model asks for a gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch.nn import functional

from lora_mixer.algorithms.lora import LowRank
from lora_mixer.engines.hooks import hook_output
from lora_mixer.engines.merged.kept_weight import unsupported
from lora_mixer.engines.merged.tied_use import standing_in
from lora_mixer.engines.side.support import layer_kind
from lora_mixer.errors import PipelineStateError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import torch
    from torch import nn

    from lora_mixer.algorithms import LayerWeights
    from lora_mixer.binding import BoundLayer
    from lora_mixer.engines.hooks import HookHandle
    from lora_mixer.engines.trainable.parameters import Trained

    Clean = Callable[[], torch.Tensor]
    """Gives a clean base."""


@dataclass(frozen=True)
class TrainableRecord:
    """What was in training at one time."""

    held: Mapping[str, Trained]
    frozen: Sequence[nn.Parameter]


class TrainableEngine:
    """Holds the adapters in training, their hooks, and which parameters of the model asked for gradients before."""

    def __init__(self) -> None:
        """Start with none."""
        self.held: dict[str, Trained] = {}
        self._handles: list[HookHandle] = []
        self._frozen: list[nn.Parameter] = []

    @property
    def active(self) -> bool:
        """Whether any adapter in training takes part."""
        return bool(self._handles)

    def clear(self) -> None:
        """Take every hook away."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def forget(self, names: Sequence[str]) -> None:
        """Let adapters go; with the last one, the model's parameters ask for gradients as they did."""
        for name in names:
            self.held.pop(name, None)
        if not self.held:
            for parameter in self._frozen:
                parameter.requires_grad_(True)
            self._frozen.clear()

    def record(self) -> TrainableRecord:
        """Note what is held, for :meth:`put_back`."""
        return TrainableRecord(dict(self.held), tuple(self._frozen))

    def put_back(self, record: TrainableRecord) -> None:
        """Hold what was recorded, and let the same parameters ask for no gradient."""
        kept = {id(parameter) for parameter in record.frozen}
        for parameter in self._frozen:
            if id(parameter) not in kept:
                parameter.requires_grad_(True)
        for parameter in record.frozen:
            parameter.requires_grad_(False)
        self.held, self._frozen = dict(record.held), list(record.frozen)

    def take(self, name: str, trained: Trained, roots: Sequence[nn.Module]) -> None:
        """
        Take an adapter that is to be trained.

        Args:
            name: Its name.
            trained: Its parameters.
            roots: The components that it reaches, whose own parameters ask for no gradient from now on.
        """
        self.held[name] = trained
        for root in roots:
            for parameter in root.parameters():
                if parameter.requires_grad:
                    self._frozen.append(parameter)
                    parameter.requires_grad_(False)

    def enter(
        self, layers: Sequence[tuple[BoundLayer, Clean, float, float]], roots: Mapping[str, nn.Module]
    ) -> None:
        """
        Stand beside modules.

        Args:
            layers: Layers of adapters in training, each with its clean base (out, in, *kernel), weight and dropout.
            roots: The components.

        Raises:
            PipelineStateError: When a change other than a pair's is for a weight that is packed.
        """
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
                beside = by_module.setdefault(id(module), Beside(module))
                beside.add(live.attribute, layer.weights, clean, gain, dropout, transposed=live.transposed)
        for beside in by_module.values():
            beside.check()
        for beside in by_module.values():
            self._handles.append(hook_output(beside.module, beside, first=True))


class Beside:
    """
    A forward hook that gives a module what its adapters in training make of it.

    Args:
        module: The module.
    """

    def __init__(self, module: nn.Module) -> None:
        """Start with no adapter."""
        self.module = module
        self._pairs: list[tuple[LowRank, float, float]] = []
        self._products: list[tuple[LayerWeights, Clean, float]] = []
        self._others: list[tuple[str, LayerWeights, Clean, float, bool]] = []

    def add(
        self,
        attribute: str,
        weights: LayerWeights,
        clean: Clean,
        gain: float,
        dropout: float,
        *,
        transposed: bool,
    ) -> None:
        """Take an adapter's part of one of the module's parameters."""
        kind = layer_kind(self.module) if attribute == "weight" else None
        if type(weights) is LowRank and weights.mid is None and kind == "linear":
            self._pairs.append((weights, gain, dropout))
        elif dropout:
            raise PipelineStateError(
                f"lora_dropout = {dropout} on {type(self.module).__name__} ({'+'.join(weights.algorithms)}): inputs are "
                "dropped of pairs on linear layers only; set it to 0"
            )
        elif kind == "linear":
            self._products.append((weights, clean, gain))
        else:
            self._others.append((attribute, weights, clean, gain, transposed))

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
        if self._others:
            output = standing_in(module, self._weights(module)).forward(*args)
        for weights, clean, gain in self._products:
            output = output + self._product(module, args[0], weights, clean, gain).to(output.dtype)
        for pair, gain, dropout in self._pairs:
            x = args[0].to(pair.down.dtype)
            x = functional.dropout(x, dropout, module.training) if dropout else x
            part = functional.linear(
                functional.linear(x, pair.down.flatten(1)), pair.up.flatten(1), pair.up_bias
            )
            output = output + (part * (gain * pair.scale)).to(output.dtype)
        return output

    @staticmethod
    def _product(
        module: nn.Module, x: torch.Tensor, weights: LayerWeights, clean: Clean, gain: float
    ) -> torch.Tensor:
        """Return what a change adds to a linear layer's output."""
        base = _wide(clean().to(x.device))
        bias = getattr(module, "bias", None)
        return functional.linear(
            x.to(base.dtype),
            weights.delta(base, gain),
            weights.bias_delta(None if bias is None else _wide(bias), gain),
        )

    def _weights(self, module: nn.Module) -> dict[str, torch.Tensor]:
        """Return the module's parameters with the changes in them."""
        found: dict[str, torch.Tensor] = {}
        for attribute, weights, clean, gain, transposed in self._others:
            live = found.get(attribute, getattr(module, attribute))
            base = _wide(clean().to(live.device))
            change = weights.delta(base, gain)
            found[attribute] = live + (change.T if transposed else change).to(live.dtype)
            bias = found.get("bias", getattr(module, "bias", None)) if attribute == "weight" else None
            moved = weights.bias_delta(bias, gain) if attribute == "weight" else None
            if moved is not None:
                found["bias"] = moved if bias is None else bias + moved.to(bias.dtype)
        return found


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.dtype.itemsize > 2 else tensor.float()
