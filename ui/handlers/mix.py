"""The handlers of the mix: rows added and described, curves, masks, mixes as text, saved and loaded."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from lora_mixer.errors import LoraMixerError, MixError, PictureError
from lora_mixer.mixes import B_LORA, DEPTH_PRESETS, LBW_IDS, LBW_PRESETS, METHODS, LbwWeights, Mix

from .. import checks
from ..masks import painted
from ..messages import FieldError, words_of
from ..mix_rows import MAX_ROWS, MAX_WEIGHT, facts_of, halfway, read_rows, read_text, rows_of, shown_rows
from ..thumbs import data_uri

if TYPE_CHECKING:
    from ..app_state import AppState

CURVE_STEPS = 50
MASK_SIDE = 512
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
    """Return what the page offers for rows: what the denoiser is called, presets, ids and lengths of block weights, shapes of schedules."""
    layout = app.layout
    counts = [n for n in LBW_IDS if layout is not None and not LbwWeights((1.0,) * n).misfits(layout)]
    tree: list[Any] = []
    if layout is not None and layout.is_unet:
        tree += [[f"D{n}", ["down", f"block_{n}"]] for n in range(len(layout.down))]
        tree += [["M", ["mid"]]]
        tree += [[f"U{n}", ["up", f"block_{n}"]] for n in range(len(layout.up))]
    elif layout is not None:
        tree += [[f"D{n}", ["double", f"block_{n}"]] for n in range(layout.double)]
        tree += [[f"S{n}", ["single", f"block_{n}"]] for n in range(layout.single)]
    presets = {**B_LORA, **DEPTH_PRESETS}
    fitting = [] if layout is None else [n for n, x in presets.items() if not x.misfits(layout)]
    return {
        "denoiser": "UNet" if layout is None or layout.is_unet else "Transformer",
        "size": list(app.size),
        "counts": counts,
        "tree": tree,
        "ids": {str(n): list(ids) for n, ids in LBW_IDS.items()},
        "presets": {name: list(values) for name, values in LBW_PRESETS.items() if len(values) in counts},
        "forms": fitting,
        "shapes": [list(shape) for shape in SHAPES],
        "methods": [method.example for method in METHODS.values()],
    }


def curve(text: Any) -> dict[str, Any]:
    """
    Return the values of a schedule over the steps, for its curve.

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
        return {"problem": words_of(error)}


def look_up(app: AppState, names: Any) -> dict[str, Any]:
    """
    Return what rows show of their adapters, and load soon what they will need.

    Args:
        app: Where.
        names: Their names, as a browser kept them.

    Returns:
        The facts by name.
    """
    wanted = [checks.text(name, "name", 256) for name in names][:MAX_ROWS] if isinstance(names, list) else []
    app.preloader.want([name for name in wanted if app.entry_named(name)])
    return {name: facts_of(name, app) for name in wanted}


def as_text(app: AppState, rows: Any) -> dict[str, str]:
    """Return a mix as text, and what is wrong with it (one of the two is empty)."""
    try:
        return {"text": read_rows(rows).text(app), "problem": ""}
    except LoraMixerError as error:
        return {"text": "", "problem": words_of(error)}


def from_text(app: AppState, text: Any) -> dict[str, Any]:
    """
    Read a mix that somebody wrote or shared; names that are not here keep their rows.

    Raises:
        LoraMixerError: When it makes no sense.
    """
    read = read_text(text, app)
    app.preloader.want([row.name for row in read.rows if row.on])
    return shown_rows(read, app)


def halfway_of(app: AppState, asked: Any) -> dict[str, Any]:
    """
    Return the mix that is half of each of two, and what is said of it.

    Args:
        app: Where.
        asked: ``first`` and ``second``, mixes as text; empty is the base.

    Raises:
        LoraMixerError: When one of the two makes no sense.
    """
    given = checks.table(asked, "two pictures")
    middle, only = halfway(*(read_text(given.get(name), app) for name in ("first", "second")))
    if not middle.rows:
        raise PictureError("Both pictures are the base's: there is nothing to mix.")
    said = "The mix is half of each picture's now."
    if only:
        said += f" Blocks, schedule or mask could be only one's for {', '.join(only)}."
    app.preloader.want([row.name for row in middle.rows])
    return {**shown_rows(middle, app), "said": said}


def keep_mask(app: AppState, png: Any) -> dict[str, str]:
    """
    Keep a painted mask.

    Returns:
        Its digest, and a small picture of it.

    Raises:
        PictureError: When nothing is painted.
    """
    digest = app.masks.put(painted(png))
    return {"digest": digest, "png": mask_png(app, digest)}


def mask_png(app: AppState, digest: Any) -> str:
    """Return a mask as a picture that the page paints on; empty where it is not here."""
    try:
        return data_uri(app.masks[checks.opaque(digest, "mask")], MASK_SIDE, "png")  # type: ignore[arg-type]
    except KeyError:
        return ""


def keep_default(app: AppState, name: Any, weight: Any) -> dict[str, Any]:
    """
    Keep a row's weight as the adapter's own default; None takes it away.

    Returns:
        What is ``said``, and the default ``before``.

    Raises:
        PictureError: When there is no such adapter.
    """
    name = checks.text(name, "adapter", 256)
    entry = app.entry_named(name)
    if entry is None:
        raise PictureError(f"{name} is not in the library here", adapter=name)
    number = None if weight is None else checks.number(weight, f"{name}: weight", -MAX_WEIGHT, MAX_WEIGHT)
    before = entry.weight
    app.library.set_default(entry.id, weight=number)
    said = f"{name} now starts at {1.0 if number is None else number:g}"
    return {"said": said, "before": before}


# --- saved mixes -----------------------------------------------------------------------------------------------------


def saved(app: AppState) -> list[str]:
    """List the saved mixes."""
    return list(app.mixes.list())


def save(app: AppState, name: Any, rows: Any, *, replacing: bool) -> dict[str, Any]:
    """
    Save a mix under a name, rows that are off or missing included.

    Returns:
        ``exists`` where the name is taken and ``replacing`` is false; else what is said of it.

    Raises:
        LoraMixerError: When the name or the mix cannot be.
    """
    wanted = checks.text(name, "The name", checks.MAX_NAME).strip()
    if "\0" in wanted or any("\ud800" <= letter <= "\udfff" for letter in wanted):
        raise FieldError("The name: it has letters that cannot be written.", "mix-name")
    if not wanted:
        raise FieldError("Give the mix a name first.", "mix-name")
    read = read_rows(rows)
    if not read.rows:
        raise PictureError("The mix is empty: there is nothing to save.")
    mix = read.whole(app)
    with app.saving:
        taken = wanted in app.mixes.list()
        if taken and not replacing:
            return {"exists": wanted}
        app.saved_rows.put(wanted, _key(mix), read.plain())
        app.mixes.save(wanted, mix)
    return {"said": f"{'Replaced' if taken else 'Saved'} {wanted}", "name": wanted, "names": saved(app)}


def load(app: AppState, name: Any) -> dict[str, Any]:
    """
    Load a saved mix, its masks included.

    Raises:
        LoraMixerError: When there is none of that name.
    """
    wanted = _saved(name)
    mix = app.mixes.load(wanted)
    for adapter in mix.adapters.values():
        if adapter.mask is not None and adapter.mask.picture is not None:
            app.masks.put_values(adapter.mask.picture)
    app.preloader.want(mix.names)
    rows = app.saved_rows.get(wanted, _key(mix))
    try:
        return shown_rows(rows_of(mix) if rows is None else read_rows(rows), app)
    except PictureError:  # somebody edited the file
        return shown_rows(rows_of(mix), app)


def _key(mix: Mix) -> str:
    return json.dumps(mix.to_dict(), sort_keys=True, default=str)


def delete(app: AppState, name: Any) -> dict[str, Any]:
    """
    Delete a saved mix.

    Raises:
        LoraMixerError: When there is none of that name.
    """
    wanted = _saved(name)
    app.mixes.delete(wanted)
    return {"said": f"Deleted {wanted}", "names": saved(app)}


def _saved(name: Any) -> str:
    wanted = checks.text(name, "The name", checks.MAX_NAME)
    if not wanted:
        raise PictureError("Choose a saved mix first.")
    return wanted


def undo(app: AppState) -> dict[str, Any]:
    """
    Take the last change of the saved mixes back.

    Raises:
        LoraMixerError: When there is none.
    """
    return {"said": f"Taken back: {app.mixes.undo()}", "names": saved(app)}
