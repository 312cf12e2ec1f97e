"""The Gallery page: pictures on disk, one opened, settings out of a picture that is dropped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gradio as gr

from lora_mixer.errors import LoraMixerError

from .. import gallery
from ..handlers import gallery as handlers
from ..messages import words_of
from ..theme import part
from .shared import QUIET, guarded, plain

if TYPE_CHECKING:
    from lora_mixer.picture_metadata import PictureSettings

    from .shared import Fields, Shared


def gallery_page(shared: Shared, fields: Fields, tab: Any, tabs: Any) -> None:
    """Lay the page out and connect it."""
    app = shared.app
    with gr.Row(elem_classes="lm-row2", equal_height=False):
        with gr.Column(scale=6, min_width=320):
            with gr.Column(elem_classes="lm-panel"):
                gr.Markdown(
                    "**Get settings back** from a picture made here or by AUTOMATIC1111, Forge, SD.Next, Fooocus, "
                    "InvokeAI, ComfyUI or SwarmUI.",
                    elem_classes="lm-note",
                )
                drop = gr.File(
                    label="Picture",
                    show_label=False,
                    file_types=[".png", ".jpg", ".jpeg", ".webp"],
                    type="filepath",
                    height=150,
                    elem_id="picture-drop",
                )
            pictures = part("gallery", "open", "turn", "fresh", value=None, elem_id="gallery")
        with gr.Column(scale=6, min_width=320):
            shot = part("shot", "use", value=None, elem_id="shot")

    def refresh() -> Any:
        return gallery.listing(app)

    tab.select(refresh, None, pictures, **QUIET)

    @guarded
    def turn(event: gr.EventData) -> Any:
        return gallery.listing(app, event.page)

    pictures.turn(turn, None, pictures, **QUIET)

    @guarded
    def show(event: gr.EventData) -> Any:
        return gallery.details(app, event.id)

    pictures.open(show, None, shot, **QUIET)

    def afresh(event: gr.EventData) -> Any:
        return gallery.listing(app, event.page)

    pictures.fresh(guarded(afresh), None, pictures, **QUIET)
    outputs = [shared.mix_rows, *fields.taken, shot]

    def taken(settings: PictureSettings) -> list[Any]:
        mix_rows, found = handlers.recalled(app, settings)
        given = handlers.taken(app, settings)
        return [
            mix_rows,
            *fields.values_of(given),
            handlers.report(app, settings, found, given.unused),
        ]

    def dropped(path: Any) -> list[Any]:
        # the field is emptied whatever came of it, so that the next picture can be dropped
        try:
            if path is not None:
                return [*taken(handlers.dropped(path, shared.cache)), None]
        except LoraMixerError as error:
            gr.Warning(plain(words_of(error)), title="No settings read", duration=12)
        return [*[gr.skip()] * len(outputs), None]

    drop.upload(dropped, drop, [*outputs, drop], **QUIET)

    @guarded
    def use(event: gr.EventData) -> list[Any]:
        found = taken(handlers.of_gallery(app, event.id))
        opened = gallery.details(app, event.id)
        gr.Info("Prompt, settings and mix are those of the picture now.")
        return [
            *found[:-1],
            {**found[-1], "id": opened["id"], "url": opened["url"]},
            gr.Tabs(selected="make"),
        ]

    shot.use(use, None, [*outputs, tabs], **QUIET)
