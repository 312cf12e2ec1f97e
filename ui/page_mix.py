"""The mix at the side of all pages: rows, the mask that is painted, the mix as text, saved mixes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gradio as gr

from . import desk_mix
from .page import FAST, guarded, plain
from .theme import part

if TYPE_CHECKING:
    from .page import Fields, Shared
    from .studio import Studio


_UNLESS_WRITING = """(told, text) => (document.activeElement?.closest("#mix-text") ? text : told)"""
"""An answer that comes late must not overwrite what somebody is writing."""


def make_board(studio: Studio) -> Any:
    """Make the rows."""

    def curve(text: str) -> dict[str, Any]:
        return desk_mix.curve(text)

    return part(
        "board",
        "edited",
        "word",
        "mask",
        "standard",
        value={"rows": [], "method": ""},
        kit=desk_mix.kit(studio),
        server_functions=[curve],
        elem_id="board",
    )


def make_side(studio: Studio) -> dict[str, Any]:
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
            label="Saved mixes", choices=list(studio.mixes.list()), value=None, elem_id="mix-saved"
        )
        with gr.Row():
            load = gr.Button("Load", elem_id="mix-load", min_width=70)
            delete = gr.Button("Delete", elem_id="mix-delete", min_width=70)
            undelete = gr.Button("Undo", elem_id="mix-undelete", min_width=70)
    return dict(locals())


def connect_side(shared: Shared, fields: Fields, parts: dict[str, Any]) -> None:
    """Connect the rows and what is below them."""
    studio, board = shared.studio, shared.board
    text, problem, saved = parts["text"], parts["problem"], parts["saved"]
    told = parts["described"]

    def described(value: Any) -> tuple[str, str]:
        written, wrong = desk_mix.as_text(studio, value)
        return written, plain(wrong)

    for changed in (board.edited, board.change):
        # always_last: without it, what comes while one answer is on its way is dropped, and the text stays behind
        found = changed(described, board, [told, problem], trigger_mode="always_last", **FAST)
        found.then(None, [told, text], text, js=_UNLESS_WRITING, **FAST)

    @guarded
    def word(prompt: Any, event: gr.EventData) -> str:
        return desk_mix.with_word(prompt, event.word)

    board.word(word, fields.prompt, fields.prompt, **FAST)

    @guarded
    def standard(value: Any, event: gr.EventData) -> None:
        gr.Info(plain(desk_mix.keep_default(studio, value, event.name)))

    board.standard(standard, board, None, **FAST)

    @guarded
    def masked(value: Any, event: gr.EventData) -> Any:
        return desk_mix.with_mask(studio, value, event.name, event.png)

    board.mask(masked, board, board, **FAST)

    @guarded
    def take(written: Any) -> Any:
        return desk_mix.from_text(studio, written)

    parts["apply"].click(take, text, board, **FAST)

    @guarded
    def save(name: Any, value: Any) -> Any:
        found = desk_mix.save(studio, name, value)
        return gr.Dropdown(choices=list(studio.mixes.list()), value=found)

    parts["save"].click(save, [parts["name"], board], saved, **FAST)

    @guarded
    def load(name: Any) -> Any:
        return desk_mix.load(studio, name)

    parts["load"].click(load, saved, board, **FAST)

    @guarded
    def delete(name: Any) -> Any:
        desk_mix.delete(studio, name)
        return gr.Dropdown(choices=list(studio.mixes.list()), value=None)

    parts["delete"].click(delete, saved, saved, **FAST)

    @guarded
    def undelete() -> Any:
        gr.Info(plain(f"Taken back: {desk_mix.undo(studio)}"))
        return gr.Dropdown(choices=list(studio.mixes.list()), value=None)

    parts["undelete"].click(undelete, None, saved, **FAST)
