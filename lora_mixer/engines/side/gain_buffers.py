"""The gains of one component's side path: over images, adapters and layers, spread on the ranks of all layers at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from lora_mixer.engines.denoiser.images import repeated_rows
from lora_mixer.engines.side.masks import coverage, scale_mask, token_grid
from lora_mixer.errors import MixError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_mixer.engines.side.layer import SideLayer, SidePart
    from lora_mixer.engines.side.stacks import Stack


@dataclass(frozen=True)
class CallGains:
    """
    What holds for one call of a component.

    Attributes:
        shares: What the gains of each image's adapters are multiplied by, (images, adapters).
        choice: The same for single layers, by adapter: (images, layers of the adapter); where there is any.
        rows: The image of each row of the batch; None where all have one mix.
        latents: Height and width of the latents.
    """

    shares: Sequence[Sequence[float]]
    choice: Sequence[Sequence[Sequence[float]]] | None = None
    rows: torch.Tensor | None = None
    latents: tuple[int, int] = (0, 0)


class GainBuffers:
    """
    Gains of one component.

    Args:
        folds: Whether all rows have the same gains, which are then folded into B.
        rows: For how many rows there is room from the start; 0 makes room as calls need it.
        masks: The adapters' masks, (images * adapters, height, width); None when none has one.
    """

    def __init__(self, *, folds: bool, rows: int = 0, masks: torch.Tensor | None = None) -> None:
        """Start without layers."""
        self.folds = folds and masks is None
        self.masks = masks
        self.count = 1
        self._room = max(rows, 1)
        self._fixed = rows > 0
        self._layers: list[SideLayer] = []
        self._stacks: list[Stack] = []
        self._width = 0
        self._flats: dict[tuple[torch.device, torch.dtype], torch.Tensor] = {}
        self._moment = CallGains([[1.0]])
        self._gains = torch.zeros(1, 0)  # (images, parts)
        self._adapters = torch.zeros(0, dtype=torch.long)  # (parts,)
        self._owners = torch.zeros(
            0, dtype=torch.long
        )  # (ranks,): part of each rank; the one past the end is none
        self._owners_at: dict[torch.device, torch.Tensor] = {}
        self._parts: list[SidePart] = []
        self._cache: dict[object, torch.Tensor] = {}
        self._shown: torch.Tensor | None = None  # (count, parts + 1)

    # --- layers --------------------------------------------------------------------------------------------------

    def span(self, rank: int) -> slice:
        """Make room for a layer's ranks, before any layer is made."""
        self._width += rank
        return slice(self._width - rank, self._width)

    def add(self, layer: SideLayer) -> None:
        """Take a layer."""
        self._layers.append(layer)

    def stack(self, stack: Stack) -> None:
        """Take the B of some layers, where gains are folded in."""
        self._stacks.append(stack)

    def load(self, parts: Sequence[tuple[SideLayer, Sequence[SidePart]]]) -> None:
        """Take the parts of all layers: what is not named has none."""
        self._parts = [part for _, own in parts for part in own]
        images = len(self._parts[0].gains) if self._parts else 1
        gains = torch.tensor([part.gains for part in self._parts], dtype=torch.float32).view(-1, images)
        self._gains = gains.T.contiguous()
        self._adapters = torch.tensor([part.adapter for part in self._parts], dtype=torch.long)
        owners = torch.full((self._width,), len(self._parts), dtype=torch.long)
        number = 0
        for layer, own in parts:
            place = layer.span.start
            for part in own:
                owners[place : place + part.rank] = number
                place, number = place + part.rank, number + 1
        self._owners, self._owners_at, self._shown = owners, {}, None
        written = {id(layer) for layer, _ in parts}
        with torch.inference_mode(mode=False), torch.no_grad():
            for layer, own in parts:
                layer.load(own)
            for layer in self._layers:
                if id(layer) not in written:
                    layer.load(())

    # --- gains -----------------------------------------------------------------------------------------------------

    def gain_of(self, layer: SideLayer) -> torch.Tensor:
        """Give the (rows, rank) part of the gains that is a layer's; it stays the same tensor while rows fit."""
        dtype = torch.float32 if self.folds else layer.down.dtype
        key = (layer.down.device, dtype)
        if key not in self._flats:
            with torch.inference_mode(mode=False):
                flat = torch.zeros(self._room, self._width, dtype=dtype, device=layer.down.device)
                if self._shown is not None:
                    self._fill(flat, self._shown)
                self._flats[key] = flat
        return self._flats[key][:, layer.span]

    def show(self, moment: CallGains) -> None:
        """
        Put the gains of a moment into effect.

        Raises:
            MixError: When a batch has more rows than there is room for.
        """
        rows = moment.rows
        if rows is None and len(moment.shares) > 1:  # before the first call
            rows = torch.arange(len(moment.shares))
        count = 1 if rows is None else len(rows)
        if count > self._room and self._fixed:
            msg = (
                f"a denoiser batch of {count} rows with mixes of their own, and the side path is reserved for "
                f"{self._room}; reserve it with rows={count}"
            )
            raise MixError(msg)
        parts = self._at(moment, rows)
        shown = self._shown
        same = shown is not None and parts.shape == shown.shape and torch.equal(parts, shown)
        same = same and moment.latents == self._moment.latents
        self._moment, self.count = moment, count
        if same:
            return
        self._shown = parts
        self._cache.clear()
        with torch.inference_mode(mode=False), torch.no_grad():
            self._write(count, parts)

    def _at(self, moment: CallGains, rows: torch.Tensor | None) -> torch.Tensor:
        """Give the gains of all parts for each row, and a zero for ranks that nobody has: (rows, parts + 1)."""
        parts = self._gains * torch.tensor(moment.shares, dtype=torch.float32)[:, self._adapters]
        if moment.choice is not None:
            picked = [[image[p.adapter][p.place] for p in self._parts] for image in moment.choice]
            parts = parts * torch.tensor(picked, dtype=torch.float32)
        return torch.nn.functional.pad(parts if rows is None else parts[rows], (0, 1))

    def _write(self, count: int, parts: torch.Tensor) -> None:
        if count > self._room:
            self._room, self._flats = count, {}
            for layer in self._layers:
                layer.gain = self.gain_of(layer)
        else:
            for flat in self._flats.values():
                self._fill(flat, parts)
        if self.folds:
            for stack in self._stacks:
                stack.fold(self._flats[stack.raw.device, torch.float32][0])
            for layer in self._layers:
                if layer.alone:
                    layer.fold()

    def forget(self) -> None:
        """Write all gains anew at the next moment, whatever they are."""
        self._shown = None

    def _fill(self, flat: torch.Tensor, parts: torch.Tensor) -> None:
        # parts are few: so small a copy does not wait for what a GPU still has to do
        device = flat.device
        if device not in self._owners_at:
            self._owners_at[device] = self._owners.to(device)
        values = parts.to(device, non_blocking=True)[:, self._owners_at[device]]
        # one mix for all is the same in every row that there is room for
        values = values if len(values) > 1 else values.expand(len(flat), -1)
        flat[: len(values)].copy_(values)

    def repeated(self, layer: SideLayer, gains: torch.Tensor, batch: int) -> torch.Tensor:
        """
        Give the gains of a layer whose batch is not that of the call, (batch, ...).

        Raises:
            MixError: When its rows cannot be told.
        """
        found = repeated_rows(gains, self._moment.rows, self.count, batch)
        if found is None:
            msg = (
                f"{layer.name}: got a batch of {batch} inside a call with {self.count} rows; images cannot be told "
                "apart"
            )
            raise MixError(msg)
        return found

    # --- masks -----------------------------------------------------------------------------------------------------

    def placed(self, layer: SideLayer, hidden: torch.Tensor, *, channels_first: bool) -> torch.Tensor:
        """Give the gains of a layer on each of its places, for masks: they multiply ``hidden``."""
        shape = tuple(hidden.shape[2:]) if channels_first else tuple(hidden.shape[1:-1])
        key = (layer.span.start, shape, hidden.shape[0], hidden.dtype, hidden.device)
        if key not in self._cache:
            rows = torch.zeros(1, dtype=torch.long) if self._moment.rows is None else self._moment.rows
            owners = self._owners[layer.span]
            adapters = torch.nn.functional.pad(self._adapters, (0, 1))[owners]
            spread = self._places(shape, channels_first=channels_first)[:, adapters][rows]
            assert self._shown is not None  # noqa: S101 -- a mask is asked for inside a call
            values = self._shown[:, self._owners[layer.span]]
            full = values.view(len(values), -1, *[1] * len(shape)) * spread
            if len(full) not in (1, hidden.shape[0]):
                full = self.repeated(layer, full, hidden.shape[0])
            if not channels_first:
                full = full.movedim(1, -1)
            self._cache[key] = full.to(hidden)
        return self._cache[key]

    def _places(self, shape: tuple[int, ...], *, channels_first: bool) -> torch.Tensor:
        """Give each adapter's mask on the places of a layer: (images, adapters, *places)."""
        masks = self.masks
        assert masks is not None  # noqa: S101 -- asked for only then
        images = len(self._moment.shares)
        grid = (shape[0], shape[1]) if channels_first and len(shape) == 2 else None
        if not channels_first and len(shape) == 1:
            grid = token_grid(shape[0], *self._moment.latents)
        key = (grid, len(shape))
        if key not in self._cache:
            if grid is None:  # text, time: no places; the share of the picture that the mask covers
                self._cache[key] = coverage(masks).view(images, -1, *[1] * len(shape))
            else:
                scaled = scale_mask(masks, grid).view(images, -1, *grid)
                self._cache[key] = scaled if channels_first else scaled.flatten(2)
        return self._cache[key]
