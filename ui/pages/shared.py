"""What the pages share: their components by name, and errors as messages."""

from __future__ import annotations

import functools
import html
import inspect
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr
from gradio.context import LocalContext

from lora_mixer.errors import LoraMixerError

from ..guard import CALLER
from ..messages import told, words_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..app_state import AppState
    from ..handlers.gallery import Taken
    from ..jobs import Jobs


@dataclass(frozen=True)
class Shared:
    """
    What all pages use.

    Attributes:
        app: What sessions share.
        jobs: The running jobs.
        mix_rows: The session's mix, as the browser has it.
        cache: The folder that uploads lie in.
        voice: What says in the browser what was done, and what cannot be, at the field where it stands.
        told_above: Lets the page's head say anew, after an event, what the device does.
    """

    app: AppState
    jobs: Jobs
    mix_rows: Any
    cache: str
    voice: Any
    told_above: Callable[[Any], Any]

    def connect(
        self,
        listener: Any,
        handler: Callable[..., Any],
        inputs: Any,
        outputs: Any = None,
        *,
        emptied: Sequence[Any] = (),
        **options: Any,
    ) -> None:
        """
        Let a handler answer an event; errors of the package, and what it says, go to the page's one voice.

        Args:
            listener: The event, as ``button.click``.
            handler: Returns values for ``outputs``, or :class:`Said` with some.
            inputs: As Gradio takes them.
            outputs: As Gradio takes them.
            emptied: Components that are emptied whatever comes of it, so that they can be filled again.
            options: Others than :data:`QUIET`.
        """
        targets = [] if outputs is None else outputs if isinstance(outputs, list) else [outputs]

        def answer(answered: Any) -> list[Any]:
            words: Any = gr.skip()
            if isinstance(answered, Said):
                answered, words = answered.values, {"said": answered.words, "stamp": secrets.token_hex(8)}
            values = [] if not targets else [answered] if len(targets) == 1 else answered
            return [*values, *[None] * len(emptied), words]

        def problem(error: LoraMixerError) -> list[Any]:
            words = {**told(error), "stamp": secrets.token_hex(8)}
            return [*[gr.skip()] * len(targets), *[None] * len(emptied), words]

        if inspect.iscoroutinefunction(handler):

            @functools.wraps(handler)
            async def work_async(*values: Any, **named: Any) -> Any:
                try:
                    return answer(await handler(*values, **named))
                except LoraMixerError as error:
                    return problem(error)

            work: Callable[..., Any] = work_async
        else:

            @functools.wraps(handler)
            def work_at_once(*values: Any, **named: Any) -> Any:
                try:
                    return answer(handler(*values, **named))
                except LoraMixerError as error:
                    return problem(error)

            work = work_at_once
        listener(work, inputs, [*targets, *emptied, self.voice], **{**QUIET, **options})

    def owner_of(self, request: gr.Request) -> str:
        """Return who asks: the browser's own token where it brought one, else Gradio's session; without one, this one call."""
        caller = getattr(request.request, "scope", {}).get(CALLER)
        return str(caller or self.app.sessions.owner(str(request.session_hash or "api")))

    def program_of(self, request: gr.Request) -> str:
        """Return which program asks, and let the stream that it gets its answer by tell whether it is still there."""
        owner, event = self.owner_of(request), LocalContext.event_id.get(None)
        if event is None:
            return owner
        self.app.sessions.join(event, owner)
        # all who come by the Model Context Protocol have one session of Gradio's own
        return f"{owner}/{event}" if request.headers.get("x-gradio-user") == "mcp" else owner


@dataclass(frozen=True)
class Said:
    """Values for a handler's outputs, and what is said of them."""

    words: str
    values: Any


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
    more: Any

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
            self.more,
        ]

    @property
    def taken(self) -> list[Any]:
        """Those that a picture's settings go into, in the order of ``values_of``."""
        return [
            self.prompt,
            self.negative,
            self.seed,
            self.locked,
            self.steps,
            self.guidance,
            self.width,
            self.height,
            self.more,
        ]

    @staticmethod
    def values_of(taken: Taken) -> list[Any]:
        """Return a picture's settings for the fields; what it does not say stays as it is."""

        def known(value: Any) -> Any:
            return gr.skip() if value is None else value

        request = taken.request
        return [
            request.prompt,
            request.negative_prompt,
            str(request.seed) if taken.has_seed else gr.skip(),
            True,
            known(request.steps),
            known(request.guidance_scale),
            known(request.width),
            known(request.height),
            {
                **taken.more,
                "stamp": secrets.token_hex(8),
            },  # told apart by this from what the browser itself put there
        ]


def steady(handler: Callable[..., Any]) -> Callable[..., Any]:
    """
    Let a handler that yields leave its outputs as they are where it has nothing to say.

    Gradio empties the outputs of a generator that ends before it yielded anything.
    """

    @functools.wraps(handler)
    async def work(*values: Any, **named: Any) -> Any:
        said = False
        async for shown in handler(*values, **named):
            said = True
            yield shown
        if not said:
            yield gr.skip()

    return work


def plain(message: object) -> str:
    """Return a message for Gradio's toasts, which read HTML: names out of files and prompts are shown as they are."""
    return html.escape(str(message), quote=False)


def guarded(handler: Callable[..., Any]) -> Callable[..., Any]:
    """Let the package's errors reach programs as Gradio's, in words; the page's own events are told by ``Shared.connect``."""

    @functools.wraps(handler)
    async def guard_async(*values: Any, **named: Any) -> Any:
        try:
            return await handler(*values, **named)
        except LoraMixerError as error:
            raise _shown(error) from error

    @functools.wraps(handler)
    def guard(*values: Any, **named: Any) -> Any:
        try:
            return handler(*values, **named)
        except LoraMixerError as error:
            raise _shown(error) from error

    return guard_async if inspect.iscoroutinefunction(handler) else guard


def _shown(error: LoraMixerError) -> Exception:
    return gr.Error(plain(words_of(error)), title="Not possible", duration=12, print_exception=False)


def answering(handler: Callable[..., Any]) -> Callable[..., Any]:
    """Return a server function's errors as ``{"problem": ..., "about": ..., "field": ...}``: those are shown where they belong."""

    def problem(error: Exception) -> dict[str, Any]:
        if isinstance(error, LoraMixerError):
            words = told(error)
            return {"problem": words["message"], "about": words["about"], "field": words["field"]}
        return {"problem": f"This is not what the page sends ({type(error).__name__}).", "field": ""}

    wrong = (LoraMixerError, TypeError, KeyError, AttributeError)  # the others: not what the page sends

    @functools.wraps(handler)
    async def answer_later(*values: Any, **named: Any) -> Any:
        try:
            return await handler(*values, **named)
        except wrong as error:
            return problem(error)

    @functools.wraps(handler)
    def answer(*values: Any, **named: Any) -> Any:
        try:
            return handler(*values, **named)
        except wrong as error:
            return problem(error)

    return answer_later if inspect.iscoroutinefunction(handler) else answer


QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": None}
"""For all handlers of the page: no spinner over it, no public name, and the queue in front of the device is our own."""
