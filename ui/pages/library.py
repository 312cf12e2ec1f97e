"""The Library page: cards, folders, what is known of one, uploads; the browser asks for what it shows."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any

import gradio as gr

from ..handlers import library as handlers
from ..theme import part
from .shared import answering

if TYPE_CHECKING:
    from collections.abc import Callable

    from .shared import Shared


def library_page(shared: Shared) -> None:
    """Lay the page out and connect it."""
    app = shared.app
    with gr.Column(elem_id="library-add", elem_classes="lm-panel"):
        part("fold", value=None, words="Add adapters")
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
            weight_name = gr.Textbox(label="File in it, where it has several", elem_id="hub-file", scale=3)
            fetch = gr.Button("Get it", elem_id="hub-get", scale=1, min_width=80)
        again = gr.Button("Look through the folders again", elem_id="library-refresh")
    refused = part("refusals", value="", elem_id="library-refused")
    part("details", value=None, elem_id="details")
    cards = part(
        "cards",
        value=None,
        sorts=list(handlers.SORTS),
        server_functions=_functions(shared),
        elem_id="cards",
    )

    def upload(given: Any, name: Any) -> Any:
        added, problems, nameless = handlers.take_uploads(app, given, shared.cache, name)
        return None, "", _fresh(f"Added {added}" if added else "", nameless), problems

    shared.connect(files.upload, upload, [files, called], [files, called, cards, refused])

    async def hub(repo: Any, name: Any, request: gr.Request) -> Any:
        owner = f"{shared.owner_of(request)}/hub"
        added = await shared.jobs.result(
            owner, "hub", "a download", lambda _: handlers.from_hub(app, repo, name)
        )
        return _fresh(f"Added {added}")

    shared.connect(fetch.click, hub, [repo, weight_name], cards, show_progress="minimal")

    def rescan() -> Any:
        app.scan(wait=20)
        return _fresh("")

    shared.connect(again.click, rescan, None, cards, show_progress="minimal")


def _fresh(status: str, nameless: str = "") -> dict[str, str]:
    """Let the browser look again, with what is said above the cards, and one that wants a name."""
    return {"status": status, "nameless": nameless, "stamp": secrets.token_hex(8)}


def _functions(shared: Shared) -> list[Callable[[Any], Any]]:
    app = shared.app

    def cards(asked: Any) -> Any:
        return handlers.search(app, asked)

    def adapter(entry_id: Any) -> Any:
        details = handlers.details(app, entry_id)
        reason = details.pop("problem")
        return {**details, "reason": reason}  # "problem" would be one of the question's, not of the adapter's

    def keep_adapter(asked: Any) -> Any:
        return {"card": handlers.keep(app, asked)}

    def set_preview(asked: Any) -> Any:
        return {"card": handlers.set_preview(app, asked)}

    def rename_adapter(asked: Any) -> Any:
        return {"card": handlers.rename(app, asked)}

    def move_adapter(asked: Any) -> Any:
        return {"card": handlers.move(app, asked)}

    def trash_adapter(entry_id: Any) -> Any:
        return handlers.to_trash(app, entry_id)

    def restore_adapter(token: Any) -> Any:
        return handlers.from_trash(app, token)

    def duplicates(_: Any) -> Any:
        return handlers.duplicates(app)

    functions = (cards, adapter, keep_adapter, set_preview, rename_adapter, move_adapter, trash_adapter, restore_adapter,
                 duplicates)  # fmt: skip
    return [answering(function) for function in functions]
