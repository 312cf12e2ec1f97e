"""The page as a whole: its frame, and how it is served."""

from __future__ import annotations

import html
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
from starlette.middleware import Middleware

from lora_mixer.errors import LoraMixerError
from lora_mixer.extras import require

from .api import add_api
from .app_state import AppState, ServerOptions
from .guard import LOOPBACK, PageGuard, outermost
from .jobs import Jobs
from .messages import words_of
from .pages.compare import compare_page
from .pages.export import export_page
from .pages.gallery import gallery_page
from .pages.library import library_page
from .pages.make import make_page
from .pages.mix import make_mix_rows
from .pages.shared import QUIET, Shared
from .pressing import Pressing
from .reach import check_port, check_reach
from .theme import css, head, part, theme

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

CALLS_AT_ONCE = 128
"""How many of the page's handlers may be at work or wait: all jobs and those who look on, all who wait for files, and room for others."""
CACHE_SECONDS = (3600, 24 * 3600)


def build(app: AppState) -> Any:
    """
    Lay the whole page out.

    Args:
        app: What sessions share.

    Returns:
        The ``gr.Blocks``; :func:`launch` serves it safely.

    Example:
        >>> blocks = build(AppState(ServerOptions()))  # doctest: +SKIP
    """
    jobs = Jobs(present=app.sessions.present)
    with gr.Blocks(title="lora_mixer", delete_cache=CACHE_SECONDS, analytics_enabled=False) as blocks:
        top = gr.HTML(_top(app), elem_id="top", apply_default_css=False, padding=False)
        with gr.Row(elem_id="main", equal_height=False):
            with gr.Column(elem_id="side", scale=0, min_width=300):
                mix_rows = make_mix_rows(app, jobs)
                voice = part("voice", value=None, elem_id="voice", elem_classes="lm-unseen")
            with gr.Column(elem_id="work"), gr.Tabs(elem_id="tabs", selected="make") as tabs:
                shared = Shared(
                    app,
                    jobs,
                    mix_rows,
                    str(Path(blocks.GRADIO_CACHE).resolve()),
                    voice,
                    lambda event: event.then(lambda: _top(app), None, top, **QUIET),
                )
                with gr.Tab("Make", id="make", elem_id="tab-make"):
                    fields = make_page(shared)
                with gr.Tab("Library", id="library", elem_id="tab-library"):
                    library_page(shared)
                with gr.Tab("Compare", id="compare", elem_id="tab-compare"):
                    compare_page(shared, fields, tabs)
                with gr.Tab("Gallery", id="gallery", elem_id="tab-gallery") as gallery_tab:
                    gallery_page(shared, fields, gallery_tab, tabs)
                with gr.Tab("Export", id="export", elem_id="tab-export"):
                    export_page(shared)
        add_api(shared)
        gr.Timer(3.0).tick(lambda: _top(app), None, top, **QUIET)
        blocks.unload(
            _nothing
        )  # with it, Gradio's pages keep a stream open, by which the guard sees who is there
    return blocks


def _nothing() -> None:
    """Do nothing: jobs end by themselves when nobody listens."""


def _tell_of_the_model(app: AppState, tell: Callable[[str], object]) -> None:
    try:
        title = app.models.loaded().facts.title
    except LoraMixerError as error:
        tell(f"the model could not be loaded: {words_of(error)}")
    else:
        tell(f"the model {title} is there")


def _top(app: AppState) -> str:
    waiting = len(app.queue)
    queue = "idle" if not waiting else "at work" if waiting == 1 else f"at work, {waiting - 1} waiting"
    models = app.models
    title = html.escape(models.facts.title)
    if models.loading:
        title = f"{html.escape(models.loading)} is being loaded"
    elif models.problem:
        title = f"{title} could not be loaded"
    return (
        f'<div class="lm-root lm-top" data-model="{models.number}{bool(models.loading)}" '
        f'data-library="{app.scans} {html.escape(app.scanning)}"><h1 class="lm-brand"><i></i>lora_mixer</h1>'
        f'<span class="lm-tag"><span>model </span><b>{title}</b></span>'
        f'<span class="lm-tag" id="queue-length"><span>device </span><b>{queue}</b></span><span class="lm-space"></span>'
        '<button class="lm-button lm-quiet" onclick="lm.toggleTheme()" aria-label="Theme: dark or light">◐<span>Theme</span></button></div>'
    )


def launch(
    options: ServerOptions,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    auth: tuple[str, str] | None = None,
    share: bool = False,
    block: bool = True,
    app: AppState | None = None,
    tell: Callable[[str], object] = str,
    mcp: bool = False,
) -> Any:
    """
    Serve the page.

    Args:
        options: Model and folders.
        host: The address to listen on.
        port: The port; a free one from 7860 up where None.
        auth: User and password; needed for other hosts than loopback and for ``share``.
        share: Make a public link through Gradio's servers.
        block: Wait until it is ended.
        app: One that is open already.
        tell: Takes what is being done, in words, one line after the other; the address is among them.
        mcp: Offer the API as tools to programs that speak the Model Context Protocol, too (the extra ``mcp``).

    Returns:
        The ``gr.Blocks`` that is served; its ``local_url`` is where.

    Raises:
        LoraMixerError: When it may not be reached like that, or the model cannot be loaded.

    Example:
        >>> launch(ServerOptions(), port=7861)  # doctest: +SKIP
    """
    check_reach(host, share=share, auth=auth)
    check_port(host, port)
    if mcp:
        require("mcp", "mcp")
    app = app or AppState(options, tell)
    blocks = build(app)
    hosts = None if auth is not None else (*LOOPBACK, f"[{host}]" if ":" in host else host)
    served: Sequence[str] = [str(app.pictures), str(app.downloads)]
    blocks.queue(default_concurrency_limit=None, max_size=512, api_open=True)
    blocks.launch(
        server_name=host,
        server_port=port,
        auth=auth,
        share=share,
        theme=theme(),
        css=css(),
        head=head(),
        allowed_paths=list(served),
        max_file_size=options.max_upload,
        max_threads=CALLS_AT_ONCE,
        run_history=False,
        enable_monitoring=False,
        footer_links=["api"],
        show_error=True,
        ssr_mode=False,
        mcp_server=mcp,
        strict_cors=True,
        state_session_capacity=256,  # some 200 kB each, and nothing of ours: what is dropped is made anew
        quiet=True,
        prevent_thread_lock=True,
        app_kwargs={
            "middleware": [
                Middleware(PageGuard, app.sessions, hosts, app.pictures, app.downloads),
                Middleware(Pressing, sorted({each["type"] for each in blocks.config["components"]})),
            ]
        },
        inbrowser=False,
        _frontend=False,  # no call of its own, which ends the start where the first answer takes over 3 s
    )
    outermost(blocks.app)
    app.preloader.warm_up()
    tell(f"{blocks.local_url}  (Ctrl+C ends it; pictures go to {app.pictures})")
    threading.Thread(
        target=_tell_of_the_model, args=(app, tell), name="word of the model", daemon=True
    ).start()
    if block:
        blocks.block_thread()
    return blocks
