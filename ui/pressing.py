"""Texts of the page go out compressed: its first answer has all scripts and styles inside."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.middleware.gzip import GZipMiddleware

from .first_visit import pressed, styles_for, with_styles

if TYPE_CHECKING:
    from collections.abc import Iterable, MutableMapping
    from typing import Any

    from .guard import App, Receive, Scope, Send

_SMALLEST = 1500
_TEXTS = ("/config", "/component_server", "/component_server/", "/theme.css")
_OWN = (b"content-length", b"content-encoding")


class Pressing:
    """
    ASGI middleware that compresses the page itself and the answers to its scripts; streams and pictures stay as they are.

    Args:
        app: What answers.
        types: The types of the page's components, whose styles go along with it.
    """

    def __init__(self, app: App, types: Iterable[str] = ()) -> None:
        """Keep both ways."""
        self._plain, self._pressed = app, GZipMiddleware(app, minimum_size=_SMALLEST)
        self._styles = styles_for(types)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        path = str(scope["path"]) if scope["type"] == "http" else ""
        if (
            path.endswith("/")
            and scope["type"] == "http"
            and scope.get("method") == "GET"
            and "component_server" not in path
        ):
            await self._page(scope, receive, send)
        else:
            await (self._pressed if path.endswith(_TEXTS) else self._plain)(scope, receive, send)

    async def _page(self, scope: Scope, receive: Receive, send: Send) -> None:
        takes = b"br" in dict(scope["headers"]).get(b"accept-encoding", b"")
        start: MutableMapping[str, Any] = {}
        body = bytearray()

        async def gather(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                start.update(message)
                if not _is_page(message):
                    await send(message)
            elif not _is_page(start):
                await send(message)
            elif message["type"] == "http.response.body":
                body.extend(message.get("body", b""))
                if not message.get("more_body"):
                    await self._whole(send, start, bytes(body), takes=takes)

        # what stands behind must not compress it: it is read here
        headers = [(name, value) for name, value in scope["headers"] if name != b"accept-encoding"]
        await self._plain({**scope, "headers": headers}, receive, gather)

    async def _whole(self, send: Send, start: MutableMapping[str, Any], body: bytes, *, takes: bool) -> None:
        if takes:
            body = pressed(body, tuple(self._styles.items()))
        else:
            body = with_styles(body.decode(), self._styles).encode()
        headers = [(name, value) for name, value in start["headers"] if name.lower() not in _OWN]
        headers += [(b"content-length", str(len(body)).encode()), (b"vary", b"Accept-Encoding")]
        headers += [(b"content-encoding", b"br")] if takes else []
        await send({**start, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def _is_page(message: MutableMapping[str, Any]) -> bool:
    headers = {name.lower(): value for name, value in message.get("headers", ())}
    return headers.get(b"content-type", b"").startswith(b"text/html") and b"content-encoding" not in headers
