"""The Compare page: base against mix, each adapter alone, grids."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gradio as gr

from lora_mixer.errors import LoraMixerError

from ..handlers import compare as handlers
from ..handlers.gallery import of_gallery, recalled, taken, with_off_rows
from ..handlers.make import IDLE, read_request
from ..messages import told
from ..theme import part
from .shared import QUIET, guarded

if TYPE_CHECKING:
    from .shared import Fields, Shared

_VALUES = "0, 0.5, 1    ·    0-1 (+0.25)    ·    1-4    ·    ink, neon"


def compare_page(shared: Shared, fields: Fields, tabs: Any) -> None:
    """Lay the page out and connect it; prompt and settings are those of the Make page."""
    app, compared = shared.app, handlers.CompareHandlers(shared.app, shared.jobs)
    given = [*fields.request, shared.mix_rows]
    with gr.Row(elem_classes="lm-row2", equal_height=False):
        with gr.Column(scale=5, min_width=320, elem_classes="lm-panel"):
            gr.Markdown(
                "**Base against mix.** Same prompt and seed as on the Make page.", elem_classes="lm-note"
            )
            with gr.Row():
                both = gr.Button("Compare", variant="primary", elem_id="compare-button", min_width=88)
                alone = gr.Button("Each alone", elem_id="alone-button", min_width=92)
                stop = gr.Button("Stop", elem_id="compare-stop", min_width=60)
            slider = part("slider", value=None, elem_id="compare-slider")
            state = part("progress", value=IDLE, elem_id="compare-state")
        with gr.Column(scale=7, min_width=320):
            with gr.Column(elem_classes="lm-panel"):
                axes = [_axis("Left to right", "columns", "adapter's weight", "0-1 (+0.5)"),
                        _axis("Top to bottom", "rows", "seed", "1-2")]  # fmt: skip
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
        mix_rows: Any,
        kind: Any, text: Any, adapter: Any, kind_2: Any, text_2: Any, adapter_2: Any, request: gr.Request,
    ) -> Any:  # fmt: skip
        try:
            wanted = request_of(prompt, negative, seed, steps, guidance, wide, high, more, mix_rows)
            columns = handlers.read_axis(app, kind, text, adapter)
            rows = handlers.read_axis(app, kind_2, text_2, adapter_2)
        except LoraMixerError as error:
            yield {"state": "error", **told(error)}
            return
        async for shown in compared.grid(shared.owner_of(request), wanted, columns, rows):
            yield shown

    grid_button.click(make_grid, [*given, *axes[0], *axes[1]], grid, **QUIET)

    def halt(request: gr.Request) -> None:
        shared.jobs.stop(shared.owner_of(request))

    stop.click(halt, None, None, **QUIET)

    @guarded
    def take(mix_rows: Any, event: gr.EventData) -> Any:
        settings = of_gallery(app, event.id)
        rows, _ = recalled(app, settings)
        gr.Info("Mix, seed, steps and words are those of this cell now.")
        given = fields.values_of(taken(app, settings))
        return [with_off_rows(rows, mix_rows), *given, gr.Tabs(selected="make")]

    grid.take(take, shared.mix_rows, [shared.mix_rows, *fields.taken, tabs], **QUIET)

    def named(mix_rows: Any, first: Any, second: Any) -> tuple[Any, Any]:
        rows = mix_rows.get("rows", []) if isinstance(mix_rows, dict) else []
        names = [str(row.get("name"))[:256] for row in rows if isinstance(row, dict)][:64]
        return tuple(
            gr.Dropdown(choices=names, value=chosen if chosen in names else names[0] if names else None)
            for chosen in (first, second)
        )  # type: ignore[return-value]

    shared.mix_rows.change(
        named, [shared.mix_rows, axes[0][2], axes[1][2]], [axes[0][2], axes[1][2]], **QUIET
    )


def _axis(label: str, name: str, kind: str, text: str) -> list[Any]:
    with gr.Row():
        chosen = gr.Dropdown(
            label=label, choices=list(handlers.AXES), value=kind, elem_id=f"{name}-kind", min_width=190,
            scale=3,
        )  # fmt: skip
        values = gr.Textbox(
            label="Values", value=text, placeholder=_VALUES, elem_id=f"{name}-values", min_width=110, scale=2
        )
        adapter = gr.Dropdown(label="Adapter", choices=[], elem_id=f"{name}-adapter", min_width=110, scale=2)
    return [chosen, values, adapter]
