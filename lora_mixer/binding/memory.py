"""What was worked out of a pipeline's modules, for as long as they are what they were then."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch

from lora_mixer.algorithms.moulds import Mould, NoMouldError, Section
from lora_mixer.binding.bound_moulds import BoundMould, MouldedBound
from lora_mixer.binding.index import ModuleIndex
from lora_mixer.formats.file_moulds import MouldedLayers

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

    from lora_mixer.adapter import Adapter
    from lora_mixer.algorithms import LayerWeights
    from lora_mixer.binding.bound_moulds import HasPattern
    from lora_mixer.binding.layers import BoundLayer
    from lora_mixer.binding.report import MatchReport
    from lora_mixer.formats.file_moulds import FileMould
    from lora_mixer.problem import NoteKind, Remark

_KEPT = 8
"""Bindings that are kept."""


class Structure:
    """
    The modules and parameters of some components, by which a change of any is noticed.

    Args:
        components: The components.
    """

    def __init__(self, components: Mapping[str, nn.Module]) -> None:
        """Note all modules, their classes, and what each of them holds by name."""
        self._components = dict(components)
        # what torch.jit made keeps no dictionaries, and no adapter changes it
        self._modules = [
            module
            for root in components.values()
            for module in root.modules()
            if not isinstance(module, torch.jit.ScriptModule)
        ]
        self._children = [module._modules for module in self._modules]  # noqa: SLF001
        self._parameters = [module._parameters for module in self._modules]  # noqa: SLF001
        self._seen = self._look()
        self._shapes = self._measure()

    def _look(self) -> tuple[list[Any], ...]:
        return (
            [*map(type, self._modules)],
            [*chain.from_iterable(self._children)],
            [*map(id, chain.from_iterable(map(dict.values, self._children)))],
            [*chain.from_iterable(self._parameters)],
            [*map(id, chain.from_iterable(map(dict.values, self._parameters)))],
        )

    def _measure(self) -> list[Any]:
        held = chain.from_iterable(map(dict.values, self._parameters))
        return [None if parameter is None else parameter.shape for parameter in held]

    def stands(self, components: Mapping[str, nn.Module]) -> bool:
        """Say whether components are these, module by module."""
        return (
            self._components.keys() == components.keys()
            and all(components[part] is root for part, root in self._components.items())
            and self._look() == self._seen
        )

    @property
    def is_as_large(self) -> bool:
        """Whether all parameters have the shapes that they had."""
        return self._measure() == self._shapes


@dataclass(frozen=True)
class KnownBinding:
    """
    A binding without tensors.

    Attributes:
        file: The kind of its file.
        asked: What else it went by: the component that was asked for, the one that the file names, the base that it names.
        bound: Its layers.
        report: What was found; its notes are those that go by names and shapes.
        base: The family that it is for.
        apart: The change whose values tell whether parts of fused layers were trained apart, and the rows of these.
    """

    file: FileMould
    asked: tuple[str | None, ...]
    bound: BoundMould
    report: MatchReport
    base: str
    apart: tuple[Mould, Sequence[int]] | None


class ModelMemory:
    """
    Indexes of components, and bindings of kinds of files.

    What is in it goes by the modules as they were; all of it is forgotten as soon as any of them is another one.
    """

    def __init__(self) -> None:
        """Know nothing."""
        self._structure: Structure | None = None
        self._indexes: dict[str, ModuleIndex] = {}
        self._bindings: list[KnownBinding] = []

    def _look(self, components: Mapping[str, nn.Module]) -> None:
        """Compare a pipeline's modules with what is known."""
        if self._structure is None or not self._structure.stands(components):
            self._structure = Structure(components)
            self._indexes.clear()
            self._bindings.clear()
        elif not self._structure.is_as_large:
            self._structure = Structure(components)
            self._bindings.clear()

    def index(self, part: str, root: nn.Module) -> ModuleIndex:
        """Return the index of a component; nothing is decided in it for any file."""
        known = self._indexes.get(part)
        if known is None:
            known = self._indexes[part] = ModuleIndex(part, root)
        known.begin()
        return known

    def find(
        self, adapter: Adapter, components: Mapping[str, nn.Module], component: str | None
    ) -> tuple[KnownBinding, MouldedLayers] | None:
        """Return what is known of an adapter's binding to a pipeline's modules as they are now."""
        self._look(components)
        layers = adapter.layers
        if isinstance(layers, MouldedLayers):
            asked = _asked(adapter, component)
            for known in self._bindings:
                if known.file is layers.mould and known.asked == asked:
                    return known, layers
        return None

    def keep(
        self,
        adapter: Adapter,
        component: str | None,
        layers: Sequence[BoundLayer],
        shares: Sequence[HasPattern | None],
        report: MatchReport,
        base: str,
        apart: tuple[LayerWeights, Sequence[int]] | None,
    ) -> Sequence[BoundLayer]:
        """
        Keep a binding that went by names and shapes alone, where its file is of a kind that is known.

        Returns:
            The layers, as those of the next file of this kind will come; the same where nothing is kept.
        """
        file_layers = adapter.layers
        if not isinstance(file_layers, MouldedLayers):
            return layers
        try:
            bound = BoundMould.of(layers, shares, file_layers)
            mould = None if apart is None else (Mould.of(apart[0], bound.places), apart[1])
        except NoMouldError:
            return layers
        bound.places.settle()
        self._bindings.insert(
            0, KnownBinding(file_layers.mould, _asked(adapter, component), bound, report, base, mould)
        )
        del self._bindings[_KEPT:]
        return MouldedBound(bound, file_layers.raw)


def _asked(adapter: Adapter, component: str | None) -> tuple[str | None, ...]:
    return component, adapter.component, adapter.info.base


def poured(
    known: KnownBinding, layers: MouldedLayers
) -> tuple[MouldedBound, tuple[LayerWeights, Sequence[int]] | None]:
    """Return a binding's layers for a file, and what tells whether parts of fused layers were trained apart."""
    bound = MouldedBound(known.bound, layers.raw)
    if known.apart is None:
        return bound, None
    mould, heights = known.apart
    return bound, (mould.fill(Section(known.bound.places, layers.raw).__getitem__), heights)


def named(report: MatchReport, adapter: Adapter, name: str, notes: Sequence[Remark[NoteKind]]) -> MatchReport:
    """Return a report as that of an adapter."""
    return replace(
        report, adapter_name=name, source=adapter.info.source, notes=(*adapter.notes, *notes, *report.notes)
    )
