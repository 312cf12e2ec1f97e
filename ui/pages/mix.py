"""The mix at the side of all pages: rows, the mask that is painted, the mix as text, saved mixes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr

from ..handlers import mix as handlers
from ..theme import part
from .shared import QUIET, guarded, plain

if TYPE_CHECKING:
    from ..app_state import AppState
    from .shared import Fields, Shared


_UNLESS_WRITING = """(told, text) => (document.activeElement?.closest("#mix-text") ? text : told)"""
"""An answer that comes late must not overwrite what somebody is writing."""


@dataclass(frozen=True)
class MixFields:
    """What is below the rows: the mix as text, and mixes saved by name."""

    text: Any
    described: Any
    problem: Any
    apply: Any
    name: Any
    save: Any
    saved: Any
    load: Any
    delete: Any
    undelete: Any


def make_mix_rows(app: AppState) -> Any:
    """Make the rows."""

    def curve(text: str) -> dict[str, Any]:
        return handlers.curve(text)

    return part(
        "mix_rows",
        "edited",
        "word",
        "mask",
        "standard",
        value={"rows": [], "method": ""},
        kit=handlers.kit(app),
        server_functions=[curve],
        elem_id="mix-rows",
    )


def make_side(app: AppState) -> MixFields:
    """Lay out what is below the rows."""
    with gr.Accordion("Save and share", open=False, elem_id="share-panel", elem_classes="lm-fold"):
        text = gr.Textbox(
            label="The mix as text",
            lines=2,
            max_lines=6,
            elem_id="mix-text",
            placeholder="ink:0.8, neon:unet=0.5,te=0.2,start=0.3",
            buttons=["copy"],
        )
        described = gr.Textbox(visible="hidden", elem_id="mix-described")
        problem = gr.Markdown("", elem_id="mix-problem", elem_classes="lm-note")
        apply = gr.Button("Take this text", elem_id="mix-apply")
        with gr.Row(elem_classes="lm-bottom"):
            name = gr.Textbox(label="Name", elem_id="mix-name", min_width=100, max_length=120)
            save = gr.Button("Save", elem_id="mix-save", min_width=70, scale=0)
        saved = gr.Dropdown(
            label="Saved mixes", choices=list(app.mixes.list()), value=None, elem_id="mix-saved"
        )
        with gr.Row():
            load = gr.Button("Load", elem_id="mix-load", min_width=70)
            delete = gr.Button("Delete", elem_id="mix-delete", min_width=70)
            undelete = gr.Button("Undo", elem_id="mix-undelete", min_width=70)
    return MixFields(text, described, problem, apply, name, save, saved, load, delete, undelete)


def connect_side(shared: Shared, fields: Fields, parts: MixFields) -> None:
    """Connect the rows and what is below them."""
    app, mix_rows = shared.app, shared.mix_rows
    text, problem, saved = parts.text, parts.problem, parts.saved
    told = parts.described

    def described(value: Any) -> tuple[str, str]:
        written, wrong = handlers.as_text(app, value)
        return written, plain(wrong)

    for changed in (mix_rows.edited, mix_rows.change):
        # always_last: without it, what comes while one answer is on its way is dropped, and the text stays behind
        found = changed(described, mix_rows, [told, problem], trigger_mode="always_last", **QUIET)
        found.then(None, [told, text], text, js=_UNLESS_WRITING, **QUIET)

    @guarded
    def word(prompt: Any, event: gr.EventData) -> str:
        return handlers.with_word(prompt, event.word)

    mix_rows.word(word, fields.prompt, fields.prompt, **QUIET)

    @guarded
    def standard(value: Any, event: gr.EventData) -> None:
        gr.Info(plain(handlers.keep_default(app, value, event.name)))

    mix_rows.standard(standard, mix_rows, None, **QUIET)

    @guarded
    def masked(value: Any, event: gr.EventData) -> Any:
        return handlers.with_mask(app, value, event.name, event.png)

    mix_rows.mask(masked, mix_rows, mix_rows, **QUIET)

    @guarded
    def take(written: Any) -> Any:
        return handlers.from_text(app, written)

    parts.apply.click(take, text, mix_rows, **QUIET)

    @guarded
    def save(name: Any, value: Any) -> Any:
        found = handlers.save(app, name, value)
        return gr.Dropdown(choices=list(app.mixes.list()), value=found)

    parts.save.click(save, [parts.name, mix_rows], saved, **QUIET)

    @guarded
    def load(name: Any) -> Any:
        return handlers.load(app, name)

    parts.load.click(load, saved, mix_rows, **QUIET)

    @guarded
    def delete(name: Any) -> Any:
        handlers.delete(app, name)
        return gr.Dropdown(choices=list(app.mixes.list()), value=None)

    parts.delete.click(delete, saved, saved, **QUIET)

    @guarded
    def undelete() -> Any:
        gr.Info(plain(f"Taken back: {handlers.undo(app)}"))
        return gr.Dropdown(choices=list(app.mixes.list()), value=None)

    parts.undelete.click(undelete, None, saved, **QUIET)
