"""The handlers of the Make page: requests out of the page's fields, and the view of how they come along."""

from __future__ import annotations

import secrets
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lora_mixer import PictureRequest
from lora_mixer.errors import LoraMixerError, PictureCancelled
from lora_mixer.pictures import PICTURE_FIELDS, SCHEDULES

from .. import checks
from ..jobs import Jobs, Order, make_all
from ..limits import (
    MAX_COUNT,
    MAX_GUIDANCE,
    MAX_SEED,
    MAX_SIDE,
    MAX_STEPS,
    MIN_SIDE,
    NO_SKIP,
    NOTHING_MORE,
    range_of,
)
from ..messages import FieldError, told
from ..mix_rows import read_rows
from ..thumbs import data_uri

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from ..app_state import AppState
    from ..jobs import SessionJob

_LABEL = 60
MAX_FOLLOWERS = 16
"""How many pages that were loaded again may look on at a time; others see how far theirs is, once."""
DRAFT_STEPS = 6
DRAFT_SIDE = 512
IDLE: dict[str, Any] = {"state": "idle", "pictures": [], "message": "", "waiting": []}


def random_seed() -> str:
    """Draw a seed that every program can write."""
    return str(secrets.randbelow(2**32))


def read_request(
    app: AppState,
    prompt: Any,
    negative: Any,
    seed: Any,
    steps: Any,
    guidance: Any,
    width: Any,
    height: Any,
    more: Any,
    mix_rows: Any,
) -> PictureRequest:
    """
    Read the page's fields, or what was sent in their place; ``more`` is what :func:`read_more` reads.

    Raises:
        FieldError: With what is wrong, and where.
        MixError: When the mix makes no sense.
    """
    return PictureRequest(
        checks.text(prompt, "Prompt", field="prompt"),
        checks.text(negative, "Negative prompt", field="negative"),
        checks.whole(seed, "Seed", 0, MAX_SEED, "seed"),
        checks.whole(steps, "Steps", 1, MAX_STEPS, "steps"),
        checks.number(guidance, "Guidance", 0, MAX_GUIDANCE, "guidance"),
        checks.whole(width, "Width", MIN_SIDE, MAX_SIDE, "width") // 8 * 8,
        checks.whole(height, "Height", MIN_SIDE, MAX_SIDE, "height") // 8 * 8,
        mix=read_rows(mix_rows).mix(app),
        **read_more(app, more),
    )


def read_more(app: AppState, value: Any) -> dict[str, Any]:
    """
    Read sampler, schedule, clip skip, what to start from and what to follow.

    Args:
        app: Where.
        value: What the browser keeps: ``sampler``, ``schedule``, ``clip_skip``, ``start`` (a digest), ``inpaint`` (a mask's)
            ``strength``, ``guide`` (a digest) and ``guide_scale``; None is nothing of it.

    Returns:
        Values by the fields of a request.

    Raises:
        FieldError: With what is wrong, and where.
    """
    given = {} if value in (None, "") else checks.table(value, "Settings")
    fields: dict[str, Any] = {}
    for name in ("sampler", "schedule"):
        field = PICTURE_FIELDS[name]
        text = checks.text(given.get(name), field.label, int(field.high or 0), name)
        problem = field.problem(text) if text else None
        if problem:
            raise FieldError(f"{field.label}: {problem.text}", name)
        if text:
            fields[name] = text
    known = app.models.facts.samplers.get(fields.get("sampler", ""))
    word = fields.get("schedule")
    if word in SCHEDULES and known is not None and word not in known:
        usual = "the model's own sampler"
        raise FieldError(
            f"Schedule: {fields.get('sampler', usual)} cannot have {word} with this model; it can have {', '.join(known) or 'none'}",
            "schedule",
        )
    if given.get("clip_skip") not in (None, "", NO_SKIP):
        low, high = range_of("clip_skip")
        skip = checks.whole(given["clip_skip"], "Clip skip", low + NO_SKIP, high + NO_SKIP, "clip-skip")
        fields["clip_skip"] = skip - NO_SKIP
    if given.get("start"):
        start = checks.opaque(given["start"], "the picture to start from")
        fields["image"] = str(app.starts.path(start))
        fields["strength"] = checks.number(
            given.get("strength", NOTHING_MORE["strength"]), "Change", *range_of("strength"), "strength"
        )
        if given.get("inpaint"):
            fields["mask_image"] = str(
                app.starts.mask_path(start, checks.opaque(given["inpaint"], "the mask"))
            )
    return fields | _followed(app, given)


def _followed(app: AppState, given: Mapping[str, Any]) -> dict[str, Any]:
    """Read which picture the model's IP-Adapter follows; an adapter that follows none gets a plain one without weight."""
    guide = given.get("guide")
    if not app.models.facts.guided:
        if guide:
            raise FieldError(
                f"A picture to follow: {app.models.facts.title} was started without an IP-Adapter (--ip-adapter FILE)",
                "guide",
            )
        return {}
    if not guide:
        return {"ip_adapter_image": str(app.starts.plain()), "ip_adapter_scale": 0.0}
    return {
        "ip_adapter_image": str(app.starts.path(checks.opaque(guide, "the picture to follow"))),
        "ip_adapter_scale": checks.number(
            given.get("guide_scale", NOTHING_MORE["guide_scale"]),
            "How closely",
            *range_of("ip_adapter_scale"),
            "guide",
        ),
    }


def several(request: PictureRequest, count: int) -> list[PictureRequest]:
    """Return the same with one seed after the other."""
    return [replace(request, seed=request.seed + number) for number in range(count)]


def heard(view: dict[str, Any], event: dict[str, Any]) -> dict[str, Any]:
    """Take one event into the view of pictures that are made; those of earlier orders of the job stay."""
    value = dict(view)
    if event["state"] == "picture":
        value["pictures"] = [*value["pictures"], event["card"]]
        value.pop("preview", None)
        return value
    shown = {key: part for key, part in event.items() if key not in ("previews", "indices", "result")}
    value |= shown
    if event.get("previews"):
        value["preview"] = event["previews"][0]
    if event["state"] not in ("running", "queued"):
        value.pop("preview", None)
    return value


class MakeHandlers:
    """
    Makes pictures for sessions.

    Args:
        app: What they share.
        jobs: The running jobs.
    """

    def __init__(self, app: AppState, jobs: Jobs) -> None:
        """Keep both."""
        self.app, self.jobs = app, jobs
        self._followers = 0

    async def make(
        self,
        owner: str,
        prompt: Any,
        negative: Any,
        seed: Any,
        locked: Any,
        steps: Any,
        guidance: Any,
        width: Any,
        height: Any,
        count: Any,
        more: Any,
        mix_rows: Any,
    ) -> AsyncIterator[tuple[dict[str, Any], str]]:
        """Make the pictures that the page asks for; gives the view and the seed, again and again."""
        used = str(seed) if locked and seed not in (None, "") else random_seed()
        try:
            number = checks.whole(count, "Pictures", 1, MAX_COUNT, "count")
            request = read_request(
                self.app, prompt, negative, used, steps, guidance, width, height, more, mix_rows
            )
            job, fresh = self.submit(owner, several(request, number))
        except LoraMixerError as error:
            running = self.jobs.of(owner)
            if running is None:
                yield {**IDLE, "state": "error", **told(error)}, str(seed or "")
            else:  # what is under way goes on, with the words beside it
                running.tell({**_still(running), **told(error)})
            return
        if not fresh:
            return
        self.jobs.stop(draft_of(owner))
        async for view in job.follow():
            yield view, used

    def submit(self, owner: str, requests: list[PictureRequest]) -> tuple[SessionJob, bool]:
        """
        Begin pictures, or put them behind those that the session has under way.

        Raises:
            PictureError: When too much is under way.
        """
        prompt = requests[0].prompt
        label = f"{prompt[:_LABEL].rstrip()}…" if len(prompt) > _LABEL else prompt or "no prompt"
        words = f"{len(requests)} × {label}" if len(requests) > 1 else label

        model = self.app.models.number

        def work(job: SessionJob) -> int:
            job.tell({"state": "queued", "ahead": 0, "count": len(requests), "message": "", "field": ""})
            return len(make_all(self.app, job, requests, job.tell, model=model))

        return self.jobs.submit(owner, "make", Order(words, work), {**IDLE, "state": "queued"}, heard)

    async def follow(self, owner: str) -> AsyncIterator[dict[str, Any]]:
        """Return the views of what a session has under way, when its page was loaded again."""
        job = self.jobs.of(owner)
        if job is None or job.kind != "make":
            return
        if self._followers >= MAX_FOLLOWERS:
            yield job.view
            return
        self._followers += 1
        try:
            async for view in job.follow():
                yield view
        finally:
            self._followers -= 1

    async def draft(self, owner: str, *fields: Any) -> AsyncIterator[dict[str, Any]]:
        """Make a picture of few steps that is not kept; one that comes after it takes its place."""
        name = draft_of(owner)
        if self.jobs.of(owner) is not None:
            return
        try:
            request = self.app.tagged(read_request(self.app, *fields))
            request = replace(request, steps=min(request.steps or DRAFT_STEPS, DRAFT_STEPS))
            order = Order("draft", lambda job: self._draft(job, request))
            job, _ = self.jobs.submit(
                name, "draft", order, {"state": "queued"}, lambda view, event: {**view, **event}
            )
        except LoraMixerError:  # nobody asked for it; Make says what is wrong
            return
        async for view in job.follow():
            if view["state"] == "done":
                yield {"preview": view["result"], "mix": request.mix.to_text()}

    def _draft(self, job: SessionJob, request: PictureRequest) -> str:
        def watch(_: Any) -> None:
            if job.stop.is_set():
                raise PictureCancelled("a newer draft is wanted")

        self.app.models.wait(lambda _: None, job.stop.is_set)
        with self.app.queue.turn(job.owner, stopped=job.stop.is_set):
            self.app.ready(request.mix.names)
            (picture,) = self.app.maker.make([request], on_step=watch)
        return data_uri(picture.image, DRAFT_SIDE)

    def stop(self, owner: str) -> bool:
        """Stop the session's picture within one step."""
        return self.jobs.stop(owner)


def draft_of(owner: str) -> str:
    """Return the name under which a session's draft is a job of its own."""
    return f"{owner}/draft"


def _still(job: SessionJob) -> dict[str, Any]:
    return {"state": job.view["state"]}
