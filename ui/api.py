"""The functions for programs: Gradio's API, typed and documented; the same desks and the same checks as the page."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import gradio as gr

from . import checks, gallery
from .handlers import library as handlers
from .handlers.gallery import of_gallery
from .handlers.make import read_request, several
from .jobs import make_all
from .limits import MAX_COUNT, NO_SKIP
from .mix_rows import read_mix
from .pages.shared import guarded

if TYPE_CHECKING:
    from .pages.shared import Shared


def add_api(shared: Shared) -> None:
    """Add the endpoints ``/make``, ``/adapters``, ``/picture``."""
    app = shared.app

    @guarded
    async def make(  # noqa: D417 -- the request is Gradio's own
        prompt: str,
        mix: str = "",
        seed: int = 0,
        steps: int = 0,
        guidance_scale: float = 0.0,
        width: int = 0,
        height: int = 0,
        negative_prompt: str = "",
        count: int = 1,
        sampler: str = "",
        schedule: str = "",
        clip_skip: int = 0,
        request: gr.Request | None = None,
    ) -> list[dict[str, Any]]:
        """
        Make pictures with a mix of adapters; gives for each its id, its file's address (a PNG with its settings inside), seed and mix.

        Args:
            prompt: What the pictures shall show; emphasis as (word:1.2).
            mix: Adapters of the library with their weights, such as "ink:0.8, neon:0.3"; empty is the base.
            seed: Of the first picture; the next have the next.
            steps: Denoising steps; 0 is the model's own number.
            guidance_scale: How strongly the prompt is followed; 0 is the model's own.
            width: In pixels; 0 is the model's own.
            height: In pixels; 0 is the model's own.
            negative_prompt: What they shall not show.
            count: How many pictures.
            sampler: Its usual name, such as "DPM++ 2M Karras"; empty is the model's own.
            schedule: Words such as "karras"; empty is the sampler's own.
            clip_skip: Layers of the text encoder to leave out at its end.
        """
        facts = app.models.facts
        wanted = read_request(
            app,
            prompt,
            negative_prompt,
            seed,
            steps or facts.defaults["steps"],
            guidance_scale or facts.defaults["guidance_scale"],
            width or facts.size[0],
            height or facts.size[1],
            {"sampler": sampler, "schedule": schedule, "clip_skip": clip_skip + NO_SKIP},
            None,
        )
        model = app.models.number
        requests = several(
            replace(wanted, mix=read_mix(mix, app)), checks.whole(count, "count", 1, MAX_COUNT)
        )
        made = await shared.jobs.result(
            shared.program_of(request) if request is not None else "api",
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
    def adapters(text: str = "", base: str = "", sort: str = "Name", page: int = 0) -> dict[str, Any]:
        """
        List a page of the library of adapters: entries with name, base, trigger words and why one cannot be used here.

        Args:
            text: Words of their names, triggers and tags; empty is all.
            base: A family of base models, such as "SDXL"; empty is any.
            sort: What they are sorted by, as the page's list says.
            page: Which page, from 0.
        """
        descending = sort in handlers.DESCENDING
        wanted = handlers.DESCENDING.get(sort, sort)
        asked = {"text": text, "base": base, "sort": wanted, "descending": descending, "page": page}
        answer = handlers.search(app, asked)
        kept = ("called", "about", "bytes", "triggers", "problem")
        answer["entries"] = [
            {"name": entry["title"], **{key: entry[key] for key in kept}} for entry in answer["entries"]
        ]
        return {key: answer[key] for key in ("entries", "total", "page", "pages")}

    @guarded
    def picture(picture_id: str) -> dict[str, Any]:
        """
        Say how a picture of the gallery was made.

        Args:
            picture_id: Its id, as make gave it.
        """
        return gallery.about(of_gallery(app, picture_id))

    for function in (make, adapters, picture):
        gr.api(function, api_name=function.__name__, concurrency_limit=None)  # type: ignore[attr-defined]
