"""The Library page: search, cards, uploads, details."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import gradio as gr

from ..handlers import library as handlers
from ..theme import part
from .shared import QUIET, guarded

if TYPE_CHECKING:
    from .shared import Shared


TICK = 2.0


def library_page(shared: Shared, blocks: Any) -> None:
    """Lay the page out and connect it."""
    app = shared.app
    with gr.Column(elem_classes="lm-panel"):
        with gr.Row():
            words = gr.Textbox(
                label="Search", placeholder="name, trigger word, tag", elem_id="library-search", scale=4,
                min_width=180,
            )  # fmt: skip
            base = gr.Dropdown(
                label="Base", choices=_bases(shared), value=handlers.ANY_BASE, elem_id="library-base",
                scale=2, min_width=120,
            )  # fmt: skip
            sort = gr.Dropdown(
                label="Sort", choices=list(handlers.SORTS), value="Name", elem_id="library-sort", scale=2,
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
            called = gr.Textbox(
                label="Name, for a single one",
                placeholder="the file's own",
                elem_id="upload-name",
                max_length=120,
            )
            with gr.Row(elem_classes="lm-bottom"):
                repo = gr.Textbox(
                    label="From the Hub",
                    placeholder="owner/name, or the address of its page",
                    elem_id="hub-repo",
                    scale=3,
                )
                weight_name = gr.Textbox(
                    label="File in it, where it has several", elem_id="hub-file", scale=3
                )
                fetch = gr.Button("Get it", elem_id="hub-get", scale=1, min_width=80)
            again = gr.Button("Look through the folders again", elem_id="library-refresh")
        refused = gr.Markdown("", elem_id="library-refused", visible=False)
    details = part("details", "close", "keep", value=None, elem_id="details")
    cards = part("cards", "details", "turn", value=handlers.search(app, "", "", "Name"), elem_id="cards")
    query = [words, base, sort]

    @guarded
    def look(words: Any, base: Any, sort: Any) -> Any:
        return handlers.search(app, words, base, sort)

    for field in (words, base, sort):  # change: "input" does not see what is pasted or dictated
        field.change(look, query, cards, trigger_mode="always_last", **QUIET)

    @guarded
    def turn(words: Any, base: Any, sort: Any, event: gr.EventData) -> Any:
        return handlers.search(app, words, base, sort, event.page)

    cards.turn(turn, query, cards, **QUIET)

    @guarded
    def show(event: gr.EventData) -> Any:
        return handlers.details(app, event.id)

    cards.details(show, None, details, **QUIET)
    details.close(lambda: None, None, details, **QUIET)

    @guarded
    def keep(event: gr.EventData) -> None:
        handlers.keep(app, event.id, event.weight, event.notes)
        gr.Info("Kept.")

    details.keep(keep, None, None, **QUIET)

    @guarded
    def upload(given: Any, name: Any, words: Any, base: Any, sort: Any) -> Any:
        added, problems = handlers.upload(app, given, shared.cache, name)
        found = handlers.search(app, words, base, sort, status=f"Added {added}" if added else "")
        return None, "", found, _refusals(problems), gr.Dropdown(choices=_bases(shared))

    files.upload(upload, [files, called, *query], [files, called, cards, refused, base], **QUIET)

    @guarded
    async def hub(repo: Any, name: Any, words: Any, base: Any, sort: Any, request: gr.Request) -> Any:
        owner = f"{shared.owner_of(request)}/hub"
        added = await shared.jobs.result(
            owner, "hub", "a download", lambda _: handlers.from_hub(app, repo, name)
        )
        return handlers.search(app, words, base, sort, status=f"Added {added}")

    fetch.click(hub, [repo, weight_name, *query], cards, **{**QUIET, "show_progress": "minimal"})

    def rescan(words: Any, base: Any, sort: Any) -> Any:
        app.scan(wait=20)
        return handlers.search(app, words, base, sort), gr.Dropdown(choices=_bases(shared))

    again.click(rescan, query, [cards, base], **{**QUIET, "show_progress": "minimal"})
    blocks.load(look, query, cards, **QUIET)

    def tick(words: Any, base: Any, sort: Any) -> Any:
        if not app.scanning and time.monotonic() - app.scanned_at > 3 * TICK:
            return gr.skip()
        return handlers.search(app, words, base, sort)

    gr.Timer(TICK).tick(tick, query, cards, **QUIET)


def _bases(shared: Shared) -> list[tuple[str, str]]:
    app = shared.app
    any_base = (handlers.ANY_BASE, handlers.ANY_BASE)
    return [any_base, *((app.called(base), base) for base in app.library.facets()["base"])]


def _refusals(problems: str) -> Any:
    # text of files: shown as code, which is never read as Markdown or HTML
    safe = problems.replace("`", "'").replace("<", "‹").replace(">", "›")
    return gr.Markdown(f"Not added:\n\n```\n{safe}\n```" if problems else "", visible=bool(problems))
