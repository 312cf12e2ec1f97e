"""
Changes as moulds: everything but the values of tensors, which are told by their places in a file's data section.

Files of one trainer have the same tensors at the same places. What their names and shapes mean is worked out for the first
of them; the others are poured into its moulds.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from lora_mixer.algorithms.base import LayerWeights

if TYPE_CHECKING:
    from collections.abc import Callable

    from lora_mixer.algorithms.rows import RowCut


class NoMouldError(Exception):
    """A change cannot be told by shapes and places alone."""


class Place(NamedTuple):
    """
    Where a tensor lies in a data section.

    Attributes:
        dtype: Its dtype.
        shape: Its shape.
        stride: Its strides, in numbers of that dtype.
        offset: Where it begins, likewise.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    @property
    def bytes(self) -> int:
        """Its size."""
        size = self.dtype.itemsize
        for n in self.shape:
            size *= n
        return size


class TensorPlaces:
    """
    The different places that the tensors of a set of changes have.

    Example:
        >>> section = torch.arange(6, dtype=torch.uint8)
        >>> places = TensorPlaces(section)
        >>> places.of(section[2:4]), places.of(section.view(2, 3).T), places.of(section[2:4])
        (0, 1, 0)
        >>> Section(places, section + 10)[1]
        tensor([[10, 13],
                [11, 14],
                [12, 15]], dtype=torch.uint8)
    """

    def __init__(self, section: torch.Tensor, like: TensorPlaces | None = None) -> None:
        """Take the data section (uint8) that tensors are views of, and the places that are known of one like it."""
        self._address = section.untyped_storage().data_ptr()
        self._known: dict[Place, int] = {} if like is None else dict(like._known)  # noqa: SLF001
        self._of: dict[int, tuple[torch.Tensor, int]] = {}
        self.all: list[Place] = [] if like is None else list(like.all)

    def of(self, tensor: torch.Tensor) -> int:
        """
        Return the number of a tensor's place.

        Raises:
            NoMouldError: When it lies elsewhere: it was computed from what the file holds.
        """
        seen = self._of.get(id(tensor))
        if seen is not None:
            return seen[1]
        if tensor.is_meta or tensor.untyped_storage().data_ptr() != self._address:
            raise NoMouldError
        place = Place(tensor.dtype, tensor.shape, tensor.stride(), int(tensor.storage_offset()))
        number = self._known.setdefault(place, len(self.all))
        if number == len(self.all):
            self.all.append(place)
        self._of[id(tensor)] = (tensor, number)
        return number

    def settle(self) -> None:
        """Let go of the tensors that were looked at."""
        self._of.clear()


class Section:
    """
    The tensors at places of one data section, each made when it is asked for.

    Args:
        places: The places.
        raw: The data section (uint8), wherever it lies.
    """

    def __init__(self, places: TensorPlaces, raw: torch.Tensor) -> None:
        """Make none yet."""
        self._places = places.all
        self._made: list[torch.Tensor | None] = [None] * len(places.all)
        self._typed: dict[torch.dtype, torch.Tensor] = {}
        self._raw = raw

    def typed(self, dtype: torch.dtype) -> torch.Tensor:
        """Return the data section as numbers of a dtype."""
        typed = self._typed.get(dtype)
        if typed is None:
            size = dtype.itemsize
            typed = self._typed[dtype] = self._raw[: len(self._raw) // size * size].view(dtype)
        return typed

    def __getitem__(self, number: int) -> torch.Tensor:
        """Return the tensor at a place."""
        made = self._made[number]
        if made is None:
            place = self._places[number]
            made = self.typed(place.dtype).as_strided(place.shape, place.stride, place.offset)
            self._made[number] = made
        return made


@cache
def _fields(kind: Any) -> tuple[str, ...]:
    """Return the names of an algorithm's fields; files have thousands of modules, which are asked again and again."""
    return tuple(one.name for one in dataclasses.fields(kind))


@dataclass(frozen=True)
class Mould:
    """
    A change without its values.

    Attributes:
        kind: Its class.
        plain: The fields that hold no tensors.
        tensors: Names of fields, and the numbers of their places.
        parts: Names of fields that hold other changes, and the moulds of these.
        lists: The same of those that hold several.
    """

    kind: type[LayerWeights]
    plain: dict[str, Any]
    tensors: tuple[tuple[str, int], ...]
    parts: tuple[tuple[str, Mould], ...] = ()
    lists: tuple[tuple[str, tuple[Mould, ...]], ...] = field(default=())

    @classmethod
    def of(cls, weights: LayerWeights, places: TensorPlaces) -> Mould:
        """
        Take the mould of a change whose tensors are views of a data section.

        Raises:
            NoMouldError: When its values have a part in more than its tensors.
        """
        if not vars(type(weights)).get(
            "told_by_shapes"
        ):  # said by the class itself: what it inherits says nothing
            raise NoMouldError
        plain: dict[str, Any] = {}
        tensors: list[tuple[str, int]] = []
        parts: list[tuple[str, Mould]] = []
        lists: list[tuple[str, tuple[Mould, ...]]] = []
        for name in _fields(type(weights)):
            value = getattr(weights, name)
            if isinstance(value, torch.Tensor):
                tensors.append((name, places.of(value)))
            elif isinstance(value, LayerWeights):
                parts.append((name, cls.of(value, places)))
            elif isinstance(value, tuple) and any(isinstance(part, LayerWeights) for part in value):
                lists.append((name, tuple(cls.of(part, places) for part in value)))
            else:
                plain[name] = value
        return cls(type(weights), plain, tuple(tensors), tuple(parts), tuple(lists))

    def fill(self, section: Callable[[int], torch.Tensor]) -> LayerWeights:
        """
        Return the change with the tensors of a data section.

        Args:
            section: Gives the tensor at each place.
        """
        made: LayerWeights = object.__new__(self.kind)
        held = made.__dict__  # as dataclasses fill it, in a third of the time
        held.update(self.plain)
        for name, place in self.tensors:
            held[name] = section(place)
        for name, part in self.parts:
            held[name] = part.fill(section)
        for name, several in self.lists:
            held[name] = tuple([part.fill(section) for part in several])
        return made


@dataclass(frozen=True)
class CutMould:
    """
    A part of a fused layer that no view of a file holds, such as rows in another order: cut anew for each file.

    Attributes:
        whole: The mould of the file's layer.
        cut: The rows.
    """

    whole: Mould
    cut: RowCut

    def fill(self, section: Callable[[int], torch.Tensor]) -> LayerWeights:
        """Return the part with the tensors of a data section."""
        return self.cut.of(self.whole.fill(section))
