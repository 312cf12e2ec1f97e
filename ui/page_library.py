"""The Library page: search, cards, uploads, details."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import gradio as gr

from . import desk_library, desk_mix
from .page import FAST, QUIET, guarded
from .theme import part

if TYPE_CHECKING:
    from .page import Fields, Shared


TICK = 2.0


def library_page(shared: Shared, fields: Fields, blocks: Any) -> None:
    """Lay the page out and connect it."""
    studio = shared.studio
    with gr.Column(elem_classes="lm-panel"):
        with gr.Row():
            words = gr.Textbox(
                label="Search", placeholder="name, trigger word, tag", elem_id="library-search", scale=4,
                min_width=180,
            )  # fmt: skip
            base = gr.Dropdown(
                label="Base", choices=_bases(shared), value=desk_library.ANY_BASE, elem_id="library-base",
                scale=2, min_width=120,
            )  # fmt: skip
            sort = gr.Dropdown(
                label="Sort", choices=list(desk_library.SORTS), value="Name", elem_id="library-sort", scale=2,
                min_width=120,
            )  # fmt: skip
        with gr.Accordion("Add adapters", open=False, elem_id="library-add"):
            files = gr.File(
                label="Adapter files",
                show_label=False,
                file_count="multiple",
                file_types=[".safetensors", ".json"],
                type="filepath",
                height=150,
                elem_id="library-upload",
            )
            with gr.Row(elem_classes="lm-bottom"):
                repo = gr.Textbox(label="From the Hub", placeholder="owner/name", elem_id="hub-repo", scale=3)
                weight_name = gr.Textbox(
                    label="File in it, where it has several", elem_id="hub-file", scale=3
                )
                fetch = gr.Button("Get it", elem_id="hub-get", scale=1, min_width=80)
            again = gr.Button("Look through the folders again", elem_id="library-refresh")
        refused = gr.Markdown("", elem_id="library-refused", visible=False)
    details = part("details", "pick", "close", "word", "keep", value=None, elem_id="details")
    cards = part(
        "cards", "pick", "details", "turn", value=desk_library.search(studio, "", "", "Name"), elem_id="cards"
    )
    query = [words, base, sort]

    @guarded
    def look(words: Any, base: Any, sort: Any) -> Any:
        return desk_library.search(studio, words, base, sort)

    for field in (words, base, sort):  # change: "input" does not see what is pasted or dictated
        field.change(look, query, cards, trigger_mode="always_last", **FAST)

    @guarded
    def turn(words: Any, base: Any, sort: Any, event: gr.EventData) -> Any:
        return desk_library.search(studio, words, base, sort, event.page)

    cards.turn(turn, query, cards, **FAST)

    @guarded
    def add(board: Any, event: gr.EventData) -> Any:
        return desk_mix.added(studio, board, event.id)

    cards.pick(add, shared.board, shared.board, **FAST)
    details.pick(add, shared.board, shared.board, **FAST)

    @guarded
    def show(event: gr.EventData) -> Any:
        return desk_library.details(studio, event.id)

    cards.details(show, None, details, **QUIET)
    details.close(lambda: None, None, details, **FAST)

    @guarded
    def word(prompt: Any, event: gr.EventData) -> str:
        return desk_mix.with_word(prompt, event.word)

    details.word(word, fields.prompt, fields.prompt, **FAST)

    @guarded
    def keep(event: gr.EventData) -> None:
        desk_library.keep(studio, event.id, event.weight, event.notes)
        gr.Info("Kept.")

    details.keep(keep, None, None, **FAST)

    @guarded
    def upload(given: Any, words: Any, base: Any, sort: Any) -> Any:
        added, problems = desk_library.upload(studio, given, shared.cache)
        found = desk_library.search(studio, words, base, sort, status=f"Added {added}" if added else "")
        return None, found, _refusals(problems), gr.Dropdown(choices=_bases(shared))

    files.upload(upload, [files, *query], [files, cards, refused, base], **QUIET)

    @guarded
    def hub(repo: Any, name: Any, words: Any, base: Any, sort: Any) -> Any:
        added = desk_library.from_hub(studio, repo, name)
        return desk_library.search(studio, words, base, sort, status=f"Added {added}")

    fetch.click(hub, [repo, weight_name, *query], cards, **{**QUIET, "show_progress": "minimal"})

    def rescan(words: Any, base: Any, sort: Any) -> Any:
        studio.scan(wait=20)
        return desk_library.search(studio, words, base, sort), gr.Dropdown(choices=_bases(shared))

    again.click(rescan, query, [cards, base], **{**QUIET, "show_progress": "minimal"})
    blocks.load(look, query, cards, **FAST)

    def tick(words: Any, base: Any, sort: Any) -> Any:
        if not studio.scanning and time.monotonic() - studio.scanned_at > 3 * TICK:
            return gr.skip()
        return desk_library.search(studio, words, base, sort)

    gr.Timer(TICK).tick(tick, query, cards, **FAST)


def _bases(shared: Shared) -> list[tuple[str, str]]:
    studio = shared.studio
    any_base = (desk_library.ANY_BASE, desk_library.ANY_BASE)
    return [any_base, *((studio.called(base), base) for base in studio.library.facets()["base"])]


def _refusals(problems: str) -> Any:
    # text of files: shown as code, which is never read as Markdown or HTML
    safe = problems.replace("`", "'").replace("<", "‹").replace(">", "›")
    return gr.Markdown(f"Not added:\n\n```\n{safe}\n```" if problems else "", visible=bool(problems))
