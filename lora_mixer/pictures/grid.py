"""A grid of pictures over two axes: what to make for each cell, and the labelled sheet of it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lora_mixer.errors import PictureError
from lora_mixer.mixes import AdapterMix, Mix

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from lora_mixer.pictures.request import PictureRequest

MAX_CELLS = 400


@dataclass(frozen=True)
class GridAxis:
    """
    One axis of a grid.

    Attributes:
        kind: ``none``, ``weight``, ``unet``, ``transformer``, ``transformer_2``, ``te``, ``adapter``, ``seed``, ``steps``, ``guidance``, ``blocks``,
            ``prompt`` or ``mix``.
        values: One for each row or column: numbers; names of adapters; lists of LBW or their presets; texts to put into
            the prompt in place of the first; mixes in any form.
        adapter: Whose weight or blocks change; for ``prompt`` not needed.
        names: What stands at each value in place of the value itself; none where that is clear enough.

    Raises:
        PictureError: When the kind is unknown, there are no values, an adapter is missing, or names do not match.

    Example:
        >>> GridAxis("weight", (0.0, 0.5), adapter="ink").labels
        ('ink 0', 'ink 0.5')
        >>> from lora_mixer import PictureRequest
        >>> GridAxis("seed", (7, 8)).at(PictureRequest("a cat"), 8).seed
        8
    """

    kind: str
    values: tuple[Any, ...] = (None,)
    adapter: str = ""
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the values against the kind."""
        kind = _KINDS.get(self.kind)
        if kind is None:
            raise PictureError(
                f"an axis must be one of {', '.join(_KINDS)}, got {self.kind!r}", argument="kind"
            )
        if not self.values:
            raise PictureError(f"the axis {self.kind} has no values; give at least one", argument="values")
        if kind.needs_adapter and not self.adapter:
            raise PictureError(f"the axis {self.kind} needs the name of an adapter", argument="adapter")
        if self.names and len(self.names) != len(self.values):
            raise PictureError(
                f"the axis {self.kind} has {len(self.values)} values and {len(self.names)} names; give one for each",
                argument="names",
            )
        object.__setattr__(self, "values", tuple(self.values))

    @classmethod
    def read(cls, kind: str, text: str, adapter: str = "") -> GridAxis:
        """
        Read an axis that somebody wrote.

        Args:
            kind: As for the class.
            text: Values with commas between (mixes with semicolons or line ends; ``base`` is not an adapter); numbers
                also as ranges: ``0-1 (+0.25)`` by step, ``0-1 [5]`` by count, ``1-4`` in ones.
            adapter: Whose weight or blocks change.

        Returns:
            The axis.

        Raises:
            PictureError: With the value that makes no sense.

        Example:
            >>> GridAxis.read("weight", "0-1 (+0.5), 2", "ink").values
            (0.0, 0.5, 1.0, 2.0)
            >>> GridAxis.read("seed", "7, 1-3").values
            (7, 1, 2, 3)
        """
        if kind == "none":
            return cls("none")
        parts = _pieces(text, ";\n" if kind == "mix" else ",")
        values: list[Any] = []
        for part in parts:
            if kind in _NUMBERS:
                values += _numbers(part, kind, whole=kind in ("seed", "steps"))
            elif kind == "blocks" and part.startswith("["):
                values.append(
                    [x for piece in part.strip("[]").split(",") for x in _numbers(piece, kind, whole=False)]
                )
            elif kind in ("adapter", "mix"):
                values.append("" if part == "base" else part)
            else:
                values.append(part)
        if len(values) > MAX_CELLS:
            raise PictureError(
                f"the axis {kind} has {len(values)} values; a grid has at most {MAX_CELLS} cells",
                argument="values",
            )
        return cls(kind, tuple(values), adapter)

    @property
    def labels(self) -> tuple[str, ...]:
        """What stands at each row or column."""
        return self.names or tuple(_KINDS[self.kind].label(self, value) for value in self.values)

    def at(self, request: PictureRequest, value: Any) -> PictureRequest:
        """
        Return a request as one value of the axis wants it.

        Args:
            request: A request.
            value: One of ``values``.

        Raises:
            PictureError: When the value makes no sense.
            MixError: Likewise, for weights, blocks and mixes.
        """
        return _KINDS[self.kind].change(self, request, value)


@dataclass(frozen=True)
class _AxisKind:
    change: Callable[[GridAxis, PictureRequest, Any], PictureRequest]
    label: Callable[[GridAxis, Any], str]
    needs_adapter: bool = False


def with_adapter(mix: Mix, name: str, **changes: Any) -> Mix:
    """
    Return a mix in which one adapter is another; one that is not in it yet is added at weight 1.

    Args:
        mix: The mix.
        name: The adapter.
        changes: Fields of :class:`~lora_mixer.AdapterMix`.

    Returns:
        The other mix.

    Example:
        >>> with_adapter(Mix.of("a:0.5"), "b", weight=0.2).to_text()
        'a:0.5, b:0.2'
    """
    changed = replace(mix.adapters.get(name, AdapterMix()), **changes)
    return Mix({**mix.adapters, name: changed}, mix.method)


def _component(part: str) -> _AxisKind:
    def change(axis: GridAxis, request: PictureRequest, value: Any) -> PictureRequest:
        now = request.mix.adapters.get(axis.adapter, AdapterMix())
        components: Mapping[str, float] = {**now.components, part: value}
        return replace(request, mix=with_adapter(request.mix, axis.adapter, components=components))

    return _AxisKind(change, lambda a, v: f"{a.adapter} {part} {_number(v)}", needs_adapter=True)


def _weight(axis: GridAxis, request: PictureRequest, value: Any) -> PictureRequest:
    # one number for all of it: weights by component would hide the axis
    return replace(request, mix=with_adapter(request.mix, axis.adapter, weight=value, components={}))


def _adapter(_: GridAxis, request: PictureRequest, value: Any) -> PictureRequest:
    kept = request.mix.adapters.get(value, AdapterMix())
    return replace(request, mix=Mix({value: kept}) if value else Mix())


def _blocks(axis: GridAxis, request: PictureRequest, value: Any) -> PictureRequest:
    blocks = Mix.of({axis.adapter: {"blocks": value}})[axis.adapter].blocks
    return replace(request, mix=with_adapter(request.mix, axis.adapter, blocks=blocks))


def _prompt(axis: GridAxis, request: PictureRequest, value: Any) -> PictureRequest:
    first = axis.values[0]
    if first not in request.prompt:
        raise PictureError(
            f"the axis prompt puts its values in place of {first!r}, which is not in the prompt",
            argument="values",
        )
    return replace(request, prompt=request.prompt.replace(first, str(value)))


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def _named(axis: GridAxis, value: Any) -> str:
    return f"{axis.adapter} {_number(value)}"


BY_COMPONENT = ("unet", "transformer", "transformer_2", "te")
"""The axes that are an adapter's weight in one part of the pipeline."""

_NUMBERS = ("weight", *BY_COMPONENT, "seed", "steps", "guidance")
_NUMBER = r"[+-]?\d+(?:\.\d*)?|[+-]?\.\d+"
_RANGE = re.compile(rf"({_NUMBER})\s*-\s*({_NUMBER})(?:\s*(?:\(\s*({_NUMBER})\s*\)|\[\s*(\d+)\s*\]))?")


def _pieces(text: str, marks: str) -> list[str]:
    """Split at marks that are in no brackets."""
    pieces, depth, start = [], 0, 0
    for at, sign in enumerate(text):
        depth += (sign in "[(") - (sign in "])")
        if sign in marks and depth <= 0:
            pieces.append(text[start:at])
            start = at + 1
    return [piece.strip() for piece in (*pieces, text[start:]) if piece.strip()]


def _numbers(piece: str, kind: str, *, whole: bool) -> list[Any]:
    match = _RANGE.fullmatch(piece.strip())
    try:
        if match is None:
            value = int(piece) if whole else float(piece)
            if not whole and not math.isfinite(value):
                raise ValueError  # noqa: TRY301 -- one message for all that is not a number
            return [value]
        first, last = float(match[1]), float(match[2])
        count = int(match[4]) if match[4] else 0
        step = float(match[3]) if match[3] else (1.0 if last >= first else -1.0)
        if match[4]:
            step = (last - first) / (count - 1) if count > 1 else 0.0
        elif step == 0 or (last - first) / step < 0:
            raise ValueError  # noqa: TRY301
        else:
            count = int((last - first) / step + 1e-9) + 1
        if count > MAX_CELLS:
            raise PictureError(
                f"the axis {kind}: {piece!r} has {count} values; a grid has at most {MAX_CELLS} cells",
                argument="values",
            )
        values = [round(first + number * step, 10) for number in range(count)]
        return [int(value) for value in values] if whole else values
    except (ValueError, OverflowError) as error:
        example = "1, 2 or 1-4" if whole else "0, 0.5 or 0-1 (+0.25)"
        raise PictureError(
            f"the axis {kind}: expected numbers such as {example}, got {piece!r}", argument="values"
        ) from error


_KINDS: Mapping[str, _AxisKind] = {
    "none": _AxisKind(lambda _, request, __: request, lambda _, __: ""),
    "weight": _AxisKind(_weight, _named, needs_adapter=True),
    **{part: _component(part) for part in BY_COMPONENT},
    "adapter": _AxisKind(_adapter, lambda _, value: str(value) or "base"),
    "seed": _AxisKind(lambda _, r, v: replace(r, seed=v), lambda _, v: f"seed {v}"),
    "steps": _AxisKind(lambda _, r, v: replace(r, steps=v), lambda _, v: f"{v} steps"),
    "guidance": _AxisKind(
        lambda _, r, v: replace(r, guidance_scale=v), lambda _, v: f"guidance {_number(v)}"
    ),
    "blocks": _AxisKind(_blocks, _named, needs_adapter=True),
    "prompt": _AxisKind(_prompt, lambda _, value: str(value)),
    "mix": _AxisKind(lambda _, r, v: replace(r, mix=Mix.of(v)), lambda _, v: Mix.of(v).to_text() or "base"),
}


def grid_requests(
    request: PictureRequest, columns: GridAxis, rows: GridAxis | None = None
) -> list[PictureRequest]:
    """
    Return the request of each cell, row by row.

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
        >>> cells = grid_requests(PictureRequest("a cat"), GridAxis("weight", (0, 1), "ink"), GridAxis("seed", (1, 2)))
        >>> [(cell.seed, cell.mix.to_text()) for cell in cells]
        [(1, 'ink:0'), (1, 'ink:1'), (2, 'ink:0'), (2, 'ink:1')]
    """
    rows = rows or GridAxis("none")
    count = len(rows.values) * len(columns.values)
    if count > MAX_CELLS:
        raise PictureError(f"a grid has at most {MAX_CELLS} cells, got {count}", argument="columns")
    return [columns.at(rows.at(request, down), across) for down in rows.values for across in columns.values]


def grid_sheet(images: Sequence[Any], columns: GridAxis, rows: GridAxis | None = None) -> Any:
    """
    Draw finished cells as one labelled picture.

    Args:
        images: One for each cell, row by row.
        columns: The axis of the columns.
        rows: That of the rows.

    Returns:
        The sheet (PIL).

    Raises:
        PictureError: When the number of pictures is another.

    Example:
        >>> from PIL import Image
        >>> cells = [Image.new("RGB", (64, 64)) for _ in range(4)]
        >>> grid_sheet(cells, GridAxis("seed", (7, 8)), GridAxis("steps", (10, 20))).width > 128
        True
    """
    from lora_mixer.pictures.sheet import Band, contact_sheet

    rows = rows or GridAxis("none")
    wide = len(columns.values)
    if len(images) != wide * len(rows.values):
        raise PictureError(
            f"the grid has {wide * len(rows.values)} cells, got {len(images)} pictures", argument="images"
        )
    lines = [(label, list(images[i * wide : (i + 1) * wide])) for i, label in enumerate(rows.labels)]
    return contact_sheet([Band(columns.labels, lines)])
