"""
Projections that diffusers has fused (``pipe.fuse_qkv_projections``): layers that are others laid side by side.

``fuse_projections`` of an attention copies ``to_q``, ``to_k`` and ``to_v`` into one layer ``to_qkv``, which then computes
in their place. Adapters stay bound to the three. Where their weights are rewritten the fused layer is copied anew, which
makes it the base again, bit for bit, when they are; what runs beside them runs beside its parts of the fused output. A
layer that is fused while something stands beside its parts has it from its first call on.
"""

from __future__ import annotations

import operator
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.autograd.graph import increment_version

from lora_mixer.engines.hooks import has_hooks, hook_output, output_hooks
from lora_mixer.engines.modes import writing
from lora_mixer.errors import PipelineStateError
from lora_mixer.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from torch import nn

    from lora_mixer.binding.layers import BoundLayers

_PARTS: Mapping[str, tuple[str, ...]] = {
    "to_qkv": ("to_q", "to_k", "to_v"),
    "to_kv": ("to_k", "to_v"),
    "to_added_qkv": ("add_q_proj", "add_k_proj", "add_v_proj"),
    "to_added_kv": ("add_k_proj", "add_v_proj"),
}
"""Names of fused layers, and what they are made of."""

_KEY = "_lora_mixer_fused"
"""Where a fused layer has what takes its hook away."""

_LEAVES = frozenset(leaf for parts in _PARTS.values() for leaf in parts)


class FusedHook:
    """
    The forward hook of a fused layer: each part of its output gets what hooks add to the part's own layer.

    Args:
        parts: The layers that were fused, in order.
    """

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        """Note the layers; the hooks that run are those that stand on them then."""
        self.parts = list(parts)
        self.widths = [int(part.out_features) for part in parts]  # type: ignore[arg-type]

    def __call__(
        self, _module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor
    ) -> torch.Tensor:
        """Run the hooks of each part on its rows: (..., sum of widths)."""
        pieces = []
        for part, piece in zip(self.parts, torch.split(output, self.widths, dim=-1), strict=True):
            changed = piece  # (..., width)
            for hook in output_hooks(part):
                changed = hook(part, args, changed)
            pieces.append(changed)
        return torch.cat(pieces, dim=-1)  # (..., sum of widths)


class FusedProjections:
    """Keeps fused layers what their parts are, for the attentions whose projections adapters change."""

    def __init__(self) -> None:
        """Start with none."""
        self._holders: dict[int, nn.Module] = {}  # attentions that have, or may get, fused layers
        self._leaves: list[nn.Module] = []  # the projections of these
        self._known: tuple[BoundLayers, ...] = ()  # the layers that holders were looked for
        self._wanted: dict[str, set[int]] = {}  # the projections among these, by component
        self._roots: list[nn.Module] = []
        self._followed: list[tuple[nn.Module, list[nn.Module]]] = []  # in step before the last change
        self._standing: list[nn.Module] = []

    def find(self, adapters: Iterable[BoundLayers], components: Mapping[str, nn.Module]) -> None:
        """Find the attentions whose projections are among the layers of adapters, unless these are known."""
        known = tuple(adapters)
        if len(known) == len(self._known) and all(map(operator.is_, known, self._known)):
            return
        wanted: dict[str, set[int]] = {}
        for layers in known:
            for part, modules in layers.named(_LEAVES).items():
                wanted.setdefault(part, set()).update(modules)
        self._known = known
        roots = [components[part] for part in wanted]
        same = wanted == self._wanted and len(roots) == len(self._roots)
        if same and all(map(operator.is_, roots, self._roots)):
            return
        self._wanted, self._roots = wanted, roots
        self._holders = {
            id(holder): holder
            for part, modules in wanted.items()
            for holder in components[part].modules()
            if not isinstance(holder, torch.jit.ScriptModule)  # which has no dictionaries
            and not _LEAVES.isdisjoint(holder._modules)  # noqa: SLF001 -- most modules hold none
            and any(id(holder._modules.get(leaf)) in modules for leaf in _LEAVES)  # noqa: SLF001
        }
        self._leaves = [
            child
            for holder in self._holders.values()
            for leaf, child in holder._modules.items()  # noqa: SLF001
            if leaf in _LEAVES and child is not None
        ]

    def check(self) -> None:
        """
        Look whether fused layers still are their parts, before any of those is written.

        Raises:
            PipelineStateError: When one that is in use holds something else: copying would lose it.
        """
        odd = [
            holder
            for holder, fused, parts in self._fused()
            if _in_use(holder) and _rewritable(fused, parts) and not _same(fused, parts)
        ]
        if odd:
            places = [self._place(holder) for holder in odd]
            raise PipelineStateError(
                f"the fused projections of {len(odd)} modules ({type(odd[0]).__name__}) hold something else than what they were "
                "fused from, and adapters work on the latter: call pipe.unfuse_qkv_projections() first",
                component=places[0][0],
                key=places[0][1],
                problems=[
                    Problem(f"{component}.{path}", "holds something else than what it was fused from")
                    for component, path in places
                ],
            )

    def _place(self, holder: nn.Module) -> tuple[str, str]:
        """Return the component of a module, and its path there."""
        return next(
            (component, path)
            for component, root in zip(self._wanted, self._roots, strict=True)
            for path, module in root.named_modules()
            if module is holder
        )

    def rewritable(self) -> list[tuple[nn.Module, list[nn.Module]]]:
        """Return the fused layers that can be copied anew, and the parts of each."""
        return [(fused, parts) for _, fused, parts in self._fused() if _rewritable(fused, parts)]

    def in_step(self) -> list[tuple[nn.Module, list[nn.Module]]]:
        """Return those that are their parts now, for :meth:`copy` after the parts were written."""
        self._followed = [(fused, parts) for fused, parts in self.rewritable() if _same(fused, parts)]
        return self._followed

    def copy_again(self) -> None:
        """Copy those anew that were in step before a change that failed."""
        self.copy(self._followed)

    @staticmethod
    def copy(layers: Sequence[tuple[nn.Module, list[nn.Module]]]) -> None:
        """Copy the parts of fused layers anew."""
        for fused, parts in layers:
            for name, live in fused._parameters.items():  # noqa: SLF001
                if live is None:
                    continue
                with writing(live):
                    live.data.copy_(_joined(parts, name))  # (sum of out, in), or (sum of out,)
                increment_version(live)

    def stand(self) -> None:
        """Let fused layers, also those to come, have what stands beside their parts now."""
        any_has = any(
            map(has_hooks, self._leaves)
        )  # nearly always none has, and asking each costs a millisecond
        self._standing = [holder for holder in self._holders.values() if any_has and _has_hooks(holder)]
        for holder in self._standing:
            _attach(holder)
            if hasattr(holder, "fuse_projections"):
                holder.__dict__["fuse_projections"] = partial(_fuse, holder)

    def clear(self) -> None:
        """Take away what stands beside fused layers."""
        for holder in self._standing:
            holder.__dict__.pop("fuse_projections", None)
            _detach(holder)
        self._standing = []

    def _fused(self) -> Iterator[tuple[nn.Module, nn.Module, list[nn.Module]]]:
        for holder in self._holders.values():
            for fused, parts in fused_layers(holder):
                yield holder, fused, parts


def fused_layers(holder: nn.Module) -> list[tuple[nn.Module, list[nn.Module]]]:
    """Return the fused layers of an attention, and the parts of each."""
    children: Mapping[str, Any] = holder._modules  # noqa: SLF001
    if _PARTS.keys().isdisjoint(children):
        return []  # nearly always
    return [
        (children[name], [children[leaf] for leaf in leaves])
        for name, leaves in _PARTS.items()
        if children.get(name) is not None and all(children.get(leaf) is not None for leaf in leaves)
    ]


def _fuse(holder: Any, *args: Any, **kwargs: Any) -> Any:
    """Fuse as the class does while something stands beside the parts: it stands beside the new layers, too."""
    _detach(holder)
    result = type(holder).fuse_projections(holder, *args, **kwargs)
    _attach(holder)
    return result


def _attach(holder: nn.Module) -> None:
    for fused, parts in fused_layers(holder):
        if any(output_hooks(part) for part in parts):
            fused.__dict__[_KEY] = hook_output(fused, FusedHook(parts))


def _detach(holder: nn.Module) -> None:
    for fused, _ in fused_layers(holder):
        handle = fused.__dict__.pop(_KEY, None)
        if handle is not None:
            handle.remove()


def _has_hooks(holder: nn.Module) -> bool:
    children: Mapping[str, Any] = holder._modules  # noqa: SLF001
    return any(
        leaf in _LEAVES and child is not None and output_hooks(child) for leaf, child in children.items()
    )


def _in_use(holder: nn.Module) -> bool:
    """Tell whether an attention computes by its fused layers: older classes keep them after they are unfused."""
    if "Fused" in type(getattr(holder, "processor", None)).__name__:
        return True
    return bool(getattr(holder, "fused_projections", False)) and hasattr(holder, "unfuse_projections")


def _rewritable(fused: nn.Module, parts: Sequence[nn.Module]) -> bool:
    """Tell whether all are plain tensors in one place."""
    weights: list[Any] = [layer._parameters.get("weight") for layer in (fused, *parts)]  # noqa: SLF001
    first = weights[0]
    return all(
        weight is not None
        and type(weight.data) is torch.Tensor
        and weight.device == first.device != torch.device("meta")
        and weight.dtype == first.dtype
        for weight in weights
    )


def _same(fused: nn.Module, parts: Sequence[nn.Module]) -> bool:
    return all(
        torch.equal(live.data, _joined(parts, name))
        for name, live in fused._parameters.items()  # noqa: SLF001
        if live is not None
    )


def _joined(parts: Sequence[nn.Module], name: str) -> torch.Tensor:
    """Lay the weights (out, in) or biases (out,) of parts one below the other."""
    values: list[Any] = [part._parameters[name] for part in parts]  # noqa: SLF001
    held: list[torch.Tensor] = [value.data for value in values]
    if held[0].dtype.itemsize == 2:  # autocast refuses halves of another type than its own
        return torch.cat([each.view(torch.int16) for each in held]).view(held[0].dtype)
    return torch.cat(held)  # (sum of out, in), or (sum of out,)
