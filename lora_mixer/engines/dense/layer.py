"""One module whose output is changed as a change of its weight would, while the weight stays what it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from lora_mixer.engines.compiling import while_traced
from lora_mixer.engines.denoiser.images import repeated_rows
from lora_mixer.engines.merged.tied_use import computed_with
from lora_mixer.engines.modes import exact_matmul, lasting
from lora_mixer.engines.offloaded import value_of
from lora_mixer.engines.products import product, weight_of
from lora_mixer.engines.side.support import layer_kind
from lora_mixer.errors import MixError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

    from lora_mixer.algorithms import LayerWeights
    from lora_mixer.algorithms.outputs import OutputChange
    from lora_mixer.binding.index import LiveModule


class DenseLayer:
    """
    A hook that gives a module the output that it would have with a mix in its weight.

    A linear layer gets it from its own output and inputs, so that packed weights do. Any other module computes with a weight of its
    own for each mix.

    Args:
        live: The module.
        parts: The changes, each with where its gain stands: adapter and place.
    """

    def __init__(self, live: LiveModule, parts: Sequence[tuple[LayerWeights, str, int]]) -> None:
        """Start with no mix."""
        self.live, self._parts = live, parts
        self._is_linear = layer_kind(live.module) == "linear" and not live.transposed
        self._kept: dict[tuple[float, ...], Any] = {}
        self._mixes: list[tuple[float, ...]] = []
        self._rows: torch.Tensor | None = None

    def show(self, gains: Sequence[Mapping[str, Sequence[float]]], rows: torch.Tensor | None) -> None:
        """
        Take the gains of a call.

        Args:
            gains: For each mix, by adapter, those of its layers.
            rows: The mix of each row of the batch; None where there is one for all.
        """
        self._mixes = [
            tuple(mix[name][place] if name in mix else 0.0 for _, name, place in self._parts) for mix in gains
        ]
        self._rows = torch.arange(len(gains)) if rows is None and len(gains) > 1 else rows
        self._kept = {mix: kept for mix, kept in self._kept.items() if mix in self._mixes}

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Return the output with the mixes' part."""
        if self._rows is None:
            mix = self._mixes[0]
            return self._changed(module, args, output, mix) if any(mix) else output
        owners = self._owners(int(output.shape[0]))
        total = output
        for number, mix in enumerate(self._mixes):
            if any(mix) and torch.compiler.is_compiling():  # a graph has no rows that are chosen by values
                chosen = (owners == number).view(-1, *[1] * (output.ndim - 1)).to(output.device)
                total = torch.where(chosen, self._changed(module, args, output, mix), total)
                continue
            mine = (owners == number).nonzero().flatten().to(output.device)
            if any(mix) and len(mine):
                inputs = tuple(
                    arg[mine.to(arg.device)] if isinstance(arg, torch.Tensor) else arg for arg in args
                )
                changed = self._changed(module, inputs, output[mine], mix)
                total = total.index_copy(0, mine, changed)
        return total

    def _owners(self, batch: int) -> torch.Tensor:
        """
        Return the mix of each row of a batch.

        Raises:
            MixError: When it cannot be told.
        """
        assert self._rows is not None  # noqa: S101 -- asked for where there are any
        rows = self._rows.cpu()
        owners = rows if len(rows) == batch else repeated_rows(rows, rows, len(rows), batch)
        if owners is None:
            raise MixError(
                f"got a batch of {batch} inside a call with {len(rows)} rows; rows cannot be told apart",
                key=f"{self.live.component}.{self.live.path}",
            )
        return owners.expand(batch)

    def _changed(
        self, module: nn.Module, args: tuple[Any, ...], output: torch.Tensor, mix: tuple[float, ...]
    ) -> torch.Tensor:
        self._work_out(mix)
        if not self._is_linear:
            result: torch.Tensor = computed_with(module, self._kept[mix], args, output)
            return result
        change, moved = self._kept[mix]
        x, plain = args[0], output
        if change.uses_own and (bias := value_of(module, "bias")) is not None:
            plain = output - bias.to(output)
        x = x.to(output.device) if x.device != output.device else x
        added: torch.Tensor = change.added(x, plain, lambda inputs: product(module, inputs))
        if moved is not None:
            added = added + moved.to(output.device)
        return output + added.to(output.dtype)

    @while_traced
    def _work_out(self, mix: tuple[float, ...]) -> bool:
        """Work out what a mix does, once for each mix; compilers look at what is kept only then."""
        if mix not in self._kept:
            module = self.live.module
            with lasting(), exact_matmul():  # a first call may be inside of autocast, later ones not
                self._kept[mix] = (
                    self._on_outputs(module, mix) if self._is_linear else self._weights(module, mix)
                )
        return True

    def _on_outputs(
        self, module: nn.Module, mix: tuple[float, ...]
    ) -> tuple[OutputChange, torch.Tensor | None]:
        """Return what a mix does to outputs, and its change of the bias."""
        shape = self.live.shape
        known: list[torch.Tensor] = []

        def base() -> torch.Tensor:
            if not known:  # one look for all adapters, and nothing of it is kept
                known.append(weight_of(module, shape))
            return known[0]

        changes = [
            weights.on_outputs(base, shape, gain)
            for (weights, _, _), gain in zip(self._parts, mix, strict=True)
            if gain
        ]
        change = changes[0]
        for other in changes[1:]:
            change = change.plus(other)
        return change, self._bias(module, mix)

    def _bias(self, module: nn.Module, mix: tuple[float, ...]) -> torch.Tensor | None:
        bias = value_of(module, "bias")
        wide = None if bias is None else bias.detach().float()
        moved = [
            change
            for (weights, _, _), gain in zip(self._parts, mix, strict=True)
            if gain and (change := weights.bias_delta(wide, gain)) is not None
        ]
        return torch.stack(moved).sum(0) if moved else None

    def _weights(self, module: nn.Module, mix: tuple[float, ...]) -> dict[str, torch.Tensor]:
        """Return the module's parameters with a mix in them."""
        live = value_of(module, self.live.attribute)
        live = self.live.weight if live is None else live  # computed by a parametrisation
        base = (live.T if self.live.transposed else live).detach()
        base = base if base.dtype.itemsize > 2 else base.float()
        total = base.clone()
        for (weights, _, _), gain in zip(self._parts, mix, strict=True):
            if gain:
                total += weights.delta(base, gain)
        tensors = {self.live.attribute: (total.T if self.live.transposed else total).to(live.dtype)}
        bias, moved = value_of(module, "bias"), self._bias(module, mix)
        if moved is not None:
            tensors["bias"] = moved.to(live.dtype) if bias is None else (bias.float() + moved).to(bias.dtype)
        return tensors


def refusal(live: LiveModule, *, packed: bool, rows: bool) -> str | None:
    """
    Say why no such layer can stand beside a module, or None.

    Args:
        live: The module or bare parameter.
        packed: Whether its weight cannot be read as a tensor.
        rows: Whether rows have mixes of their own.
    """
    if live.is_bare:
        return (
            "a bare parameter has no rows of a batch: its module groups them by what they are routed to"
            if rows
            else "a bare parameter has no output of its own"
        )
    kind = layer_kind(live.module)
    if kind is None and isinstance(live.module, torch.nn.modules.linear.NonDynamicallyQuantizableLinear):
        return "its module's forward is never called"
    if packed and (kind != "linear" or live.transposed):
        return "only linear layers give products with weights that cannot be read"
    return None
