"""The Library page: cards, folders, what is known of one, uploads; the browser asks for what it shows."""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING, Any

import gradio as gr

from .. import checks
from ..handlers import library as handlers
from ..theme import part
from .shared import answering

if TYPE_CHECKING:
    from collections.abc import Callable

    from .shared import Shared


SCAN_PATIENCE, SCAN_WAITING = 20.0, 8
"""Seconds that a look through the folders is waited for, and by how many at a time; the rest of it goes on."""
_FIELDS: tuple[dict[str, Any], ...] = (
    {
        "id": "upload-name",
        "kind": "text",
        "label": "Name, for a single file",
        "placeholder": "the file's own",
        "longest": 120,
        "row": 0,
    },
    {
        "id": "hub-repo",
        "kind": "text",
        "label": "From the Hub",
        "placeholder": "owner/name, or the address of its page",
        "longest": 400,
        "row": 1,
    },
    {
        "id": "hub-file",
        "kind": "text",
        "label": "File in it, where it has several",
        "longest": 200,
        "row": 1,
    },
)
"""What is said of an adapter that is added; kept in the browser, with a way back, as the fields of other pages are."""


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
            height=96,
            elem_id="library-upload",
        )
        said = part("form", value=None, kept_as="adding", fields=list(_FIELDS), elem_id="adding")
        with gr.Row():
            fetch = gr.Button("Get it from the Hub", elem_id="hub-get", min_width=80)
            again = gr.Button("Look through the folders again", elem_id="library-refresh", min_width=80)
    refused = part("refusals", value="", elem_id="library-refused")
    part("details", value=None, elem_id="details")
    cards = part(
        "cards",
        value=None,
        sorts=list(handlers.SORTS),
        server_functions=_functions(shared),
        elem_id="cards",
    )

    async def upload(given: Any, fields: Any) -> Any:
        name = checks.table(fields or {}, "fields").get("upload-name")
        added = await app.readers.do(lambda: handlers.take_uploads(app, given, shared.cache, name))
        return None, _fresh(added), added.refused

    shared.connect(files.upload, upload, [files, said], [files, cards, refused])

    async def hub(fields: Any, request: gr.Request) -> Any:
        owner, given = f"{shared.owner_of(request)}/hub", checks.table(fields or {}, "fields")
        return _fresh(
            await shared.jobs.result(
                owner,
                "hub",
                "a download",
                lambda _: handlers.from_hub(app, given.get("hub-repo"), given.get("hub-file")),
            )
        )

    shared.connect(fetch.click, hub, said, cards, show_progress="minimal")

    waiting = 0

    async def rescan() -> Any:
        nonlocal waiting
        over = asyncio.wrap_future(app.scan(wait=0))
        if waiting < SCAN_WAITING:  # others see by the cards how far it is
            waiting += 1
            try:
                await asyncio.wait([over], timeout=SCAN_PATIENCE)
            finally:
                waiting -= 1
        return _fresh(handlers.Added(""))

    shared.connect(again.click, rescan, None, cards, show_progress="minimal")


def _fresh(added: handlers.Added) -> dict[str, Any]:
    """Let the browser look again, with what is said above the cards, what came in, and one that wants a name."""
    status = f"Added {added.words}" if added.words else ""
    return {
        "status": status,
        "ids": list(added.ids),
        "nameless": added.nameless,
        "stamp": secrets.token_hex(8),
    }


def _functions(shared: Shared) -> list[Callable[[Any], Any]]:
    app = shared.app

    def cards(asked: Any) -> Any:
        return handlers.search(app, asked)

    async def adapter(entry_id: Any) -> Any:
        details = await app.readers.do(lambda: handlers.details(app, entry_id))
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

    def restore_adapter(token: Any) -> Any:
        return handlers.from_trash(app, token)

    async def duplicates(_: Any) -> Any:
        return await app.readers.do(lambda: handlers.duplicates(app))

    functions = (cards, adapter, keep_adapter, set_preview, rename_adapter, move_adapter, restore_adapter,
                 duplicates)  # fmt: skip
    return [answering(function) for function in functions]
