"""The Compare page: base against mix, each adapter alone, grids."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gradio as gr

from lora_mixer.errors import LoraMixerError

from . import desk_compare
from .desk_gallery import of_gallery, recalled
from .desk_make import IDLE, read_request
from .page import FAST, QUIET, guarded, owner_of
from .theme import part

if TYPE_CHECKING:
    from .page import Fields, Shared

_VALUES = "0, 0.5, 1    ·    0-1 (+0.25)    ·    1-4    ·    ink, neon"


def compare_page(shared: Shared, fields: Fields) -> None:
    """Lay the page out and connect it; prompt and settings are those of the Make page."""
    studio, desk = shared.studio, desk_compare.CompareDesk(shared.studio, shared.jobs)
    given = [*fields.request, shared.board]
    with gr.Row(elem_classes="lm-row2", equal_height=False):
        with gr.Column(scale=5, min_width=320, elem_classes="lm-panel"):
            gr.Markdown(
                "**Base against mix.** Same prompt and seed as on the Make page.", elem_classes="lm-note"
            )
            with gr.Row():
                both = gr.Button("Compare", variant="primary", elem_id="compare-button", min_width=88)
                alone = gr.Button("Each alone", elem_id="alone-button", min_width=92)
                stop = gr.Button("Stop", elem_id="compare-stop", min_width=60)
            slider = gr.ImageSlider(
                label="Base and mix",
                type="filepath",
                format="png",
                show_label=False,
                elem_id="compare-slider",
                max_height=520,
                interactive=False,
                buttons=["fullscreen"],
            )
            state = part("stage", value=IDLE, elem_id="compare-state", elem_classes="lm-onlystate")
        with gr.Column(scale=7, min_width=320):
            with gr.Column(elem_classes="lm-panel"):
                axes = [_axis("Left to right", "columns", "adapter's weight", "0-1 (+0.5)"),
                        _axis("Top to bottom", "rows", "seed", "1-2")]  # fmt: skip
                grid_button = gr.Button("Make the grid", variant="primary", elem_id="grid-button")
            grid = part("grid", "take", value=None, elem_id="grid")

    def request_of(*values: Any) -> Any:
        return read_request(studio, *values)

    async def compare(
        prompt: Any, negative: Any, seed: Any, steps: Any, guidance: Any, wide: Any, high: Any, board: Any,
        request: gr.Request,
    ) -> Any:  # fmt: skip
        try:
            wanted = request_of(prompt, negative, seed, steps, guidance, wide, high, board)
        except LoraMixerError as error:
            yield {**IDLE, "state": "error", "message": str(error)}, gr.skip()
            return
        async for stage, pair in desk.slider(owner_of(request), wanted):
            yield stage, pair or gr.skip()

    both.click(compare, given, [state, slider], **QUIET)

    async def each(
        prompt: Any, negative: Any, seed: Any, steps: Any, guidance: Any, wide: Any, high: Any, board: Any,
        request: gr.Request,
    ) -> Any:  # fmt: skip
        try:
            wanted = studio.tagged(request_of(prompt, negative, seed, steps, guidance, wide, high, board))
            columns, rows = desk_compare.alone_axes(wanted)
        except LoraMixerError as error:
            yield {"state": "error", "message": str(error)}
            return
        async for shown in desk.grid(owner_of(request), wanted, columns, rows):
            yield shown

    alone.click(each, given, grid, **QUIET)

    async def make_grid(
        prompt: Any, negative: Any, seed: Any, steps: Any, guidance: Any, wide: Any, high: Any, board: Any,
        kind: Any, text: Any, adapter: Any, kind_2: Any, text_2: Any, adapter_2: Any, request: gr.Request,
    ) -> Any:  # fmt: skip
        try:
            wanted = request_of(prompt, negative, seed, steps, guidance, wide, high, board)
            columns = desk_compare.read_axis(studio, kind, text, adapter)
            rows = desk_compare.read_axis(studio, kind_2, text_2, adapter_2)
        except LoraMixerError as error:
            yield {"state": "error", "message": str(error)}
            return
        async for shown in desk.grid(owner_of(request), wanted, columns, rows):
            yield shown

    grid_button.click(make_grid, [*given, *axes[0], *axes[1]], grid, **QUIET)

    def halt(request: gr.Request) -> None:
        shared.jobs.stop(owner_of(request))

    stop.click(halt, None, None, **FAST)

    @guarded
    def take(event: gr.EventData) -> Any:
        board, _ = recalled(studio, of_gallery(studio, event.id))
        gr.Info("The mix of this cell is now yours.")
        return board

    grid.take(take, None, shared.board, **FAST)

    def named(board: Any, first: Any, second: Any) -> tuple[Any, Any]:
        rows = board.get("rows", []) if isinstance(board, dict) else []
        names = [str(row.get("name"))[:256] for row in rows if isinstance(row, dict)][:64]
        return tuple(
            gr.Dropdown(choices=names, value=chosen if chosen in names else names[0] if names else None)
            for chosen in (first, second)
        )  # type: ignore[return-value]

    shared.board.change(named, [shared.board, axes[0][2], axes[1][2]], [axes[0][2], axes[1][2]], **FAST)


def _axis(label: str, name: str, kind: str, text: str) -> list[Any]:
    with gr.Row():
        chosen = gr.Dropdown(
            label=label, choices=list(desk_compare.AXES), value=kind, elem_id=f"{name}-kind", min_width=190,
            scale=3,
        )  # fmt: skip
        values = gr.Textbox(
            label="Values", value=text, placeholder=_VALUES, elem_id=f"{name}-values", min_width=110, scale=2
        )
        adapter = gr.Dropdown(label="Adapter", choices=[], elem_id=f"{name}-adapter", min_width=110, scale=2)
    return [chosen, values, adapter]
