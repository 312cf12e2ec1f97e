"""
The gains of one component's side path: over images, adapters and layers, spread on the ranks of all layers at once.

A *part* is what one adapter adds beside one layer. Gains are few, (rows, parts), and are spread on ranks where the layers
lie: (rows, ranks of all layers). Where all rows have the same they are folded into B, all layers of one shape at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch

from lora_mixer.engines.denoiser.images import repeated_rows
from lora_mixer.engines.denoiser.places import Places
from lora_mixer.engines.modes import lasting
from lora_mixer.engines.side.masks import coverage, lay_out, scale_mask
from lora_mixer.errors import MixError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_mixer.algorithms import Factors

NOWHERE = Places()
"""Before any call."""


@dataclass(frozen=True)
class AdapterPart:
    """
    One adapter's part in one layer.

    Attributes:
        adapter: Its place among the adapters of the buffers.
        pair: Its factors.
        gains: Its constant gain for each image.
        place: Where the adapter has this layer, for gains that differ by layer.
    """

    adapter: int
    pair: Factors
    gains: Sequence[float]
    place: int = 0

    @property
    def rank(self) -> int:
        """The rank of the factors."""
        return self.pair.up.shape[1]


class GainedLayer(Protocol):
    """What the buffers need of a layer beside which adapters stand."""

    name: str
    span: slice
    off_picture: bool
    down: torch.Tensor
    gain: torch.Tensor
    alone: bool

    def load(self, parts: Sequence[AdapterPart]) -> None:
        """Take the parts' factors."""

    def fold(self) -> None:
        """Multiply the gains into B, where no stack does it."""

    def join(self, stacked: tuple[torch.Tensor, torch.Tensor] | None) -> None:
        """Be a part of what layers share again, after a copy: its B among those of a stack, as they are and folded."""


class Stack:
    """
    B of several layers of one shape, as they are and with gains folded in.

    Args:
        spans: Where each layer's ranks lie among all gains.
        out: Rows of each B.
        like: A tensor of their dtype, where they lie.
    """

    def __init__(self, spans: Sequence[slice], out: int, like: torch.Tensor) -> None:
        """Make both; all zeros."""
        ranks = [torch.arange(span.start, span.stop) for span in spans]
        self._places = torch.stack(ranks).to(like.device)  # (layers, rank)
        self.raw = torch.zeros(
            len(spans), out, len(ranks[0]), dtype=like.dtype, device=like.device
        )  # (layers, out, rank)
        self.folded = torch.zeros_like(self.raw)  # (layers, out, rank)

    @property
    def starts(self) -> list[int]:
        """Where each layer's ranks begin among all gains."""
        return [int(start) for start in self._places[:, 0].tolist()]

    def fold(self, gains: torch.Tensor) -> None:
        """
        Multiply gains into all B.

        Args:
            gains: (ranks of all layers,), fp32, where the stack lies.

        Example:
            >>> stack = Stack([slice(0, 1), slice(1, 2)], 1, torch.zeros(0))
            >>> stack.raw.fill_(1.0).shape
            torch.Size([2, 1, 1])
            >>> stack.fold(torch.tensor([2.0, 3.0]))
            >>> stack.folded.flatten().tolist()
            [2.0, 3.0]
        """
        torch.mul(self.raw, gains[self._places].unsqueeze(1), out=self.folded)  # (layers, 1, rank) on B


@dataclass(frozen=True)
class CallGains:
    """
    What holds for one call of a component.

    Attributes:
        shares: What the gains of each image's adapters are multiplied by, (images, adapters).
        choice: The same for single layers, by adapter: (images, layers of the adapter); where there is any.
        rows: The image of each row of the batch; None where all have one mix.
        places: How the picture lies in the call.
    """

    shares: Sequence[Sequence[float]]
    choice: Sequence[Sequence[Sequence[float]]] | None = None
    rows: torch.Tensor | None = None
    places: Places = NOWHERE


class GainBuffers:
    """
    Gains of one component.

    Args:
        folds: Whether all rows have the same gains, which are then folded into B.
        rows: For how many rows there is room from the start; 0 makes room as calls need it.
        masks: The adapters' masks, (images * adapters, frames, height, width); None when none has one.
    """

    def __init__(self, *, folds: bool, rows: int = 0, masks: torch.Tensor | None = None) -> None:
        """Start without layers."""
        self.folds = folds and masks is None
        self.masks = masks
        self.count = 1
        self.writes = 0  # of tensors that graphs of calls hold
        self._room = max(rows, 1)
        self._fixed = rows > 0
        self._layers: list[GainedLayer] = []
        self._stacks: list[Stack] = []
        self._is_copy = False
        self._width = 0
        self._flats: dict[tuple[torch.device, torch.dtype], torch.Tensor] = {}
        self._is_torn = False
        self._call = CallGains([[1.0]])
        self._gains = torch.zeros(1, 0)  # (images, parts)
        self._adapters = torch.zeros(0, dtype=torch.long)  # (parts,)
        self._owners = torch.zeros(0, dtype=torch.long)  # (ranks,): its part; the one past the end is none
        self._owners_at: dict[torch.device, torch.Tensor] = {}
        self._parts: list[AdapterPart] = []
        self._cache: dict[object, torch.Tensor] = {}
        self._shown: torch.Tensor | None = None  # (count, parts + 1)

    # --- layers --------------------------------------------------------------------------------------------------

    def span(self, rank: int) -> slice:
        """Make room for a layer's ranks, before any layer is made."""
        self._width += rank
        return slice(self._width - rank, self._width)

    def add(self, layer: GainedLayer) -> None:
        """Take a layer."""
        self._layers.append(layer)

    def stack(self, stack: Stack) -> None:
        """Take the B of some layers, where gains are folded in."""
        self._stacks.append(stack)

    def load(self, parts: Sequence[tuple[GainedLayer, Sequence[AdapterPart]]]) -> None:
        """Take the parts of all layers: what is not named has none."""
        if self._is_copy:
            self._join()
        self._parts = [part for _, layer_parts in parts for part in layer_parts]
        images = len(self._parts[0].gains) if self._parts else 1
        gains = torch.tensor([part.gains for part in self._parts], dtype=torch.float32).view(
            -1, images
        )  # (parts, images)
        self._gains = gains.T.contiguous()  # (images, parts)
        self._adapters = torch.tensor([part.adapter for part in self._parts], dtype=torch.long)  # (parts,)
        owners = torch.full((self._width,), len(self._parts), dtype=torch.long)  # (ranks,)
        number = 0
        for layer, layer_parts in parts:
            place = layer.span.start
            for part in layer_parts:
                owners[place : place + part.rank] = number
                place, number = place + part.rank, number + 1
        self._owners, self._owners_at, self._shown = owners, {}, None
        written = {id(layer) for layer, _ in parts}
        with lasting():
            for layer, layer_parts in parts:
                layer.load(layer_parts)
            for layer in self._layers:
                if id(layer) not in written:
                    layer.load(())

    # --- gains -----------------------------------------------------------------------------------------------------

    def gain_of(self, layer: GainedLayer) -> torch.Tensor:
        """Return the (rows, rank) part of the gains that is a layer's; it stays the same tensor while rows fit."""
        dtype = torch.float32 if self.folds else layer.down.dtype
        key = (layer.down.device, dtype)
        if key not in self._flats:
            with lasting():
                flat = torch.zeros(
                    self._room, self._width, dtype=dtype, device=layer.down.device
                )  # (rows, ranks)
                if self._shown is not None:
                    self._fill(flat, self._shown)
                self._flats[key] = flat
        return self._flats[key][:, layer.span]  # (rows, rank)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Be a copy: pickles hold tensors that share memory one by one, so they are joined before they are written."""
        vars(self).update(state)
        self._is_copy = True

    def _join(self) -> None:
        self._is_copy = False
        stacked = {
            start: (stack.raw[n], stack.folded[n])
            for stack in self._stacks
            for n, start in enumerate(stack.starts)
        }
        for layer in self._layers:
            if not layer.alone:
                layer.join(stacked.get(layer.span.start))
            layer.gain = self.gain_of(layer)

    def show(self, call: CallGains) -> None:
        """
        Put the gains of a call into effect.

        Raises:
            MixError: When a batch has more rows than there is room for.
        """
        if self._is_copy:
            self._join()
        rows = call.rows
        if rows is None and len(call.shares) > 1:  # before the first call
            rows = torch.arange(len(call.shares))
        count = 1 if rows is None else len(rows)
        if count > self._room and self._fixed:
            raise MixError(
                f"a denoiser batch of {count} rows with mixes of their own, and the side path is reserved for "
                f"{self._room}; reserve it with rows={count}",
                argument="rows",
            )
        parts = self._at(call, rows)
        shown = self._shown
        same = shown is not None and parts.shape == shown.shape and torch.equal(parts, shown)
        same = same and call.places == self._call.places
        self._call, self.count = call, count
        if same:
            return
        self._shown = parts
        self._cache.clear()
        try:
            with lasting():
                self._write(count, parts)
        except BaseException:
            self._shown = None  # half of it is no state to go on from
            raise

    def _at(self, call: CallGains, rows: torch.Tensor | None) -> torch.Tensor:
        """Return the gains of all parts for each row, and a zero for ranks that nobody has: (rows, parts + 1)."""
        shares = torch.tensor(call.shares, dtype=torch.float32)  # (images, adapters)
        parts = self._gains * shares[:, self._adapters]  # (images, parts)
        if call.choice is not None:
            picked = [[image[p.adapter][p.place] for p in self._parts] for image in call.choice]
            parts = parts * torch.tensor(picked, dtype=torch.float32)  # (images, parts)
        return torch.nn.functional.pad(parts if rows is None else parts[rows], (0, 1))  # (rows, parts + 1)

    def _write(self, count: int, parts: torch.Tensor) -> None:
        self.writes += 1
        grows = count > self._room
        if grows:
            self._room, self._flats = count, {}
            self._is_torn = True  # until each layer has its part of the new ones, however often that fails
        if self._is_torn:
            for layer in self._layers:
                layer.gain = self.gain_of(layer)
            self._is_torn = False
        if not grows:
            for flat in self._flats.values():
                self._fill(flat, parts)
        if self.folds:
            for stack in self._stacks:
                stack.fold(self._flats[stack.raw.device, torch.float32][0])
            for layer in self._layers:
                if layer.alone:
                    layer.fold()

    def forget(self) -> None:
        """Write all gains anew at the next call, whatever they are."""
        self._shown = None

    def _fill(self, flat: torch.Tensor, parts: torch.Tensor) -> None:
        # parts are few: so small a copy does not wait for what a GPU still has to do
        device = flat.device
        if device not in self._owners_at:
            self._owners_at[device] = self._owners.to(device)
        values = parts.to(device, non_blocking=True)[:, self._owners_at[device]]  # (rows, ranks)
        # one mix for all is the same in every row that there is room for
        values = values if len(values) > 1 else values.expand(len(flat), -1)  # (rows or room, ranks)
        flat[: len(values)].copy_(values)

    def repeated(self, layer: GainedLayer, gains: torch.Tensor, batch: int) -> torch.Tensor:
        """
        Return the gains of a layer whose batch is not that of the call, (batch, ...).

        Raises:
            MixError: When its rows cannot be told.
        """
        repeated = repeated_rows(gains, self._call.rows, self.count, batch)
        if repeated is None:
            raise MixError(
                f"got a batch of {batch} inside a call with {self.count} rows; images cannot be told apart",
                key=layer.name,
            )
        return repeated

    # --- masks -----------------------------------------------------------------------------------------------------

    def placed(self, layer: GainedLayer, hidden: torch.Tensor, *, channels_first: bool) -> torch.Tensor:
        """Return the gains of a layer on each of its places, for masks: they multiply ``hidden``."""
        shape = tuple(hidden.shape[2:]) if channels_first else tuple(hidden.shape[1:-1])
        if not shape and not layer.off_picture:
            self._call.places.refuse_flat(layer.name, int(hidden.shape[0]))
        if torch.compiler.is_compiling():  # a cache is Python's, and would be in the graph as it was then
            return self._spread(layer, hidden, shape, channels_first=channels_first)
        key = (layer.span.start, shape, hidden.shape[0], hidden.dtype, hidden.device)
        if key not in self._cache:
            self._cache[key] = self._spread(layer, hidden, shape, channels_first=channels_first)
        return self._cache[key]

    def _spread(
        self, layer: GainedLayer, hidden: torch.Tensor, shape: tuple[int, ...], *, channels_first: bool
    ) -> torch.Tensor:
        rows = torch.zeros(1, dtype=torch.long) if self._call.rows is None else self._call.rows  # (rows,)
        owners = self._owners[layer.span]  # (rank,)
        adapters = torch.nn.functional.pad(self._adapters, (0, 1))[owners]  # (rank,)
        placed = self._places(
            shape, channels_first=channels_first, off=layer.off_picture
        )  # (images, adapters, *places)
        spread = placed[:, adapters][rows]  # (rows, rank, *places)
        assert self._shown is not None  # noqa: S101 -- a mask is asked for inside a call
        values = self._shown[:, owners]  # (rows, rank)
        full = values.view(len(values), -1, *[1] * len(shape)) * spread  # (rows, rank, *places)
        if len(full) not in (1, hidden.shape[0]):
            full = self.repeated(layer, full, hidden.shape[0])
        return (full if channels_first else full.movedim(1, -1)).to(hidden)

    def _places(self, shape: tuple[int, ...], *, channels_first: bool, off: bool) -> torch.Tensor:
        """Return each adapter's mask on the places of a layer: (images, adapters, *places)."""
        if torch.compiler.is_compiling():
            return self._scaled(shape, channels_first=channels_first, off=off)
        key = (shape, channels_first, off)
        if key not in self._cache:
            self._cache[key] = self._scaled(shape, channels_first=channels_first, off=off)
        return self._cache[key]

    def _scaled(self, shape: tuple[int, ...], *, channels_first: bool, off: bool) -> torch.Tensor:
        masks, places = self.masks, self._call.places  # (images * adapters, frames, height, width)
        assert masks is not None  # noqa: S101 -- asked for only then
        images = len(self._call.shares)
        here, frames = None, 1
        if channels_first and len(shape) in (2, 3):
            frames = shape[0] if len(shape) == 3 else 1
            here = scale_mask(masks, (frames, shape[-2], shape[-1]))  # (images * adapters, frames, h, w)
        elif shape == (places.frames, places.height, places.width) and not off:
            here, frames = scale_mask(masks, shape), shape[0]
        elif len(shape) == 1 and not channels_first and not off:
            span = places.find(shape[0])
            if span is not None:
                here, frames = lay_out(masks, span), span.frames  # (images * adapters, tokens)
        if here is None:  # text, time: no places; the share of the picture that the mask covers
            here = coverage(masks).view(len(masks), *[1] * len(shape))  # (images * adapters, 1, ...)
        else:
            if masks.shape[1] > 1 and frames == 1:
                raise MixError(
                    f"a mask of {masks.shape[1]} frames, and layers here see one frame by itself: use a mask of one frame"
                )
            here = here.reshape(len(masks), *shape)  # (images * adapters, *places)
        return here.view(images, -1, *here.shape[1:])  # (images, adapters, *places)
