"""The handlers of the Compare page: base against mix, each adapter alone, and grids over two axes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lora_mixer import GridAxis, Mix, grid_requests, grid_sheet
from lora_mixer.errors import LoraMixerError, PictureError

from .. import checks, gallery
from ..jobs import Jobs, make_all, stream
from .make import JobView

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from lora_mixer import PictureRequest

    from ..app_state import AppState

MAX_CELLS = 144
AXES = {
    "nothing": "none",
    "adapter's weight": "weight",
    "adapter's UNet weight": "unet",
    "adapter's text weight": "te",
    "adapter alone": "adapter",
    "seed": "seed",
    "steps": "steps",
    "guidance": "guidance",
    "adapter's blocks": "blocks",
    "words in the prompt": "prompt",
    "whole mix": "mix",
}


def read_axis(app: AppState, label: Any, text: Any, adapter: Any) -> GridAxis:
    """
    Read an axis of the page.

    Raises:
        PictureError: When it makes no sense.
    """
    from ..mix_rows import read_mix

    kind = AXES[checks.choice(label, "axis", tuple(AXES))]
    axis = GridAxis.read(kind, checks.text(text, "values", 4000), checks.text(adapter, "adapter", 256))
    if kind == "mix":  # no file that a stranger names is opened
        return GridAxis("mix", tuple(read_mix(value, app) for value in axis.values))
    return axis


def alone_axes(request: PictureRequest) -> tuple[GridAxis, GridAxis]:
    """Give the axes of: base, each adapter alone, all together."""
    mix = request.mix
    if not mix.names:
        raise PictureError("the mix is empty: add adapters in the Library, and switch them on")
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
                raise PictureError("the mix is empty: add adapters in the Library, and switch them on")
            job = self.jobs.start(owner)
        except LoraMixerError as error:
            yield {"state": "error", "message": str(error), "pictures": []}, None
            return
        pair = [replace(request, mix=Mix()), request]
        view = JobView(2)

        def work(tell: Any) -> list[str]:
            return [name for _, name in make_all(self.app, job, pair, tell)]

        async for event in stream(work, self.jobs, job):
            names = event.get("result")
            both = None
            if names:
                both = tuple(str(gallery.path_of(self.app, name)) for name in names)
            yield view.heard(event), both  # type: ignore[misc]

    async def grid(
        self, owner: str, request: PictureRequest, columns: GridAxis, rows: GridAxis
    ) -> AsyncIterator[dict[str, Any]]:
        """Make a grid in mixed batches; gives the grid to show, again and again."""
        try:
            request = self.app.tagged(request)
            requests = grid_requests(request, columns, rows)
            if len(requests) > MAX_CELLS:
                raise PictureError(f"the page makes at most {MAX_CELLS} cells, got {len(requests)}")
            job = self.jobs.start(owner)
        except LoraMixerError as error:
            yield {"state": "error", "message": str(error)}
            return
        shown: dict[str, Any] = {
            "state": "queued",
            "ahead": 0,
            "columns": list(columns.labels),
            "rows": list(rows.labels),
            "cells": [None] * len(requests),
        }
        yield shown

        def work(tell: Any) -> str:
            made = make_all(
                self.app,
                job,
                requests,
                tell,
                maker=self.app.grid_maker,
                batch=self.app.options.grid_batch,
            )
            return gallery.keep_sheet(
                self.app, grid_sheet([picture.image for picture, _ in made], columns, rows)
            )

        async for event in stream(work, self.jobs, job):
            shown = _heard(self.app, shown, event)
            yield shown


def _heard(app: AppState, shown: dict[str, Any], event: dict[str, Any]) -> dict[str, Any]:
    cells = list(shown["cells"])
    if event["state"] == "picture":
        cells[event["index"]] = event["card"]
        return {**shown, "cells": cells}
    previews, indices = event.pop("previews", []), event.pop("indices", [])
    for index, preview in zip(indices, previews, strict=False):
        if cells[index] is None:
            cells[index] = None if not preview else {"id": "", "thumb": preview, "mix": ""}
    sheet = event.pop("result", None)
    found = {**shown, **event, "cells": cells}
    if sheet:
        found["sheet"] = gallery.url_of(gallery.path_of(app, sheet))
    return found
