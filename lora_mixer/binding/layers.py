"""The bound layers of one adapter, and what of them is asked for at every change of a mix."""

from __future__ import annotations

from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING

from lora_mixer.binding.bind import BoundLayer

if TYPE_CHECKING:
    from collections.abc import Mapping


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
    def places(self) -> tuple[tuple[str, str], ...]:
        """The component and path of each."""
        return tuple((layer.live.component, layer.live.path) for layer in self)

    def spread(self, by_component: Mapping[str, float]) -> list[float]:
        """Give each layer the number of its component."""
        numbers: list[float] = []
        for name, count in self._runs:
            numbers += [by_component[name]] * count
        return numbers
