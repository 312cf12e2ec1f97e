"""The handlers of the mix: rows added and described, curves, masks, mixes as text, saved and loaded."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lora_mixer.errors import LoraMixerError, MixError, PictureError
from lora_mixer.mixes import LBW_IDS, LBW_PRESETS, METHODS, LbwWeights, Mix

from .. import checks
from ..masks import painted
from ..mix_rows import Row, read_mix, read_rows, rows_of, shown, with_row

if TYPE_CHECKING:
    from ..app_state import AppState

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


def kit(app: AppState) -> dict[str, Any]:
    """Give what the page offers for rows: presets, ids and lengths of block weights, shapes of schedules."""
    layout = app.layout
    counts = [n for n in LBW_IDS if layout is not None and not LbwWeights((1.0,) * n).misfits(layout)]
    tree: list[Any] = []
    if layout is not None and layout.is_unet:
        tree += [[f"D{n}", ["down", f"block_{n}"]] for n in range(len(layout.down))]
        tree += [["M", ["mid"]]]
        tree += [[f"U{n}", ["up", f"block_{n}"]] for n in range(len(layout.up))]
    return {
        "size": list(app.size),
        "counts": counts,
        "tree": tree,
        "ids": {str(n): list(ids) for n, ids in LBW_IDS.items()},
        "presets": {name: list(values) for name, values in LBW_PRESETS.items() if len(values) in counts},
        "forms": ["b-lora:content", "b-lora:style"] if 12 in counts else [],
        "shapes": [list(shape) for shape in SHAPES],
        "methods": [method.example for method in METHODS.values()],
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
    except MixError as error:
        return {"problem": "; ".join(problem.text for problem in error.problems) or str(error)}
    except LoraMixerError as error:
        return {"problem": str(error)}


def added(app: AppState, mix_rows: Any, entry_id: Any) -> dict[str, Any]:
    """
    Put an adapter of the library into a mix, at its own default weight.

    Raises:
        PictureError: When there is no such adapter, or it cannot be used here.
    """
    entry = app.entry(checks.opaque(entry_id, "adapter"))
    reason = app.refusal(entry)
    if reason:
        raise PictureError(f"{entry.name} cannot be added: {reason}")
    row = Row(app.name_of(entry), unet=1.0 if entry.weight is None else entry.weight)
    app.preloader.want([row.name])
    return shown(with_row(read_rows(mix_rows), row), app)


def as_text(app: AppState, mix_rows: Any) -> tuple[str, str]:
    """Give a mix as text, and what is wrong with it (one of the two is empty)."""
    try:
        mix = read_rows(mix_rows).mix(app)
    except LoraMixerError as error:
        return "", str(error)
    return mix.to_text(), ""


def from_text(app: AppState, text: Any) -> dict[str, Any]:
    """
    Read a mix that somebody wrote or shared; names that are not here keep their rows.

    Raises:
        LoraMixerError: When it makes no sense.
    """
    mix = read_mix(text, app)
    app.preloader.want(mix.names)
    return shown(rows_of(mix), app)


def with_mask(app: AppState, mix_rows: Any, name: Any, png: Any) -> dict[str, Any]:
    """
    Give a row the mask that was painted.

    Args:
        app: Where masks are kept.
        mix_rows: The mix.
        name: The row's adapter.
        png: The mask as a ``data:image/png`` address.

    Raises:
        PictureError: When it is none, nothing is painted, or there is no such row.
    """
    found = read_rows(mix_rows)
    wanted = checks.text(name, "adapter", 256)
    if wanted not in [row.name for row in found.rows]:
        raise PictureError(f"the mix has no adapter {wanted[:40]!r}")
    digest = app.masks.put(painted(png))
    rows = tuple(replace(row, mask=digest) if row.name == wanted else row for row in found.rows)
    return shown(replace(found, rows=rows), app)


def with_word(prompt: Any, word: Any) -> str:
    """Put a trigger word into a prompt, at its end; one that is in it stays where it is."""
    text, wanted = checks.text(prompt, "prompt").rstrip(), checks.text(word, "trigger word", 200).strip()
    if not wanted or wanted.lower() in text.lower():
        return text
    return f"{text.rstrip(',')}, {wanted}" if text else wanted


def keep_default(app: AppState, mix_rows: Any, name: Any) -> str:
    """
    Keep a row's weight as the adapter's own default.

    Raises:
        PictureError: When there is no such row or adapter.
    """
    wanted = checks.text(name, "adapter", 256)
    row = next((row for row in read_rows(mix_rows).rows if row.name == wanted), None)
    entry = app.entry_named(wanted)
    if row is None or entry is None:
        raise PictureError("there is no such adapter in the mix")
    app.library.set_default(entry.id, weight=row.unet)
    return f"{wanted} now starts at {row.unet:g}"


# --- saved mixes -----------------------------------------------------------------------------------------------------


def save(app: AppState, name: Any, mix_rows: Any) -> str:
    """
    Save a mix under a name.

    Raises:
        LoraMixerError: When the name or the mix cannot be.
    """
    wanted = checks.text(name, "name", checks.MAX_NAME).strip()
    if not wanted:
        raise PictureError("give the mix a name first")
    app.mixes.save(wanted, read_rows(mix_rows).mix(app))
    return wanted


def load(app: AppState, name: Any) -> dict[str, Any]:
    """
    Load a saved mix, its masks included.

    Raises:
        LoraMixerError: When there is none of that name.
    """
    mix = app.mixes.load(_saved(name))
    for adapter in mix.adapters.values():
        if adapter.mask is not None and adapter.mask.picture is not None:
            app.masks.put_values(adapter.mask.picture)
    app.preloader.want(mix.names)
    return shown(rows_of(mix), app)


def delete(app: AppState, name: Any) -> None:
    """
    Delete a saved mix.

    Raises:
        LoraMixerError: When there is none of that name.
    """
    app.mixes.delete(_saved(name))


def _saved(name: Any) -> str:
    wanted = checks.text(name, "name", checks.MAX_NAME)
    if not wanted:
        raise PictureError("choose a saved mix from the list first")
    return wanted


def undo(app: AppState) -> str:
    """
    Take the last change of the saved mixes back.

    Returns:
        What was taken back.

    Raises:
        LoraMixerError: When there is none.
    """
    return app.mixes.undo()
