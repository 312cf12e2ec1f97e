"""The functions for programs: Gradio's API, typed and documented; the same desks and the same checks as the page."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import gradio as gr

from . import checks, gallery
from .handlers import library as handlers
from .handlers.gallery import of_gallery
from .handlers.make import MAX_COUNT, read_request, several
from .jobs import make_all
from .mix_rows import read_mix
from .pages.shared import guarded

if TYPE_CHECKING:
    from .pages.shared import Shared


def add_api(shared: Shared) -> None:
    """Add the endpoints ``/make``, ``/adapters``, ``/picture``."""
    app = shared.app

    @guarded
    async def make(
        prompt: str,
        mix: str,
        seed: int,
        steps: int,
        guidance_scale: float,
        width: int,
        height: int,
        negative_prompt: str,
        count: int,
        request: gr.Request,
    ) -> list[dict[str, Any]]:
        """Make pictures: gives for each its id, its file's address (a PNG with its settings inside), seed and mix."""
        wanted = read_request(
            app, prompt, negative_prompt, seed, steps, guidance_scale, width, height, None, None
        )
        model = app.models.number
        requests = several(
            replace(wanted, mix=read_mix(mix, app)), checks.whole(count, "count", 1, MAX_COUNT)
        )
        made = await shared.jobs.result(
            shared.owner_of(request),
            "api",
            "a program's pictures",
            lambda job: make_all(app, job, requests, lambda _: None, model=model),
        )
        return [
            {
                "id": name,
                "url": gallery.url_of(gallery.path_of(app, name)),
                "seed": picture.request.seed,
                "mix": picture.request.mix.to_text(),
                "seconds": round(picture.seconds, 3),
            }
            for picture, name in made
        ]

    @guarded
    def adapters(text: str, base: str, sort: str, page: int) -> dict[str, Any]:
        """List a page of the library: ``entries`` with name, base, trigger words and why one cannot be used here."""
        descending = sort in handlers.DESCENDING
        wanted = handlers.DESCENDING.get(sort, sort)
        asked = {"text": text, "base": base, "sort": wanted, "descending": descending, "page": page}
        found = handlers.search(app, asked)
        kept = ("called", "about", "bytes", "triggers", "problem")
        found["entries"] = [
            {"name": entry["title"], **{key: entry[key] for key in kept}} for entry in found["entries"]
        ]
        return {key: found[key] for key in ("entries", "total", "page", "pages")}

    @guarded
    def picture(picture_id: str) -> dict[str, Any]:
        """Say how a picture of the gallery was made."""
        return gallery.about(of_gallery(app, picture_id))

    for function in (make, adapters, picture):
        gr.api(function, api_name=function.__name__, concurrency_limit=None)  # type: ignore[attr-defined]
