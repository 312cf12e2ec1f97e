"""A grid of pictures over two axes: what to make for each cell, and the labelled sheet of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lora_mixer.errors import PictureError
from lora_mixer.mixes import AdapterMix, Mix

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from lora_mixer.pictures.request import PictureRequest

MAX_CELLS = 400


@dataclass(frozen=True)
class Axis:
    """
    One axis of a grid.

    Attributes:
        kind: ``none``, ``weight``, ``unet``, ``te``, ``adapter``, ``seed``, ``steps``, ``guidance``, ``blocks``,
            ``prompt`` or ``mix``.
        values: One for each row or column: numbers; names of adapters; lists of LBW or their presets; texts to put into
            the prompt in place of the first; mixes in any form.
        adapter: Whose weight or blocks change; for ``prompt`` not needed.

    Raises:
        PictureError: When the kind is unknown, there are no values, or an adapter is missing.

    Example:
        >>> Axis("weight", (0.0, 0.5), adapter="ink").labels
        ('ink 0', 'ink 0.5')
    """

    kind: str
    values: tuple[Any, ...] = (None,)
    adapter: str = ""

    def __post_init__(self) -> None:
        """Check the values against the kind."""
        kind = _KINDS.get(self.kind)
        if kind is None:
            raise PictureError(f"an axis must be one of {', '.join(_KINDS)}, got {self.kind!r}")
        if not self.values:
            raise PictureError(f"the axis {self.kind} has no values; give at least one")
        if kind.needs_adapter and not self.adapter:
            raise PictureError(f"the axis {self.kind} needs the name of an adapter")
        object.__setattr__(self, "values", tuple(self.values))

    @property
    def labels(self) -> tuple[str, ...]:
        """What stands at each row or column."""
        return tuple(_KINDS[self.kind].label(self, value) for value in self.values)

    def at(self, request: PictureRequest, value: Any) -> PictureRequest:
        """
        Give a request as one value of the axis wants it.

        Raises:
            PictureError: When the value makes no sense.
            MixError: Likewise, for weights, blocks and mixes.
        """
        return _KINDS[self.kind].change(self, request, value)


@dataclass(frozen=True)
class _Kind:
    change: Callable[[Axis, PictureRequest, Any], PictureRequest]
    label: Callable[[Axis, Any], str]
    needs_adapter: bool = False


def with_adapter(mix: Mix, name: str, **changes: Any) -> Mix:
    """
    Give a mix in which one adapter is another; one that is not in it yet is added at weight 1.

    Args:
        mix: The mix.
        name: The adapter.
        changes: Fields of :class:`~lora_mixer.AdapterMix`.

    Example:
        >>> with_adapter(Mix.of("a:0.5"), "b", weight=0.2).to_text()
        'a:0.5, b:0.2'
    """
    changed = replace(mix.adapters.get(name, AdapterMix()), **changes)
    return Mix({**mix.adapters, name: changed}, mix.method)


def _component(part: str) -> Callable[[Axis, PictureRequest, Any], PictureRequest]:
    def change(axis: Axis, request: PictureRequest, value: Any) -> PictureRequest:
        now = request.mix.adapters.get(axis.adapter, AdapterMix())
        components: Mapping[str, float] = {**now.components, part: value}
        return replace(request, mix=with_adapter(request.mix, axis.adapter, components=components))

    return change


def _weight(axis: Axis, request: PictureRequest, value: Any) -> PictureRequest:
    # one number for all of it: weights by component would hide the axis
    return replace(request, mix=with_adapter(request.mix, axis.adapter, weight=value, components={}))


def _adapter(_: Axis, request: PictureRequest, value: Any) -> PictureRequest:
    kept = request.mix.adapters.get(value, AdapterMix())
    return replace(request, mix=Mix({value: kept}) if value else Mix())


def _blocks(axis: Axis, request: PictureRequest, value: Any) -> PictureRequest:
    blocks = Mix.of({axis.adapter: {"blocks": value}})[axis.adapter].blocks
    return replace(request, mix=with_adapter(request.mix, axis.adapter, blocks=blocks))


def _prompt(axis: Axis, request: PictureRequest, value: Any) -> PictureRequest:
    first = axis.values[0]
    if first not in request.prompt:
        raise PictureError(
            f"the axis prompt puts its values in place of {first!r}, which is not in the prompt"
        )
    return replace(request, prompt=request.prompt.replace(first, str(value)))


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def _named(axis: Axis, value: Any) -> str:
    return f"{axis.adapter} {_number(value)}"


_KINDS: Mapping[str, _Kind] = {
    "none": _Kind(lambda _, request, __: request, lambda _, __: ""),
    "weight": _Kind(_weight, _named, needs_adapter=True),
    "unet": _Kind(_component("unet"), lambda a, v: f"{a.adapter} unet {_number(v)}", needs_adapter=True),
    "te": _Kind(_component("te"), lambda a, v: f"{a.adapter} te {_number(v)}", needs_adapter=True),
    "adapter": _Kind(_adapter, lambda _, value: str(value) or "base"),
    "seed": _Kind(lambda _, r, v: replace(r, seed=v), lambda _, v: f"seed {v}"),
    "steps": _Kind(lambda _, r, v: replace(r, steps=v), lambda _, v: f"{v} steps"),
    "guidance": _Kind(lambda _, r, v: replace(r, guidance_scale=v), lambda _, v: f"guidance {_number(v)}"),
    "blocks": _Kind(_blocks, _named, needs_adapter=True),
    "prompt": _Kind(_prompt, lambda _, value: str(value)),
    "mix": _Kind(lambda _, r, v: replace(r, mix=Mix.of(v)), lambda _, v: Mix.of(v).to_text() or "base"),
}


def grid_requests(request: PictureRequest, columns: Axis, rows: Axis | None = None) -> list[PictureRequest]:
    """
    Give the request of each cell, row by row.

    Args:
        request: What all cells have in common.
        columns: What changes from left to right.
        rows: What changes from top to bottom.

    Returns:
        ``len(rows.values) * len(columns.values)`` requests.

    Raises:
        PictureError: When a value makes no sense, or there are more than 400 cells.

    Example:
        >>> from lora_mixer.pictures import PictureRequest
        >>> cells = grid_requests(PictureRequest("a cat"), Axis("weight", (0, 1), "ink"), Axis("seed", (1, 2)))
        >>> [(cell.seed, cell.mix.to_text()) for cell in cells]
        [(1, 'ink:0'), (1, 'ink:1'), (2, 'ink:0'), (2, 'ink:1')]
    """
    rows = rows or Axis("none")
    count = len(rows.values) * len(columns.values)
    if count > MAX_CELLS:
        raise PictureError(f"a grid has at most {MAX_CELLS} cells, got {count}")
    return [columns.at(rows.at(request, down), across) for down in rows.values for across in columns.values]


def grid_sheet(images: Sequence[Any], columns: Axis, rows: Axis | None = None) -> Any:
    """
    Draw finished cells as one labelled picture.

    Args:
        images: One for each cell, row by row.
        columns: The axis of the columns.
        rows: That of the rows.

    Raises:
        PictureError: When the number of pictures is another.
    """
    from lora_mixer.pictures.sheet import Band, contact_sheet

    rows = rows or Axis("none")
    wide = len(columns.values)
    if len(images) != wide * len(rows.values):
        raise PictureError(f"the grid has {wide * len(rows.values)} cells, got {len(images)} pictures")
    lines = [(label, list(images[i * wide : (i + 1) * wide])) for i, label in enumerate(rows.labels)]
    return contact_sheet([Band(columns.labels, lines)])
