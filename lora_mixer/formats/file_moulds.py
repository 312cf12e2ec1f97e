"""
What a file's header means, worked out once for all files that have the same one.

Names and shapes are looked at for the first file of a kind; from the next one the single numbers among its tensors (alphas,
scales) have to be equal, too, and what is left are the tensors' values.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, overload

import torch

from lora_mixer.adapter import Adapter, AdapterLayer
from lora_mixer.algorithms.moulds import Mould, NoMouldError, Section, TensorPlaces
from lora_mixer.formats.header import ITEM_BYTES
from lora_mixer.problem import NoteKind

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lora_mixer.formats.describing import Modules
    from lora_mixer.formats.fronts import KeyTarget
    from lora_mixer.formats.header import Header, TensorSpec
    from lora_mixer.formats.peft_config import ScaleRule
    from lora_mixer.problem import Remark, UnusedReason

_KEPT = 8
"""Kinds of files that are kept; a kind is a few thousand small objects."""
_WASTE = 1.5
"""A file of which this times less is used is not held whole."""


@dataclass(eq=False)
class FileMould:
    """
    What all files of one kind have in common.

    Attributes:
        table: Their tensors' names, dtypes, shapes and places.
        rules: Their rules of scale.
        numbers: The positions of the bytes of single numbers.
        values: These bytes.
        layers: Each layer's target, mould and keys.
        places: The places of the layers' tensors.
        facts: What a description says of the layers.
        layouts: The layouts of the keys.
        dtypes: The dtypes of the layers' tensors.
        size: Their bytes.
        unused: Keys that no layer uses.
        notes: Remarks that go by names, shapes and single numbers.
    """

    table: Mapping[str, TensorSpec]
    rules: Mapping[str | None, ScaleRule]
    numbers: torch.Tensor
    values: torch.Tensor
    layers: Sequence[tuple[KeyTarget, Mould, tuple[str, ...]]]
    places: TensorPlaces
    facts: Modules
    layouts: set[str]
    dtypes: set[str]
    size: int
    unused: Mapping[str, Remark[UnusedReason]]
    notes: tuple[Remark[NoteKind], ...]

    def fits(
        self, table: Mapping[str, TensorSpec], rules: Mapping[str | None, ScaleRule], raw: torch.Tensor
    ) -> bool:
        """Say whether a file is of this kind."""
        return (
            (self.table is table or (len(self.table) == len(table) and self.table == table))
            and self.rules == rules
            and torch.equal(raw[self.numbers], self.values)
        )

    def each(self, raw: torch.Tensor) -> Iterator[AdapterLayer]:
        """Yield the layers of a file; ``raw`` is its data section."""
        section = Section(self.places, raw).__getitem__
        for target, mould, keys in self.layers:
            yield AdapterLayer(target, mould.fill(section), keys)


class MouldedLayers(Sequence[AdapterLayer]):
    """
    The layers of a file whose kind is known, made when they are asked for.

    Args:
        mould: The kind.
        raw: The file's data section.
        made: The layers, where they are made already.
    """

    def __init__(
        self, mould: FileMould, raw: torch.Tensor, made: tuple[AdapterLayer, ...] | None = None
    ) -> None:
        """Make none yet."""
        self.mould = mould
        self.raw = raw
        self._made = made

    @property
    def made(self) -> tuple[AdapterLayer, ...]:
        """All of them."""
        if self._made is None:
            self._made = tuple(self.mould.each(self.raw))
        return self._made

    @overload
    def __getitem__(self, place: int) -> AdapterLayer: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[AdapterLayer]: ...
    def __getitem__(self, place: int | slice) -> AdapterLayer | Sequence[AdapterLayer]:
        """Return one or several."""
        return self.made[place]

    def __iter__(self) -> Iterator[AdapterLayer]:
        """Yield them."""
        return iter(self.made)

    def __len__(self) -> int:
        """Count them."""
        return len(self.mould.layers)


_lock = threading.Lock()
_kept: list[FileMould] = []


def find_mould(header: Header, rules: Mapping[str | None, ScaleRule], raw: torch.Tensor) -> FileMould | None:
    """Return the mould of a file's kind, where there is one."""
    with _lock:
        known = list(_kept)
    for mould in known:
        if mould.fits(header.tensors, rules, raw):
            with _lock:  # the last used comes first
                if mould in _kept:
                    _kept.remove(mould)
                    _kept.insert(0, mould)
            return mould
    return None


def forget_moulds() -> None:
    """Forget all kinds of files."""
    with _lock:
        _kept.clear()


def keep_mould(
    adapter: Adapter,
    header: Header,
    rules: Mapping[str | None, ScaleRule],
    raw: torch.Tensor,
    *,
    facts: Modules,
    layouts: set[str],
) -> Adapter:
    """
    Take the mould of what was read from a file, and keep it for the next one of its kind.

    Returns:
        The adapter with layers that know their mould; itself where there is none to take.
    """
    places = TensorPlaces(raw)
    try:
        layers = [(layer.target, Mould.of(layer.weights, places), layer.keys) for layer in adapter.layers]
    except NoMouldError:
        return adapter
    places.settle()
    held = sum(place.bytes for place in places.all)
    if held * _WASTE < len(raw):
        return adapter
    single = (spec for spec in header.tensors.values() if spec.end - spec.start == ITEM_BYTES[spec.dtype])
    numbers = torch.tensor(
        [byte for spec in single for byte in range(spec.start, spec.end)], dtype=torch.int64
    )
    mould = FileMould(
        header.tensors,
        rules,
        numbers,
        raw[numbers].clone(),
        layers,
        places,
        facts,
        layouts,
        set(adapter.info.dtypes),
        adapter.info.bytes,
        adapter.unused,
        tuple(note for note in adapter.notes if note.kind is not NoteKind.ALL_ZERO),
    )
    with _lock:
        _kept.insert(0, mould)
        del _kept[_KEPT:]
    return replace(adapter, layers=MouldedLayers(mould, raw, tuple(adapter.layers)))
