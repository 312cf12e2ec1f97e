"""The handlers of the mix: rows added and described, curves, masks, mixes as text, saved and loaded."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lora_mixer.errors import LoraMixerError, PictureError
from lora_mixer.mixes import LBW_IDS, LBW_PRESETS, LbwWeights, Mix

from . import checks
from .board import Row, board_of, read_board, read_mix, shown, with_row
from .masks import painted

if TYPE_CHECKING:
    from .studio import Studio

CURVE_STEPS = 50
SHAPES = (
    ("constant", ""),
    ("fade in", "linear(0, 1)"),
    ("fade out", "linear(1, 0)"),
    ("first half", "window(0, 0.5)"),
    ("second half", "window(0.5, 1)"),
    ("slow start", "ease_in(0, 1)"),
    ("bell", "0@0,1@0.5,0@1"),
)
METHODS = ("sum", "switch(tau=5)", "composite", "k_lora()")


def kit(studio: Studio) -> dict[str, Any]:
    """Give what the page offers for rows: presets, ids and lengths of block weights, shapes of schedules."""
    layout = studio.layout
    counts = [n for n in LBW_IDS if layout is not None and not LbwWeights((1.0,) * n).misfits(layout)]
    tree: list[Any] = []
    if layout is not None and layout.is_unet:
        tree += [[f"D{n}", ["down", f"block_{n}"]] for n in range(len(layout.down))]
        tree += [["M", ["mid"]]]
        tree += [[f"U{n}", ["up", f"block_{n}"]] for n in range(len(layout.up))]
    return {
        "size": list(studio.size),
        "counts": counts,
        "tree": tree,
        "ids": {str(n): list(ids) for n, ids in LBW_IDS.items()},
        "presets": {name: list(values) for name, values in LBW_PRESETS.items() if len(values) in counts},
        "forms": ["b-lora:content", "b-lora:style"] if 12 in counts else [],
        "shapes": [list(shape) for shape in SHAPES],
        "methods": list(METHODS),
    }


def curve(text: Any) -> dict[str, Any]:
    """
    Give the values of a schedule over the steps, for its curve.

    Args:
        text: The schedule; empty is constant.

    Returns:
        ``points``, or the ``problem``.
    """
    try:
        written = checks.text(text, "schedule", 500).strip()
        mix = Mix.of({"a": {"schedule": written}} if written else {"a": 1})
        return {
            "points": [
                round(mix.gain_at("a", "unet", "conv_in", n, CURVE_STEPS), 4) for n in range(CURVE_STEPS)
            ]
        }
    except LoraMixerError as error:
        return {"problem": str(error).removeprefix("This mix cannot be used: ")}


def added(studio: Studio, board: Any, entry_id: Any) -> dict[str, Any]:
    """
    Put an adapter of the library into a mix, at its own default weight.

    Raises:
        PictureError: When there is no such adapter, or it cannot be used here.
    """
    entry = studio.entry(checks.opaque(entry_id, "adapter"))
    reason = studio.refusal(entry)
    if reason:
        raise PictureError(f"{entry.name} cannot be added: {reason}")
    row = Row(studio.name_of(entry), unet=1.0 if entry.weight is None else entry.weight)
    studio.preloader.want([row.name])
    return shown(with_row(read_board(board), row), studio)


def as_text(studio: Studio, board: Any) -> tuple[str, str]:
    """Give a mix as text, and what is wrong with it (one of the two is empty)."""
    try:
        mix = read_board(board).mix(studio)
    except LoraMixerError as error:
        return "", str(error)
    return mix.to_text(), ""


def from_text(studio: Studio, text: Any) -> dict[str, Any]:
    """
    Read a mix that somebody wrote or shared; names that are not here keep their rows.

    Raises:
        LoraMixerError: When it makes no sense.
    """
    mix = read_mix(text, studio)
    studio.preloader.want(mix.names)
    return shown(board_of(mix), studio)


def with_mask(studio: Studio, board: Any, name: Any, png: Any) -> dict[str, Any]:
    """
    Give a row the mask that was painted.

    Args:
        studio: Where masks are kept.
        board: The mix.
        name: The row's adapter.
        png: The mask as a ``data:image/png`` address.

    Raises:
        PictureError: When it is none, nothing is painted, or there is no such row.
    """
    found = read_board(board)
    wanted = checks.text(name, "adapter", 256)
    if wanted not in [row.name for row in found.rows]:
        raise PictureError(f"the mix has no adapter {wanted[:40]!r}")
    digest = studio.masks.put(painted(png))
    rows = tuple(replace(row, mask=digest) if row.name == wanted else row for row in found.rows)
    return shown(replace(found, rows=rows), studio)


def with_word(prompt: Any, word: Any) -> str:
    """Put a trigger word into a prompt, at its end; one that is in it stays where it is."""
    text, wanted = checks.text(prompt, "prompt").rstrip(), checks.text(word, "trigger word", 200).strip()
    if not wanted or wanted.lower() in text.lower():
        return text
    return f"{text.rstrip(',')}, {wanted}" if text else wanted


def keep_default(studio: Studio, board: Any, name: Any) -> str:
    """
    Keep a row's weight as the adapter's own default.

    Raises:
        PictureError: When there is no such row or adapter.
    """
    wanted = checks.text(name, "adapter", 256)
    row = next((row for row in read_board(board).rows if row.name == wanted), None)
    entry = studio.entry_named(wanted)
    if row is None or entry is None:
        raise PictureError("there is no such adapter in the mix")
    studio.library.set_default(entry.id, weight=row.unet)
    return f"{wanted} now starts at {row.unet:g}"


# --- saved mixes -----------------------------------------------------------------------------------------------------


def save(studio: Studio, name: Any, board: Any) -> str:
    """
    Save a mix under a name.

    Raises:
        LoraMixerError: When the name or the mix cannot be.
    """
    wanted = checks.text(name, "name", checks.MAX_NAME).strip()
    if not wanted:
        raise PictureError("give the mix a name first")
    studio.mixes.save(wanted, read_board(board).mix(studio))
    return wanted


def load(studio: Studio, name: Any) -> dict[str, Any]:
    """
    Load a saved mix, its masks included.

    Raises:
        LoraMixerError: When there is none of that name.
    """
    mix = studio.mixes.load(_saved(name))
    for adapter in mix.adapters.values():
        if adapter.mask is not None and adapter.mask.picture is not None:
            studio.masks.put_values(adapter.mask.picture)
    studio.preloader.want(mix.names)
    return shown(board_of(mix), studio)


def delete(studio: Studio, name: Any) -> None:
    """
    Delete a saved mix.

    Raises:
        LoraMixerError: When there is none of that name.
    """
    studio.mixes.delete(_saved(name))


def _saved(name: Any) -> str:
    wanted = checks.text(name, "name", checks.MAX_NAME)
    if not wanted:
        raise PictureError("choose a saved mix from the list first")
    return wanted


def undo(studio: Studio) -> str:
    """
    Take the last change of the saved mixes back.

    Returns:
        What was taken back.

    Raises:
        LoraMixerError: When there is none.
    """
    return studio.mixes.undo()
