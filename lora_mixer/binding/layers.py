"""The bound layers of one adapter, and what of them is asked for at every change of a mix."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from lora_mixer.algorithms import LayerWeights
    from lora_mixer.binding.index import LiveModule, Placement


@dataclass(frozen=True)
class Siblings:
    """
    The live modules that together are one layer of the file, for changes that look at all of its rows.

    Attributes:
        parts: Each module and its rows.
        total: Rows of the file's layer.
    """

    parts: tuple[Placement, ...]
    total: int


@dataclass(frozen=True)
class Widening:
    """
    More inputs than the live module has, which the module gets while the adapter has a part.

    Attributes:
        columns: The inputs that the file's layer has.
        root: The component, whose configuration says how many there are.
    """

    columns: int
    root: nn.Module


@dataclass(frozen=True)
class BoundLayer:
    """
    One module of the pipeline and what an adapter does to it.

    Attributes:
        live: The module, or a bare parameter.
        weights: The change of its rows.
        siblings: The whole layer of the file, where the change of these rows depends on the base of the others.
        widening: What the module has to become, where the file's layer has more inputs.
    """

    live: LiveModule
    weights: LayerWeights
    siblings: Siblings | None = None
    widening: Widening | None = None

    @property
    def columns(self) -> int | None:
        """The inputs that the module gets; None where it keeps its own."""
        return None if self.widening is None else self.widening.columns


class BoundLayers(tuple[BoundLayer, ...]):  # noqa: SLOT001 -- what is worked out needs a place
    """
    The layers of an adapter, which stay what they are; hundreds, of a handful of components.

    Example:
        >>> BoundLayers().spread({})
        []
    """

    @cached_property
    def _runs(self) -> tuple[tuple[str, int], ...]:
        """Each component with the number of layers in a row that are its."""
        names = (layer.live.component for layer in self)
        return tuple((name, sum(1 for _ in run)) for name, run in groupby(names))

    @cached_property
    def components(self) -> tuple[str, ...]:
        """The components that they are of, in their order."""
        return tuple(dict.fromkeys(name for name, _ in self._runs))

    @cached_property
    def widened(self) -> frozenset[tuple[str, str]]:
        """The component and path of each that gives its module more inputs."""
        return frozenset(
            (layer.live.component, layer.live.path) for layer in self if layer.widening is not None
        )

    @cached_property
    def places(self) -> tuple[tuple[str, str], ...]:
        """The component and path of each."""
        return tuple((layer.live.component, layer.live.path) for layer in self)

    def share(self, known: dict[str, Any]) -> None:
        """Have what was worked out of others that are of the same modules in the same order, or work it out for them."""
        if not known:
            known.update(_runs=self._runs, components=self.components, places=self.places, _named=self._named)
            known.update(widened=self.widened)
        self.__dict__.update(known)

    def named(self, leaves: frozenset[str]) -> Mapping[str, frozenset[int]]:
        """Return the identities of the modules whose paths end in one of some names, by component."""
        names = self._named.get(leaves)
        if names is None:
            table: dict[str, set[int]] = {}
            for layer in self:
                if layer.live.path.rpartition(".")[2] in leaves:
                    table.setdefault(layer.live.component, set()).add(id(layer.live.module))
            names = self._named[leaves] = {part: frozenset(paths) for part, paths in table.items()}
        return names

    @cached_property
    def _named(self) -> dict[frozenset[str], Mapping[str, frozenset[int]]]:
        return {}

    def spread(self, by_component: Mapping[str, float]) -> list[float]:
        """Return for each layer the number of its component."""
        numbers: list[float] = []
        for name, count in self._runs:
            numbers += [by_component[name]] * count
        return numbers
