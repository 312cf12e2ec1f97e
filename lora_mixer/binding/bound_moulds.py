"""Bound layers of files of one kind: which modules they change is worked out once, the tensors are each file's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, overload

import torch

from lora_mixer.algorithms.moulds import CutMould, Mould, NoMouldError, Section, TensorPlaces
from lora_mixer.binding.layers import BoundLayer, BoundLayers

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lora_mixer.algorithms import LayerWeights
    from lora_mixer.algorithms.rows import RowCut
    from lora_mixer.binding.index import LiveModule
    from lora_mixer.binding.layers import Siblings
    from lora_mixer.formats.file_moulds import FileMould, MouldedLayers


class HasPattern(Protocol):
    """What a layer of a file is to a module, as far as a mould needs it."""

    @property
    def pattern(self) -> tuple[LayerWeights, RowCut] | None:
        """The file's layer and what is cut from it; None where it is reshaped on the way."""


Span = tuple[torch.dtype, int, int]
"""Numbers of one dtype in a data section, from one up to another, in numbers of that dtype."""


@dataclass(eq=False)
class BoundMould:
    """
    The layers that all files of a kind change.

    Attributes:
        layers: Each live module, the mould of its change, and its siblings.
        places: The places of the tensors.
        spans: The numbers that have to be finite; None where these have to be looked for tensor by tensor.
        known: What has been worked out of bound layers, whoever's tensors they have.
    """

    layers: Sequence[tuple[LiveModule, Mould | CutMould, Siblings | None]]
    places: TensorPlaces
    spans: Sequence[Span] | None
    known: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        layers: Sequence[BoundLayer],
        shares: Sequence[HasPattern | None],
        file: MouldedLayers,
    ) -> BoundMould:
        """
        Take the mould of layers that are bound to a file's, or to what is cut from these.

        Raises:
            NoMouldError: When there is none, or a layer widens what it changes.
        """
        if any(layer.widening is not None for layer in layers):
            raise NoMouldError
        mould = file.mould
        places = TensorPlaces(file.raw, mould.places)
        whole = {
            id(layer.weights): known for layer, (_, known, _) in zip(file.made, mould.layers, strict=True)
        }  # most layers are bound as they are
        bound = [
            (
                layer.live,
                whole.get(id(layer.weights)) or _mould_of(layer.weights, share, places),
                layer.siblings,
            )
            for layer, share in zip(layers, shares, strict=True)
        ]
        places.settle()
        return cls(bound, places, _spans(mould))

    def fill(
        self, sections: Mapping[torch.device, Section], where: Sequence[torch.device]
    ) -> Iterator[BoundLayer]:
        """Yield the layers with tensors of data sections, each with that on its own device."""
        takes = {device: section.__getitem__ for device, section in sections.items()}
        for (live, mould, siblings), device in zip(self.layers, where, strict=True):
            made: BoundLayer = object.__new__(BoundLayer)
            made.__dict__.update(
                live=live, weights=mould.fill(takes[device]), siblings=siblings, widening=None
            )
            yield made


def _mould_of(weights: LayerWeights, share: HasPattern | None, places: TensorPlaces) -> Mould | CutMould:
    try:
        return Mould.of(weights, places)
    except NoMouldError:
        pattern = None if share is None else share.pattern
        if pattern is None:
            raise
    return CutMould(Mould.of(pattern[0], places), pattern[1])


def _spans(mould: FileMould) -> Sequence[Span] | None:
    """List the stretches of one dtype of floating point in a data section."""
    spans: list[Span] = []
    for spec in sorted(mould.table.values(), key=lambda spec: spec.start):
        dtype: torch.dtype = getattr(torch, spec.dtype)
        size = dtype.itemsize
        if not dtype.is_floating_point or spec.start == spec.end:
            continue
        if size == 1 or spec.start % size:
            return None
        first, last = spec.start // size, spec.end // size
        if spans and spans[-1][0] == dtype and spans[-1][2] == first:
            spans[-1] = (dtype, spans[-1][1], last)
        else:
            spans.append((dtype, first, last))
    return spans


class PouredLayers(BoundLayers):
    """
    Bound layers whose tensors are views of data sections that are a whole file each.

    Attributes:
        sections: The data section on each device that layers compute on.
        spans: As :class:`BoundMould` has them.
    """

    sections: Sequence[Section]
    spans: Sequence[Span] | None


class MouldedBound(Sequence[BoundLayer]):
    """
    Bound layers that are made when they are asked for; at once where they are to be.

    Args:
        mould: What they are but for their tensors.
        raw: The file's data section.
    """

    def __init__(self, mould: BoundMould, raw: torch.Tensor) -> None:
        """Make none yet."""
        self.mould = mould
        self.raw = raw
        self._made: PouredLayers | None = None

    @property
    def lives(self) -> list[LiveModule]:
        """The modules that they change."""
        return [live for live, _, _ in self.mould.layers]

    def pour(self, raws: Mapping[torch.device, torch.Tensor], where: Sequence[torch.device]) -> PouredLayers:
        """
        Make them.

        Args:
            raws: The file's data section on each device.
            where: The device of each layer.
        """
        sections = {device: Section(self.mould.places, raw) for device, raw in raws.items()}
        made = PouredLayers(self.mould.fill(sections, where))
        made.sections, made.spans = list(sections.values()), self.mould.spans
        made.share(self.mould.known)
        return made

    @property
    def made(self) -> PouredLayers:
        """All of them, where the file was read to."""
        if self._made is None:
            device = self.raw.device
            self._made = self.pour({device: self.raw}, [device] * len(self))
        return self._made

    @overload
    def __getitem__(self, place: int) -> BoundLayer: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[BoundLayer]: ...
    def __getitem__(self, place: int | slice) -> BoundLayer | Sequence[BoundLayer]:
        """Return one or several."""
        return self.made[place]

    def __iter__(self) -> Iterator[BoundLayer]:
        """Yield them."""
        return iter(self.made)

    def __len__(self) -> int:
        """Count them."""
        return len(self.mould.layers)
