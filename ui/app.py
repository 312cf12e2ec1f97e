"""The page as a whole: its frame, and how it is served."""

from __future__ import annotations

import html
import ipaddress
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from lora_mixer.errors import LoraMixerError

from .api import add_api
from .making import Jobs
from .page import FAST, Shared
from .page_compare import compare_page
from .page_export import export_page
from .page_gallery import gallery_page
from .page_library import library_page
from .page_make import make_page
from .page_mix import connect_side, make_board, make_side
from .studio import Settings, Studio
from .theme import css, head, theme

if TYPE_CHECKING:
    from collections.abc import Sequence

CACHE_SECONDS = (3600, 24 * 3600)


def build(studio: Studio) -> Any:
    """
    Lay the whole page out.

    Args:
        studio: What sessions share.

    Returns:
        The ``gr.Blocks``; :func:`launch` serves it safely.
    """
    jobs = Jobs()
    with gr.Blocks(title="lora_mixer", delete_cache=CACHE_SECONDS, analytics_enabled=False) as blocks:
        top = gr.HTML(_top(studio), elem_id="top", apply_default_css=False, padding=False)
        with gr.Row(elem_id="main", equal_height=False):
            with gr.Column(elem_id="side", scale=0, min_width=300):
                board = make_board(studio)
                side = make_side(studio)
            with gr.Column(elem_id="work"), gr.Tabs(elem_id="tabs", selected="make") as tabs:
                shared = Shared(studio, jobs, board, str(Path(blocks.GRADIO_CACHE).resolve()))
                with gr.Tab("Make", id="make"):
                    fields = make_page(shared)
                with gr.Tab("Library", id="library"):
                    library_page(shared, fields, blocks)
                with gr.Tab("Compare", id="compare"):
                    compare_page(shared, fields)
                with gr.Tab("Gallery", id="gallery") as gallery_tab:
                    gallery_page(shared, fields, gallery_tab, tabs)
                with gr.Tab("Export", id="export"):
                    export_page(shared)
        connect_side(shared, fields, side)
        add_api(shared)
        gr.Timer(3.0).tick(lambda: _top(studio), None, top, **FAST)

        def left(request: gr.Request) -> None:
            jobs.stop(str(request.session_hash))

        blocks.unload(left)
    return blocks


def _top(studio: Studio) -> str:
    waiting = len(studio.queue)
    queue = "idle" if not waiting else f"{waiting} queued"
    model = html.escape(Path(str(studio.settings.model)).name)
    return (
        '<div class="lm-root lm-top"><span class="lm-brand"><i></i>lora_mixer</span>'
        f'<span class="lm-tag"><span>model </span><b>{model}</b></span>'
        f'<span class="lm-tag" id="queue-length"><span>device </span><b>{queue}</b></span><span class="lm-space"></span>'
        '<button class="lm-button lm-quiet" onclick="lm.toggleTheme()" aria-label="Dark or light">◐<span>Theme</span></button></div>'
    )


def check_reach(host: str, *, share: bool, auth: tuple[str, str] | None) -> None:
    """
    Refuse to be reached from other machines without a password.

    Raises:
        LoraMixerError: When ``auth`` is needed and missing.
    """
    if auth is not None:
        return
    try:
        local = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = False
    if share or not local:
        what = "--share" if share else f"--host {host}"
        raise LoraMixerError(
            f"{what} lets other machines in: give --auth USER:PASSWORD as well (or leave it at --host 127.0.0.1)"
        )


def launch(
    settings: Settings,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    auth: tuple[str, str] | None = None,
    share: bool = False,
    block: bool = True,
    studio: Studio | None = None,
) -> Any:
    """
    Serve the page.

    Args:
        settings: Model and folders.
        host: The address to listen on.
        port: The port; a free one from 7860 up where None.
        auth: User and password; needed for other hosts than loopback and for ``share``.
        share: Make a public link through Gradio's servers.
        block: Wait until it is ended.
        studio: One that is open already.

    Returns:
        The ``gr.Blocks`` that is served; its ``local_url`` is where.

    Raises:
        LoraMixerError: When it may not be reached like that, or the model cannot be loaded.

    Example:
        >>> launch(Settings(), port=7861)  # doctest: +SKIP
    """
    check_reach(host, share=share, auth=auth)
    studio = studio or Studio(settings)
    blocks = build(studio)
    served: Sequence[str] = [str(studio.pictures)]
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
        max_file_size=settings.max_upload,
        max_threads=64,
        run_history=False,
        enable_monitoring=False,
        footer_links=["api"],
        show_error=True,
        ssr_mode=False,
        mcp_server=False,
        strict_cors=True,
        state_session_capacity=2000,
        quiet=True,
        prevent_thread_lock=True,
        inbrowser=False,
    )
    studio.preloader.warm_up()
    if block:
        sys.stdout.write(
            f"lora_mixer: {blocks.local_url}  (Ctrl+C ends it; pictures go to {studio.pictures})\n"
        )
        sys.stdout.flush()
        blocks.block_thread()
    return blocks
