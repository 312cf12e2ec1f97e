"""The Gallery page: pictures on disk, one opened, settings out of a picture that is dropped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gradio as gr

from .. import checks, gallery
from ..handlers import gallery as handlers
from ..handlers import sites
from ..theme import note, part
from .shared import Said, answering

if TYPE_CHECKING:
    from collections.abc import Callable

    from lora_mixer.picture_metadata import PictureSettings

    from .shared import Fields, Shared


def gallery_page(shared: Shared, fields: Fields, tab: Any, tabs: Any) -> None:
    """Lay the page out and connect it."""
    app = shared.app
    with gr.Row(elem_classes="lm-row2", equal_height=False):
        with gr.Column(scale=6, min_width=320):
            with gr.Column(elem_classes="lm-panel"):
                note(
                    "<b>Get settings back</b> from a picture made here or by AUTOMATIC1111, Forge, SD.Next, Fooocus, "
                    "InvokeAI, ComfyUI or SwarmUI."
                )
                drop = gr.File(
                    label="Picture",
                    show_label=False,
                    file_types=[".png", ".jpg", ".jpeg", ".webp"],
                    type="filepath",
                    height=96,
                    elem_id="picture-drop",
                )
            pictures = part("gallery", "open", "turn", "fresh", value=None, elem_id="gallery")
        with gr.Column(scale=6, min_width=320):
            shot = part("shot", "use", value=None, server_functions=_functions(shared), elem_id="shot")

    def refresh() -> Any:
        return gallery.listing(app)

    shared.connect(tab.select, refresh, None, pictures)

    def turn(event: gr.EventData) -> Any:
        return gallery.listing(app, event.page)

    shared.connect(pictures.turn, turn, None, pictures)

    def show(event: gr.EventData) -> Any:
        return gallery.details(app, event.id)

    shared.connect(pictures.open, show, None, shot)

    shared.connect(pictures.fresh, turn, None, pictures)
    outputs = [shared.mix_rows, *fields.taken, shot]

    def taken(settings: PictureSettings) -> list[Any]:
        mix_rows, answer = handlers.recalled(app, settings)
        given = handlers.taken(app, settings)
        return [
            mix_rows,
            *fields.values_of(given),
            handlers.report(app, settings, answer, given.unused),
        ]

    async def dropped(path: Any) -> Any:
        return await app.readers.do(lambda: taken(handlers.dropped(path, shared.cache)))

    shared.connect(drop.upload, dropped, drop, outputs, emptied=[drop])

    def use(event: gr.EventData) -> Any:
        answer = taken(handlers.of_gallery(app, event.id))
        opened = gallery.details(app, event.id)
        return Said(
            "Prompt, settings and mix are those of the picture now.",
            [
                *answer[:-1],
                {**answer[-1], "id": opened["id"], "url": opened["url"]},
                gr.Tabs(selected="make"),
            ],
        )

    shared.connect(shot.use, use, None, [*outputs, tabs])


def _functions(shared: Shared) -> list[Callable[..., Any]]:
    """Ask a site and fetch from it as work of the session's own: in no thread of the page's handlers."""

    async def ask_site(asked: Any) -> Any:
        return await shared.jobs.result(_owner(asked), "site", "a question", lambda _: sites.ask(asked))

    async def get_from_site(asked: Any) -> Any:
        work = shared.jobs.result(_owner(asked), "site", "a download", lambda _: sites.get(shared.app, asked))
        added = await work
        return {"words": added.words, "ids": list(added.ids)}

    return [answering(function) for function in (ask_site, get_from_site)]


def _owner(asked: Any) -> str:
    return f"{checks.opaque(checks.table(asked, 'question').get('token'), 'token')}/site"
