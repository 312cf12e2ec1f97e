"""The handlers of the Compare page: base against mix, each adapter alone, and grids over two axes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lora_mixer import GridAxis, Mix, grid_requests, grid_sheet
from lora_mixer.errors import LoraMixerError, PictureError

from .. import checks, gallery
from ..jobs import Jobs, Order, make_all
from ..messages import FieldError, told, words_of
from .make import IDLE, heard

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from lora_mixer import PictureRequest

    from ..app_state import AppState
    from ..jobs import SessionJob

MAX_CELLS = 144
EMPTY = "The mix is empty: add adapters in the Library, and switch them on."
AXES = {
    "nothing": "none",
    "adapter's weight": "weight",
    "adapter's denoiser weight": "denoiser",
    "adapter's text weight": "te",
    "adapter alone": "adapter",
    "seed": "seed",
    "steps": "steps",
    "guidance": "guidance",
    "adapter's blocks": "blocks",
    "words in the prompt": "prompt",
    "whole mix": "mix",
}
_FORMER = {"adapter's UNet weight": "adapter's denoiser weight"}
"""What axes were called before, as browsers keep them."""


def read_axis(app: AppState, given: Any, name: str) -> GridAxis:
    """
    Read one of the page's axes.

    Args:
        app: Where.
        given: The fields of both, by their names on the page; None is a page that sent none.
        name: ``columns`` or ``rows``.

    Raises:
        FieldError: When it makes no sense, with the field that holds it.
    """
    from ..mix_rows import read_mix

    fields = {} if given is None else checks.table(given, "axes")
    nothing = next(iter(AXES))
    given_kind = fields.get(f"{name}-kind", nothing)
    kind = AXES[checks.choice(_FORMER.get(str(given_kind), given_kind), "axis", tuple(AXES), f"{name}-kind")]
    if kind == "denoiser":
        kind = "unet" if app.layout is None or app.layout.is_unet else "transformer"
    text = checks.text(fields.get(f"{name}-values"), "Values", 4000, f"{name}-values")
    adapter = checks.text(fields.get(f"{name}-adapter"), "Adapter", 256, f"{name}-adapter")
    try:
        axis = GridAxis.read(kind, text, adapter)
        if kind == "mix":  # no file that a stranger names is opened
            return GridAxis("mix", tuple(read_mix(value, app) for value in axis.values))
    except LoraMixerError as error:
        raise FieldError(words_of(error), f"{name}-values") from error
    return axis


def alone_axes(request: PictureRequest) -> tuple[GridAxis, GridAxis]:
    """Return the axes of: base, each adapter alone, all together."""
    mix = request.mix
    if not mix.names:
        raise PictureError(EMPTY)
    rows = {"base": Mix(), **{name: Mix({name: mix[name]}) for name in mix}}
    if len(mix) > 1:
        rows["all together"] = mix
    return GridAxis("none"), GridAxis("mix", tuple(rows.values()), names=tuple(rows))


class CompareHandlers:
    """
    Makes comparisons for sessions.

    Args:
        app: What they share.
        jobs: The running jobs.
    """

    def __init__(self, app: AppState, jobs: Jobs) -> None:
        """Keep both."""
        self.app, self.jobs = app, jobs

    async def slider(
        self, owner: str, request: PictureRequest
    ) -> AsyncIterator[tuple[dict[str, Any], tuple[str, str] | None]]:
        """Make the base and the mix with the same seed; gives the view, and the two files at the end."""
        try:
            request = self.app.tagged(request)
            if not request.mix.names:
                raise PictureError(EMPTY)
            pair, model = [replace(request, mix=Mix()), request], self.app.models.number
            order = Order(
                "base and mix",
                lambda job: [name for _, name in make_all(self.app, job, pair, job.tell, model=model)],
            )
            view = {**IDLE, "state": "queued", "count": 2, "ahead": 0}
            job, _ = self.jobs.submit(owner, "compare", order, view, _compared)
        except LoraMixerError as error:
            yield {**IDLE, "state": "error", **told(error)}, None
            return
        async for shown in job.follow():
            names = shown.pop("names", None)
            both = names and tuple(gallery.url_of(gallery.path_of(self.app, name)) for name in names)
            yield shown, both or None

    async def grid(
        self, owner: str, request: PictureRequest, columns: GridAxis, rows: GridAxis
    ) -> AsyncIterator[dict[str, Any]]:
        """Make a grid in mixed batches; gives the grid to show, again and again."""
        try:
            request = self.app.tagged(request)
            if columns.kind not in ("none", "prompt") and _changed(columns) == _changed(rows):
                raise FieldError(
                    f"Both axes change {_changed(columns)}, so one would undo the other: choose something else for one.",
                    "rows-kind",
                )
            requests = grid_requests(request, columns, rows)
            if len(requests) > MAX_CELLS:
                raise PictureError(
                    f"The page makes at most {MAX_CELLS} cells; these axes have {len(requests)}."
                )

            model = self.app.models.number

            def work(job: SessionJob) -> str:
                made = make_all(
                    self.app,
                    job,
                    requests,
                    job.tell,
                    maker=lambda: self.app.grid_maker,
                    batch=self.app.options.grid_batch,
                    model=model,
                )
                return gallery.keep_sheet(
                    self.app, grid_sheet([picture.image for picture, _ in made], columns, rows)
                )

            view: dict[str, Any] = {
                "state": "queued",
                "ahead": 0,
                "columns": list(columns.labels),
                "rows": list(rows.labels),
                "cells": [None] * len(requests),
            }
            job, _ = self.jobs.submit(owner, "grid", Order("a grid", work), view, self._grid_heard)
        except LoraMixerError as error:
            yield {"state": "error", **told(error)}
            return
        async for shown in job.follow():
            yield shown

    def _grid_heard(self, shown: dict[str, Any], event: dict[str, Any]) -> dict[str, Any]:
        cells = list(shown["cells"])
        if event["state"] == "picture":
            cells[event["index"]] = event["card"]
            return {**shown, "cells": cells}
        for index, preview in zip(event.get("indices", ()), event.get("previews", ()), strict=False):
            if cells[index] is None:
                cells[index] = None if not preview else {"id": "", "thumb": preview, "mix": ""}
        kept = {key: part for key, part in event.items() if key not in ("previews", "indices", "result")}
        grid = {**shown, **kept, "cells": cells}
        if event.get("result"):
            grid["sheet"] = gallery.url_of(gallery.path_of(self.app, event["result"]))
        return grid


def _changed(axis: GridAxis) -> str:
    return f"the {axis.kind} of {axis.adapter}" if axis.adapter else f"the {axis.kind}"


def _compared(view: dict[str, Any], event: dict[str, Any]) -> dict[str, Any]:
    value = heard(view, event)
    return {**value, "names": event["result"]} if event.get("result") else value
