"""The Make page: prompt, settings, and the view where pictures form."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ..handlers.make import IDLE, MAX_COUNT, MAX_STEPS, MakeHandlers, random_seed
from ..theme import part
from .shared import QUIET, Fields, Shared, owner_of


def make_page(shared: Shared) -> Fields:
    """Lay the page out and connect it."""
    app, handlers = shared.app, MakeHandlers(shared.app, shared.jobs)
    width, height = app.size
    with gr.Row(elem_classes="lm-row2", equal_height=False):
        with gr.Column(scale=5, min_width=320, elem_classes="lm-panel"):
            prompt = gr.Textbox(
                label="Prompt",
                lines=4,
                max_lines=10,
                elem_id="prompt",
                placeholder="a castle, watercolor painting    ·    <lora:name:0.8> works here too",
            )
            negative = gr.Textbox(label="Negative prompt", lines=2, max_lines=5, elem_id="negative")
            with gr.Row(elem_classes="lm-bottom"):
                seed = gr.Textbox(label="Seed", value=random_seed(), elem_id="seed", min_width=120, scale=3)
                dice = gr.Button("Random", elem_id="seed-random", min_width=84, scale=1)
            locked = gr.Checkbox(label="Keep this seed", value=True, elem_id="seed-lock")
            with gr.Row():
                steps = gr.Number(
                    label="Steps", value=app.defaults["steps"], precision=0, minimum=1, maximum=MAX_STEPS,
                    elem_id="steps", min_width=80,
                )  # fmt: skip
                guidance = gr.Number(
                    label="Guidance", value=app.defaults["guidance_scale"], minimum=0, step=0.5,
                    elem_id="guidance", min_width=80,
                )  # fmt: skip
                count = gr.Number(
                    label="Pictures", value=1, precision=0, minimum=1, maximum=MAX_COUNT,
                    elem_id="count", min_width=80,
                )  # fmt: skip
            with gr.Row():
                wide = gr.Number(
                    label="Width", value=width, precision=0, step=8, elem_id="width", min_width=80
                )
                high = gr.Number(
                    label="Height", value=height, precision=0, step=8, elem_id="height", min_width=80
                )
            with gr.Row():
                make = gr.Button("Make", variant="primary", elem_id="make-button", scale=3, min_width=120)
                stop = gr.Button("Stop", elem_id="stop-button", scale=1, min_width=80)
        with gr.Column(scale=7, min_width=320):
            view = part("job", value=IDLE, elem_id="job")
    fields = Fields(prompt, negative, seed, locked, steps, guidance, wide, high)

    async def run(
        prompt: Any, negative: Any, seed: Any, locked: Any, steps: Any, guidance: Any, wide: Any, high: Any,
        count: Any, mix_rows: Any, request: gr.Request,
    ) -> Any:  # fmt: skip
        async for shown in handlers.make(
            owner_of(request), prompt, negative, seed, locked, steps, guidance, wide, high, count, mix_rows
        ):
            yield shown

    values = [prompt, negative, seed, locked, steps, guidance, wide, high, count, shared.mix_rows]
    make.click(run, values, [view, seed], **QUIET)

    def halt(request: gr.Request) -> None:
        handlers.stop(owner_of(request))

    stop.click(halt, None, None, **QUIET)
    dice.click(random_seed, None, seed, **QUIET)
    return fields
