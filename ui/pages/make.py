"""The Make page: prompt, settings, and the view where pictures form."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gradio as gr

from .. import checks
from ..handlers import model as models
from ..handlers.make import IDLE, MakeHandlers, random_seed
from ..limits import MIN_SIDE, NOTHING_MORE
from ..theme import part
from .shared import QUIET, Fields, Shared, answering, steady

if TYPE_CHECKING:
    from collections.abc import Callable


def make_page(shared: Shared) -> Fields:
    """Lay the page out and connect it: the picture first, what it is made of below."""
    app, handlers = shared.app, MakeHandlers(shared.app, shared.jobs)
    width, height = app.size
    view = part("job", "hello", "draft", value=IDLE, elem_id="stage")
    draft = part("draft", value=None, elem_id="draft", elem_classes="lm-unseen")
    with gr.Column(elem_classes="lm-panel", elem_id="words"):
        with gr.Row(elem_classes="lm-prompts"):
            prompt = gr.Textbox(
                label="Prompt", lines=2, max_lines=10, elem_id="prompt", scale=5, min_width=240,
                placeholder="a castle, watercolor painting    ·    <lora:name:0.8> works here too",
            )  # fmt: skip
            negative = gr.Textbox(
                label="Negative prompt", lines=2, max_lines=5, elem_id="negative", scale=3, min_width=200
            )
            with gr.Column(scale=0, min_width=148, elem_id="make-bar"):
                make = gr.Button("Make", variant="primary", elem_id="make-button", min_width=80)
                stop = gr.Button("Stop", elem_id="stop-button", min_width=60)
        with gr.Row(elem_classes="lm-bottom lm-settings"):
            seed = gr.Textbox(label="Seed", value=random_seed(), elem_id="seed", min_width=112, scale=3)
            dice = gr.Button("Random", elem_id="seed-random", min_width=80, scale=0)
            locked = gr.Checkbox(
                label="Keep this seed", value=True, elem_id="seed-lock", min_width=136, scale=0
            )
            steps = gr.Number(
                label="Steps",
                value=app.defaults["steps"],
                precision=0,
                elem_id="steps",
                min_width=62,
                scale=1,
            )
            guidance = gr.Number(
                label="Guidance", value=app.defaults["guidance_scale"], step=0.5, elem_id="guidance",
                min_width=62, scale=1,
            )  # fmt: skip
            wide = gr.Number(
                label="Width", value=width, precision=0, step=8, elem_id="width", min_width=62, scale=1
            )
            high = gr.Number(
                label="Height", value=height, precision=0, step=8, elem_id="height", min_width=62, scale=1
            )
            count = gr.Number(label="Pictures", value=1, precision=0, elem_id="count", min_width=62, scale=1)
        more = part(
            "more",
            value=dict(NOTHING_MORE),
            plain=dict(NOTHING_MORE),
            least_side=MIN_SIDE,
            built=models.fields(app),
            server_functions=_functions(shared),
            elem_id="more",
        )
    fields = Fields(prompt, negative, seed, locked, steps, guidance, wide, high, more)

    async def run(
        prompt: Any, negative: Any, seed: Any, locked: Any, steps: Any, guidance: Any, wide: Any, high: Any,
        count: Any, more: Any, mix_rows: Any, request: gr.Request,
    ) -> Any:  # fmt: skip
        fresh = True  # the seed is written once: later it may be somebody's next one
        async for shown, used in handlers.make(
            shared.owner_of(request),
            prompt,
            negative,
            seed,
            locked,
            steps,
            guidance,
            wide,
            high,
            count,
            more,
            mix_rows,
        ):
            yield shown, used if fresh else gr.skip()
            fresh = False

    values = [prompt, negative, seed, locked, steps, guidance, wide, high, count, more, shared.mix_rows]
    shared.told_above(make.click(steady(run), values, [view, seed], trigger_mode="multiple", **QUIET))

    async def hello(event: gr.EventData, request: gr.Request) -> Any:
        token = checks.opaque(event.token, "token")
        if not token.startswith("browser-"):
            return
        app.sessions.join(str(request.session_hash), token)
        async for shown in handlers.follow(token):
            yield shown

    view.hello(steady(hello), None, view, **QUIET)

    async def drafted(
        prompt: Any, negative: Any, seed: Any, steps: Any, guidance: Any, wide: Any, high: Any, more: Any,
        mix_rows: Any, request: gr.Request,
    ) -> Any:  # fmt: skip
        owner = shared.owner_of(request)
        async for shown in handlers.draft(
            owner, prompt, negative, seed, steps, guidance, wide, high, more, mix_rows
        ):
            yield shown

    shared.told_above(
        view.draft(
            steady(drafted), [*fields.request, shared.mix_rows], draft, trigger_mode="always_last", **QUIET
        )
    )

    def halt(request: gr.Request) -> None:
        handlers.stop(shared.owner_of(request))

    stop.click(halt, None, None, **QUIET)
    dice.click(None, None, None, js="() => { lm.fields.roll(); }", **QUIET)  # where the history is
    return fields


def _functions(shared: Shared) -> list[Callable[[Any], Any]]:
    app, jobs = shared.app, shared.jobs

    def model(_: Any) -> Any:
        return models.state(app)

    def change_model(asked: Any) -> Any:
        given = checks.table(asked, "model")
        return models.change(app, jobs, checks.opaque(given.get("token"), "token"), given.get("key"))

    def start_from(asked: Any) -> Any:
        return models.start_from(app, asked)

    def start_shown(digest: Any) -> Any:
        return models.start_shown(app, digest)

    def complete(asked: Any) -> Any:
        return models.complete(app, asked)

    return [answering(function) for function in (model, change_model, start_from, start_shown, complete)]
