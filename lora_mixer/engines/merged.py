"""
The merged engine: a mix is written into the weights themselves, so a step costs what the base costs.

All or nothing: if a write fails half-way, the mix from before is written again from the kept bases.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from lora_mixer.engines import grouped
from lora_mixer.engines.blend import Term, accumulator, bias_change, blend_weight, exact_matmul
from lora_mixer.engines.slots import BaseDevice, Slot, unsupported
from lora_mixer.errors import PipelineStateError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from torch import nn
    from torch.utils.hooks import RemovableHandle

    from lora_mixer.binding import BoundLayer

_SHOWN = 5


@dataclass
class Touched:
    """A module that adapters change: its weight, its bias if it has one, and whose base is held for it."""

    name: str
    module: nn.Module
    weight: Slot
    bias: Slot | None
    transposed: bool
    users: set[str] = field(default_factory=set)


class MergedEngine:
    """
    Writes mixes into weights and puts the base back.

    Args:
        keep_on: Where bases are kept: ``"device"`` beside the weights, ``"host"`` in (pinned) host memory.
    """

    def __init__(self, keep_on: BaseDevice = "device") -> None:
        """Start with nothing touched."""
        self._keep_on: BaseDevice = keep_on
        self._touched: dict[int, Touched] = {}  # by id of the parameter's module; modules are kept alive here
        self._active: dict[int, list[Term]] = {}
        self._hooks: dict[int, RemovableHandle] = {}

    def add(self, adapter: str, layers: Sequence[BoundLayer]) -> list[int]:
        """
        Note the modules that an adapter may change.

        Returns:
            A key for each layer, by which :meth:`apply` takes its terms; tied weights share one.

        Raises:
            PipelineStateError: When a weight cannot be rewritten (meta, quantised); nothing is noted then.
        """
        problems = [
            f"{layer.live.component}.{layer.live.path}: {reason}"
            for layer in layers
            if (reason := unsupported(layer.live.weight))
        ]
        _raise(problems)
        keys: list[int] = []
        tied = {id(entry.weight.parameter): key for key, entry in self._touched.items()}
        for layer in layers:
            live = layer.live
            key = tied.get(id(live.weight), id(live.module))
            if key not in self._touched:
                name = f"{live.component}.{live.path}"
                bias = getattr(live.module, "bias", None)
                self._touched[key] = Touched(
                    name,
                    live.module,
                    Slot(f"{name}.weight", live.module, "weight", self._keep_on),
                    Slot(f"{name}.bias", live.module, "bias", self._keep_on) if bias is not None else None,
                    live.transposed,
                )
                tied[id(live.weight)] = key
            self._touched[key].users.add(adapter)
            keys.append(key)
        return keys

    def remove(self, adapter: str, keep: Collection[int] = ()) -> None:
        """
        Forget an adapter's modules and free the bases that nobody needs; its terms must be gone from the weights.

        Args:
            adapter: Its name.
            keep: Keys of modules that it goes on using.
        """
        for key in [key for key, entry in self._touched.items() if adapter in entry.users and key not in keep]:
            entry = self._touched[key]
            entry.users.discard(adapter)
            if not entry.users:
                del self._touched[key]

    def apply(self, terms: Mapping[int, Sequence[Term]]) -> None:
        """
        Make the weights hold exactly this mix: the base where no terms are given.

        Args:
            terms: By module key; the order inside one list is the order of summation.

        Raises:
            PipelineStateError: When a weight cannot be worked on; nothing has been written then.
        """
        self._check()
        before = self._active
        try:
            self._write(terms)
        except BaseException:
            try:
                self._write(before)
            except BaseException as error:
                self._write({})
                msg = "writing a mix failed, and so did writing the one before; the base is back and no adapter is active"
                raise PipelineStateError(msg) from error
            raise

    def restore(self) -> None:
        """Put the base back, whatever state others left the weights in."""
        self._active = {}
        self._write({})

    def rebase(self) -> None:
        """Take what the weights hold now as the new base; no mix is active afterwards."""
        self._drop_hooks()
        self._active = {}
        for slot in self._slots():
            slot.rebase()

    def base_bytes(self) -> dict[str, int]:
        """Count the bytes of kept bases by device."""
        table: dict[str, int] = {}
        for slot in self._slots():
            if slot.base is not None:
                place = str(slot.base.device)
                table[place] = table.get(place, 0) + slot.base.numel() * slot.base.element_size()
        return table

    def _slots(self) -> list[Slot]:
        return [slot for entry in self._touched.values() for slot in (entry.weight, entry.bias) if slot is not None]

    def _check(self) -> None:
        _raise([problem for slot in self._slots() if (problem := slot.problem())])

    @torch.no_grad()
    def _write(self, terms: Mapping[int, Sequence[Term]]) -> None:
        self._drop_hooks()
        jobs: list[grouped.Job] = []
        with exact_matmul():
            for key, entry in self._touched.items():
                wanted = terms.get(key, ())
                # Inference tensors may only be written in inference mode.
                with torch.inference_mode(entry.weight.parameter.is_inference()):
                    self._write_weight(entry, wanted, jobs)
                    self._write_bias(key, entry, wanted)
            grouped.run(jobs)
        self._active = {key: list(value) for key, value in terms.items()}

    def _write_weight(self, entry: Touched, wanted: Sequence[Term], jobs: list[grouped.Job]) -> None:
        slot = entry.weight
        if not wanted:
            slot.restore()
            return
        base, live = slot.keep(), slot.live
        slot.blended = True
        if live.is_cuda and not entry.transposed and not live.is_inference():
            pairs = [term.weights.factors(tuple(live.shape)) for term in wanted]
            known = [pair for pair in pairs if pair is not None]
            if len(known) == len(pairs) and grouped.fits(live, base, known):
                gains = [term.gain * pair.scale for term, pair in zip(wanted, known, strict=True)]
                rows = live.shape[0]
                jobs.append(grouped.Job(live.view(rows, -1), base.view(rows, -1), known, gains))
                return
        blend_weight(live, base, wanted, transposed=entry.transposed)

    def _write_bias(self, key: int, entry: Touched, wanted: Sequence[Term]) -> None:
        slot = entry.bias
        if slot is None:
            change = bias_change(None, wanted)
            if change is not None:
                self._hooks[key] = entry.module.register_forward_hook(_adds(change))
            return
        if not wanted:
            slot.restore()
            return
        clean = slot.base if slot.base is not None else slot.live
        change = bias_change(clean, wanted)
        if change is None:
            slot.restore()
            return
        base, live = slot.keep(), slot.live
        slot.blended = True
        live.copy_(base.to(live.device, accumulator(live.dtype)) + change.to(live.device))

    def _drop_hooks(self) -> None:
        for handle in self._hooks.values():
            handle.remove()
        self._hooks.clear()


class _adds:  # noqa: N801 -- a function with state
    """A forward hook that adds a bias to a module that has none: its parameters and keys stay what they are."""

    def __init__(self, bias: torch.Tensor) -> None:
        self._bias = bias

    def __call__(self, module: nn.Module, args: object, output: torch.Tensor) -> torch.Tensor:
        channels_first = output.ndim > 2 and type(module).__name__.startswith("Conv") and not hasattr(module, "nf")  # noqa: PLR2004
        self._bias = self._bias.to(output.device)
        bias = self._bias.to(output.dtype)
        return output + (bias.view(-1, *[1] * (output.ndim - 2)) if channels_first else bias)


def _raise(problems: Sequence[str]) -> None:
    if problems:
        more = f"\n  and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        msg = "this pipeline cannot take adapters as it is:\n  " + "\n  ".join(problems[:_SHOWN]) + more
        raise PipelineStateError(msg)
