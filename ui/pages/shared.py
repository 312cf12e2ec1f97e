"""What the pages share: their components by name, and errors as messages."""

from __future__ import annotations

import functools
import html
import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr

from lora_mixer.errors import LoraMixerError

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..app_state import AppState
    from ..jobs import Jobs


@dataclass(frozen=True)
class Shared:
    """
    What all pages use.

    Attributes:
        app: What sessions share.
        jobs: The running jobs.
        mix_rows: The session's mix.
        cache: The folder that uploads lie in.
    """

    app: AppState
    jobs: Jobs
    mix_rows: Any
    cache: str


@dataclass(frozen=True)
class Fields:
    """The fields that say what a picture is, on the Make page; Compare uses them too."""

    prompt: Any
    negative: Any
    seed: Any
    locked: Any
    steps: Any
    guidance: Any
    width: Any
    height: Any

    @property
    def request(self) -> list[Any]:
        """Those that a request is read from, in the order of ``read_request``."""
        return [
            self.prompt,
            self.negative,
            self.seed,
            self.steps,
            self.guidance,
            self.width,
            self.height,
        ]


def plain(message: object) -> str:
    """Give a message for Gradio's toasts, which read HTML: names out of files and prompts are shown as they are."""
    return html.escape(str(message), quote=False)


def guarded(handler: Callable[..., Any]) -> Callable[..., Any]:
    """Show the package's errors as messages on the page; others as Gradio shows them."""
    if inspect.isgeneratorfunction(handler) or inspect.isasyncgenfunction(handler):
        raise TypeError("streams show their own errors")

    @functools.wraps(handler)
    def guard(*values: Any, **named: Any) -> Any:
        try:
            return handler(*values, **named)
        except LoraMixerError as error:
            raise gr.Error(plain(error), title="Not possible", duration=12, print_exception=False) from error

    return guard


def owner_of(request: gr.Request) -> str:
    """Give the session that asks."""
    return str(request.session_hash or "api")


QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": None}
"""For all handlers of the page: no spinner over it, no public name, and the queue in front of the device is our own."""
