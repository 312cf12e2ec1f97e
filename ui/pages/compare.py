"""The Compare page: base against mix, each adapter alone, grids."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gradio as gr

from lora_mixer.errors import LoraMixerError

from ..handlers import compare as handlers
from ..handlers.gallery import of_gallery, recalled, taken, with_off_rows
from ..handlers.make import IDLE, read_request
from ..messages import told
from ..theme import note, part
from .shared import QUIET, Said

if TYPE_CHECKING:
    from .shared import Fields, Shared

_VALUES = "0, 0.5, 1    ·    0-1 (+0.25)    ·    1-4    ·    ink, neon"


def compare_page(shared: Shared, fields: Fields, tabs: Any) -> None:
    """Lay the page out and connect it; prompt and settings are those of the Make page."""
    app, compared = shared.app, handlers.CompareHandlers(shared.app, shared.jobs)
    given = [*fields.request, shared.mix_rows]
    with gr.Row(elem_classes="lm-row2", equal_height=False):
        with gr.Column(scale=5, min_width=320, elem_classes="lm-panel"):
            note("<b>Base against mix.</b> Same prompt and seed as on the Make page.")
            with gr.Row():
                both = gr.Button("Compare", variant="primary", elem_id="compare-button", min_width=88)
                alone = gr.Button("Each alone", elem_id="alone-button", min_width=92)
                stop = gr.Button("Stop", elem_id="compare-stop", min_width=60)
            slider = part("slider", value=None, elem_id="compare-slider")
            state = part("progress", value=IDLE, elem_id="compare-state")
        with gr.Column(scale=7, min_width=320):
            with gr.Column(elem_classes="lm-panel"):
                axes = part(
                    "form",
                    value=None,
                    kept_as="axes",
                    fields=[
                        *_axis("Left to right", "columns", 0, "adapter's weight", "0-1 (+0.5)"),
                        *_axis("Top to bottom", "rows", 1, "seed", "1-2"),
                    ],
                    elem_id="axes",
                )
                grid_button = gr.Button("Make the grid", variant="primary", elem_id="grid-button")
            grid = part("grid", "take", value=None, elem_id="grid")

    def request_of(*values: Any) -> Any:
        return read_request(app, *values)

    async def compare(
        prompt: Any, negative: Any, seed: Any, steps: Any, guidance: Any, wide: Any, high: Any, more: Any,
        mix_rows: Any,
        request: gr.Request,
    ) -> Any:  # fmt: skip
        try:
            wanted = request_of(prompt, negative, seed, steps, guidance, wide, high, more, mix_rows)
        except LoraMixerError as error:
            yield {**IDLE, "state": "error", **told(error)}, gr.skip()
            return
        async for view, pair in compared.slider(shared.owner_of(request), wanted):
            yield view, list(pair) if pair else gr.skip()

    both.click(compare, given, [state, slider], **QUIET)

    async def each(
        prompt: Any, negative: Any, seed: Any, steps: Any, guidance: Any, wide: Any, high: Any, more: Any,
        mix_rows: Any,
        request: gr.Request,
    ) -> Any:  # fmt: skip
        try:
            wanted = app.tagged(
                request_of(prompt, negative, seed, steps, guidance, wide, high, more, mix_rows)
            )
            columns, rows = handlers.alone_axes(wanted)
        except LoraMixerError as error:
            yield {"state": "error", **told(error)}
            return
        async for shown in compared.grid(shared.owner_of(request), wanted, columns, rows):
            yield shown

    alone.click(each, given, grid, **QUIET)

    async def make_grid(
        prompt: Any, negative: Any, seed: Any, steps: Any, guidance: Any, wide: Any, high: Any, more: Any,
        mix_rows: Any, given: Any, request: gr.Request,
    ) -> Any:  # fmt: skip
        try:
            wanted = request_of(prompt, negative, seed, steps, guidance, wide, high, more, mix_rows)
            columns, rows = (handlers.read_axis(app, given, name) for name in ("columns", "rows"))
        except LoraMixerError as error:
            yield {"state": "error", **told(error)}
            return
        async for shown in compared.grid(shared.owner_of(request), wanted, columns, rows):
            yield shown

    grid_button.click(make_grid, [*given, axes], grid, **QUIET)

    def halt(request: gr.Request) -> None:
        shared.jobs.stop(shared.owner_of(request))

    stop.click(halt, None, None, **QUIET)

    def take(mix_rows: Any, event: gr.EventData) -> Any:
        settings = of_gallery(app, event.id)
        rows, _ = recalled(app, settings)
        given = fields.values_of(taken(app, settings))
        values = [with_off_rows(rows, mix_rows), *given, gr.Tabs(selected="make")]
        return Said("Mix, seed, steps and words are those of this cell now.", values)

    shared.connect(grid.take, take, shared.mix_rows, [shared.mix_rows, *fields.taken, tabs])


def _axis(label: str, name: str, row: int, kind: str, text: str) -> list[dict[str, Any]]:
    return [
        {
            "id": f"{name}-kind", "label": label, "kind": "select", "choices": list(handlers.AXES), "value": kind,
            "row": row, "wide": 3, "least": 170,
        },
        {
            "id": f"{name}-values", "label": "Values", "kind": "lines", "value": text, "placeholder": _VALUES,
            "row": row, "wide": 2,
        },
        {
            "id": f"{name}-adapter", "label": "Adapter", "kind": "adapter", "row": row, "wide": 2,
            "only": {"field": f"{name}-kind", "value": [shown for shown in handlers.AXES if shown.startswith("adapter's")]},
        },
    ]  # fmt: skip
