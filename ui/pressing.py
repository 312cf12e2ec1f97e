"""Texts of the page go out compressed: its first answer has all scripts and styles of this package inside."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.middleware.gzip import GZipMiddleware

if TYPE_CHECKING:
    from .guard import App, Receive, Scope, Send

_SMALLEST = 1500
_TEXTS = ("/", "/config", "/component_server", "/component_server/", "/theme.css")


class Pressing:
    """
    ASGI middleware that compresses the page itself and the answers to its scripts; streams and pictures stay as they are.

    Args:
        app: What answers.
    """

    def __init__(self, app: App) -> None:
        """Keep both ways."""
        self._plain, self._pressed = app, GZipMiddleware(app, minimum_size=_SMALLEST)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        is_text = scope["type"] == "http" and str(scope["path"]).endswith(_TEXTS)
        await (self._pressed if is_text else self._plain)(scope, receive, send)
