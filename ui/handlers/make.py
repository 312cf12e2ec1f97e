"""The handlers of the Make page: requests out of the page's fields, and the view that shows how they come along."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any

from lora_mixer import PictureRequest
from lora_mixer.errors import LoraMixerError

from .. import checks
from ..jobs import Jobs, make_all, stream
from ..mix_rows import read_rows

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from ..app_state import AppState

MAX_COUNT = 64
MAX_STEPS = 500
MAX_SIDE = 4096
MAX_SEED = 2**63 - 1 - MAX_COUNT
IDLE = {"state": "idle", "pictures": [], "message": ""}


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
    mix_rows: Any,
) -> PictureRequest:
    """
    Read the page's fields, or what was sent in their place.

    Raises:
        PictureError: With what is wrong.
        MixError: When the mix makes no sense.
    """
    return PictureRequest(
        checks.text(prompt, "prompt"),
        checks.text(negative, "negative prompt"),
        checks.whole(seed, "seed", 0, MAX_SEED),
        checks.whole(steps, "steps", 1, MAX_STEPS),
        checks.number(guidance, "guidance", 0, 100),
        checks.whole(width, "width", 16, MAX_SIDE) // 8 * 8,
        checks.whole(height, "height", 16, MAX_SIDE) // 8 * 8,
        read_rows(mix_rows).mix(app),
    )


def several(request: PictureRequest, count: int) -> list[PictureRequest]:
    """Give the same with one seed after the other."""
    from dataclasses import replace

    return [replace(request, seed=request.seed + number) for number in range(count)]


class JobView:
    """What the page shows of a job, built up from what the job tells."""

    def __init__(self, count: int) -> None:
        """Start with nothing shown."""
        self.value: dict[str, Any] = {
            "state": "queued",
            "pictures": [],
            "count": count,
            "message": "",
            "ahead": 0,
        }

    def heard(self, event: dict[str, Any]) -> dict[str, Any]:
        """Take in one event and give the whole to show."""
        value = dict(self.value)
        if event["state"] == "picture":
            value["pictures"] = [*value["pictures"], event["card"]]
            value.pop("preview", None)
        elif event["state"] == "running":
            previews = event.pop("previews", None)
            value |= event
            if previews:
                value["preview"] = previews[0]
        else:
            event.pop("result", None)
            value |= event
            if event["state"] != "queued":
                value.pop("preview", None)
        self.value = value
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
        mix_rows: Any,
    ) -> AsyncIterator[tuple[dict[str, Any], str]]:
        """Make the pictures that the page asks for; gives the view and the seed, again and again."""
        used = str(seed) if locked and seed not in (None, "") else random_seed()
        try:
            number = checks.whole(count, "count", 1, MAX_COUNT)
            request = read_request(self.app, prompt, negative, used, steps, guidance, width, height, mix_rows)
            job = self.jobs.start(owner)
        except LoraMixerError as error:
            yield {**IDLE, "state": "error", "message": str(error)}, str(seed or "")
            return
        view = JobView(number)
        yield view.value, used
        requests = several(request, number)
        async for event in stream(lambda tell: len(make_all(self.app, job, requests, tell)), self.jobs, job):
            yield view.heard(event), used

    def stop(self, owner: str) -> bool:
        """Stop the session's pictures within one step."""
        return self.jobs.stop(owner)
