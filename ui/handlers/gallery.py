"""The handlers of the Gallery: pictures opened, and their settings taken back into the page."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_mixer.errors import PictureError
from lora_mixer.picture_metadata import (
    AdapterMatches,
    PictureSettings,
    match_adapters,
    read_picture,
    recalled_request,
)
from lora_mixer.pictures import PICTURE_FIELDS

from .. import gallery
from ..limits import NO_SKIP, NOTHING_MORE
from ..mix_rows import recalled_rows, shown_rows
from . import sites

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_mixer import PictureRequest

    from ..app_state import AppState

MAX_PICTURE = 64 << 20
OWN = "lora_mixer"
WEIGHTED = re.compile(r"\([^()]+:-?\d+(?:\.\d+)?\)")


def recalled(app: AppState, settings: PictureSettings) -> tuple[dict[str, Any], AdapterMatches]:
    """
    Return the rows of a picture's mix: by hash first, then by name; what is missing keeps its place.

    Only hashes that are known already are looked at, so that no picture makes the server read all of its files; where one
    of the picture's stays unknown, the others are computed behind the page.
    """
    entries = {
        name: entry
        for name, entry in zip(app.names(), app.every_entry(), strict=True)
        if not entry.problem and not entry.offline
    }
    matches = match_adapters(settings, {name: entry.hashes for name, entry in entries.items()})
    if _unsure(matches):
        app.hash_all(entries.values())
    for slot in matches.slots:
        mask = slot.adapter.spec.mask if slot.adapter.spec is not None else None
        if mask is not None and mask.picture is not None:
            with suppress(PictureError):  # the row says that its mask is not here
                app.masks.put_values(mask.picture)
    app.preloader.want(matches.mix.names)
    return shown_rows(recalled_rows(matches), app), matches


def _unsure(matches: AdapterMatches) -> bool:
    """Tell whether a file that nobody has hashed yet could be one that the picture names by its hash."""
    return any(slot.adapter.hashes and slot.found_by != "hash" for slot in matches.slots)


def with_off_rows(rows: dict[str, Any], before: Any) -> dict[str, Any]:
    """Return rows with those of before that were switched off and are not among them; a comparison knows nothing of these."""
    names = {row["name"] for row in rows["rows"]}
    old = before.get("rows", []) if isinstance(before, dict) else []
    off = [
        row
        for row in old
        if isinstance(row, dict) and row.get("on") is False and row.get("name") not in names
    ]
    return {**rows, "rows": [*rows["rows"], *off]}


def dropped(path: Any, cache: str) -> PictureSettings:
    """
    Read a picture that was dropped on the page.

    Args:
        path: What the browser uploaded.
        cache: The folder that uploads lie in; nothing outside of it is read.

    Raises:
        PictureError: When it is not an upload, or too large.
        PictureMetadataError: When nobody wrote settings into it.
    """
    given = Path(str(path))
    try:
        real = given.resolve(strict=True)
    except (OSError, ValueError) as error:
        raise PictureError("The upload is gone; drop the picture again.") from error
    if given.is_symlink() or not real.is_relative_to(Path(cache).resolve()) or not real.is_file():
        raise PictureError("This is not an upload.")
    if real.stat().st_size > MAX_PICTURE:
        raise PictureError(f"The picture is larger than {MAX_PICTURE >> 20} MB")
    return read_picture(real.read_bytes())


def of_gallery(app: AppState, picture_id: Any) -> PictureSettings:
    """
    Read a picture of the gallery.

    Raises:
        PictureError: When there is none.
    """
    return read_picture(gallery.path_of(app, picture_id))


@dataclass(frozen=True)
class Taken:
    """
    What a picture gives to the page's fields.

    Attributes:
        request: Its values; what it does not say is None.
        more: Sampler, schedule, clip skip and what it starts from, as the browser keeps them.
        unused: What it had that is not used here, in words.
        has_seed: Whether it said its seed.
    """

    request: PictureRequest
    more: dict[str, Any]
    unused: tuple[str, ...]
    has_seed: bool = True


def taken(app: AppState, settings: PictureSettings) -> Taken:
    """Read a picture's settings for the page, and say what of them is not used."""
    recalled = recalled_request(settings, base=app.base)
    request = recalled.request
    start = (settings.image or "").removesuffix(".png")
    here = app.starts.has(start)
    guide = (settings.ip_adapter_image or "").removesuffix(".png")
    followed = app.models.facts.guided and app.starts.has(guide)
    mask = (settings.mask_image or "").removesuffix(".png")
    said = [
        f"{PICTURE_FIELDS[problem.place].label if problem.place in PICTURE_FIELDS else problem.place}: {problem.text}"
        for problem in recalled.unused
        if not (here and problem.place in ("image", "mask_image"))
        and not (followed and problem.place == "ip_adapter_image")
    ]
    more = {
        **NOTHING_MORE,
        "sampler": _sampler(app, settings, request.sampler or ""),
        "schedule": request.schedule or "",
        "clip_skip": (request.clip_skip or 0) + NO_SKIP,
    }
    if here:
        more |= {
            "start": start,
            "inpaint": mask,
            "strength": 0.8 if request.strength is None else request.strength,
        }
    if followed and request.ip_adapter_scale != 0:  # without weight it followed none
        more |= {
            "guide": guide,
            "guide_scale": 1.0 if request.ip_adapter_scale is None else request.ip_adapter_scale,
        }
    model = app.models.facts
    if settings.model and Path(settings.model.replace("\\", "/")).stem not in (
        model.title,
        Path(model.title).stem,
    ):
        there = next((each.title for each in app.models.found().values() if each.title == settings.model), "")
        said.append(
            f"model {settings.model}: here it is {model.title}"
            + (f"; choose {there} under Model to have it" if there else "")
        )
    if model.emphasis_problem and WEIGHTED.search(settings.prompt + settings.negative_prompt):
        said.append(f"weights of words such as (x:1.3): {model.emphasis_problem}")
    return Taken(
        request, more, tuple(f"Not used: {text.rstrip('.')}." for text in said), "seed" in recalled.used
    )


def _sampler(app: AppState, settings: PictureSettings, name: str) -> str:
    """Return the sampler that a picture names, by its usual name; empty where it is the model's own."""
    if settings.dialect == OWN and name.endswith("Scheduler"):
        return "" if app.models.facts.scheduler == name else name
    return name


def report(
    app: AppState, settings: PictureSettings, matches: AdapterMatches, unused: Sequence[str]
) -> dict[str, Any]:
    """Say what was read and which adapters were found, for the page."""
    words = {
        "hash": "found by hash",
        "name": "found by name",
        "header": "found by what its file says of itself",
    }
    slots = []
    for slot in matches.slots:
        ok = slot.match is not None
        text = (
            f"{slot.adapter.name}: {words.get(slot.found_by, slot.found_by)}"
            if ok
            else f"{slot.adapter.name}: {slot.note or slot.found_by}; its place is kept"
        )
        slots.append({"ok": ok, "text": text + (f" ({slot.note})" if ok and slot.note else "")})
    notes = [*settings.notes, *matches.notes, *unused]
    if app.hashing and _unsure(matches):
        notes.append(
            "Not all files here were looked into yet; they are now: drop the picture again in a while."
        )
    return {
        **gallery.about(settings),
        "title": f"Settings read ({settings.dialect})" if settings.dialect else "Settings read",
        "slots": slots,
        "notes": notes,
        "missing": sites.missing(matches),
        "site": sites.asked_host(),
    }
