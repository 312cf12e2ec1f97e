"""What stands in front of the page: who may call it, from which sites, how often a password is tried, who is still there."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import threading
import time
from collections import OrderedDict, deque
from ipaddress import IPv4Address, IPv6Network, ip_address
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote, urlsplit

from lora_mixer.wording import first_line

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, MutableMapping
    from pathlib import Path

    Scope = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
    Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
    App = Callable[[Scope, Receive, Send], Awaitable[None]]

_log = logging.getLogger(__name__)

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
TRIES, TRIES_IN = 10, 60.0
"""Wrong passwords from one address in so many seconds; after that it waits."""
TRIES_IN_ALL = 100
"""Those from all addresses: who is at this machine or behind a proxy may write any address into a header, and some have many."""
CALLER = "lora_mixer.caller"
"""What a request's scope calls a program that is answered at once and has no session."""
_ADDRESSES, _TOKENS = 4096, 8192
_PICTURE = re.compile(r"((?:/[\w.-]+)*)/pictures/([\w-]{1,128}\.png)", re.ASCII)
_EXPORT = re.compile(r"((?:/[\w.-]+)*)/exports/([0-9a-f]{32})/([A-Za-z0-9][A-Za-z0-9 _.-]{0,127})", re.ASCII)
WRONG = 400
"""What Gradio answers to a wrong password."""
_SAFE = ("GET", "HEAD", "OPTIONS")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]]+)(?::\d{1,5})?", re.ASCII)
_AT_ONCE = re.compile(r".*/gradio_api/(?:run|api)/[^/]+/?")
_OF_AN_EVENT = re.compile(r".*/gradio_api/call/(?:v2/)?[^/]+/([^/]+)/?")
_HEADERS = (
    (b"x-frame-options", b"DENY"),
    (b"content-security-policy", b"frame-ancestors 'none'"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),
)


class Sessions:
    """
    Who is there: Gradio's sessions by their open streams, and the browser's own token that outlives a reload.

    A token is a secret of the browser; a session that brings it is the same person again.
    """

    def __init__(self) -> None:
        """Start with nobody."""
        self._open: dict[str, int] = {}
        self._tokens: OrderedDict[str, str] = OrderedDict()
        self._lock = threading.Lock()

    def join(self, session: str, token: str) -> None:
        """Remember whose session it is."""
        with self._lock:
            self._tokens[session] = token
            while len(self._tokens) > _TOKENS:
                self._tokens.popitem(last=False)

    def owner(self, session: str) -> str:
        """Return the token of a session, or the session itself."""
        with self._lock:
            return self._tokens.get(session, session)

    def present(self, owner: str) -> bool:
        """Say whether a stream of this owner is open."""
        with self._lock:
            return owner in self._open or any(self._tokens.get(session) == owner for session in self._open)

    def opened(self, session: str) -> None:
        """Count a stream."""
        with self._lock:
            self._open[session] = self._open.get(session, 0) + 1

    def closed(self, session: str) -> None:
        """Count it off."""
        with self._lock:
            left = self._open.get(session, 0) - 1
            if left > 0:
                self._open[session] = left
            else:
                self._open.pop(session, None)


class Brake:
    """How often a password was tried of late, but for the right ones: a try counts from its beginning on, so that many at once are many."""

    def __init__(self, tries: int = TRIES, seconds: float = TRIES_IN, in_all: int = TRIES_IN_ALL) -> None:
        """Start with none."""
        self._tries, self._seconds = tries, seconds
        self._tried: OrderedDict[str, deque[float]] = OrderedDict()
        self._all: deque[float] = deque(maxlen=in_all)

    def waits(self, address: str) -> float:
        """Return the seconds that an address has to wait before it may try again; 0 where it may."""
        of_address = self._tried.get(_network(address), deque(maxlen=self._tries))
        return max(self._left(of_address), self._left(self._all))

    def _left(self, times: deque[float]) -> float:
        now = time.monotonic()
        while times and now - times[0] > self._seconds:
            times.popleft()
        return self._seconds - (now - times[0]) if times and len(times) == times.maxlen else 0.0

    def tries(self, address: str) -> None:
        """Count a try."""
        address = _network(address)
        now = time.monotonic()
        self._tried.setdefault(address, deque(maxlen=self._tries)).append(now)
        self._all.append(now)
        self._tried.move_to_end(address)
        while len(self._tried) > _ADDRESSES:
            self._tried.popitem(last=False)

    def was_not_wrong(self, address: str) -> None:
        """Count one off."""
        for times in (self._tried.get(_network(address)), self._all):
            if times:
                times.pop()


def _network(address: str) -> str:
    """Return what one person has of addresses: of the sixth version all that begin alike."""
    try:
        read = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(read, IPv4Address):
        return str(read)
    return str(read.ipv4_mapped or IPv6Network((int(read), 64), strict=False))


class PageGuard:
    """
    ASGI middleware around the whole page.

    Args:
        app: What it guards.
        sessions: Gets to know which streams are open.
        hosts: Names under which the page may be called; None where a password keeps strangers out.
        pictures: The folder that ``pictures/NAME.png`` is in.
        downloads: The folder that ``exports/TOKEN/NAME`` is in.
    """

    def __init__(
        self, app: App, sessions: Sessions, hosts: Iterable[str] | None, pictures: Path, downloads: Path
    ) -> None:
        """Keep them."""
        self._pictures, self._downloads = pictures, downloads
        self._app, self._sessions, self._brake = app, sessions, Brake()
        self._hosts = None if hosts is None else {host.lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or say why not."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        reason = self._refusal(scope)
        if reason and scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        elif reason:
            await _answer(send, *reason)
        else:
            await self._passed(scope, receive, send)

    async def _passed(self, scope: Scope, receive: Receive, send: Send) -> None:
        address = str((scope.get("client") or ("",))[0])
        login = scope["path"].rstrip("/").endswith("/login") and scope.get("method") == "POST"
        begun: list[bool] = []
        if login:
            self._brake.tries(address)

        async def answer(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                begun.append(True)
                names = {name.lower() for name, _ in message.get("headers", ())}
                extra = [pair for pair in _HEADERS if pair[0] not in names]
                message = {**message, "headers": [*message.get("headers", ()), *extra]}
                if login and message["status"] != WRONG:
                    self._brake.was_not_wrong(address)
            await send(message)

        scope = self._of_files(scope)
        session = _stream_of(scope)
        if scope.get("method") == "POST" and _AT_ONCE.fullmatch(scope["path"]):
            session = f"call-{secrets.token_hex(8)}"
            scope = {**scope, CALLER: session}
            receive = _watched(receive, lambda: self._sessions.closed(session))
        if session:
            self._sessions.opened(session)
        try:
            await self._app(scope, receive, answer)
        except Exception as error:  # noqa: BLE001 -- Gradio's and FastAPI's own routes, on requests that no browser sends
            _log.warning(
                "%s: %s (%s)",
                quote(scope["path"])[:200],
                type(error).__name__,
                ascii(first_line(error, 160)),
            )
            if not begun:
                await _answer(send, 400, "This request is none that the page understands.")
        finally:
            if session:
                self._sessions.closed(session)

    def _of_files(self, scope: Scope) -> Scope:
        if match := _PICTURE.fullmatch(scope["path"]):
            return _of_file(scope, match[1], self._pictures / match[2])
        if match := _EXPORT.fullmatch(scope["path"]):
            return _of_file(scope, match[1], self._downloads / match[2] / match[3])
        return scope

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}
        host = headers.get("host", "")
        if self._hosts is not None and _name_of(host) not in self._hosts:
            return 421, "This page answers to its own address only; --host names another."
        path = scope["path"].rstrip("/")
        reads = scope["type"] == "http" and scope.get("method") in _SAFE and not path.endswith("/logout")
        if reads and _is_opened(headers):
            return None
        if path.endswith("/login") and not reads:
            seconds = self._brake.waits(str((scope.get("client") or ("",))[0]))
            if seconds:
                return 429, f"Too many wrong passwords: try again in {seconds:.0f} seconds."
        hosts = {host, headers.get("x-forwarded-host", host)}
        site = headers.get("sec-fetch-site")
        # browsers that say neither where from nor how say the page at least
        origin = headers.get("origin", None if site or reads else headers.get("referer"))
        if origin is not None and _netloc_of(origin) not in hosts:
            return 403, "Requests from other sites are refused."
        if site not in (None, "same-origin", "none"):
            return 403, "Requests from other sites are refused."
        return None


def _of_file(scope: Scope, root: str, file: Path) -> Scope:
    """Let Gradio's own route serve a file, with its login and its look at where links lead."""
    path = f"{root}/gradio_api/file={file}"
    return {**scope, "path": path, "raw_path": quote(path, safe="/=").encode()}


def outermost(app: Any) -> None:
    """
    Put the guard in front of all that Gradio has put before it, and let the page be for its own origin alone.

    Gradio's own answers to other origins stand outside of an application's middleware: they would name a foreign origin as
    allowed on what the guard refuses.

    Args:
        app: The application that is served.
    """
    kept = [each for each in app.user_middleware if each.cls.__name__ != "CustomCORSMiddleware"]
    app.user_middleware[:] = sorted(kept, key=lambda each: each.cls is not PageGuard)
    app.middleware_stack = app.build_middleware_stack()


def _name_of(host: str) -> str:
    match = _HOST.fullmatch(host)
    return match[1].lower() if match else ""


def _netloc_of(address: str) -> str:
    try:
        return urlsplit(address).netloc
    except ValueError:
        return ""


def _is_opened(headers: dict[str, str]) -> bool:
    """Tell whether a browser opens this as a page of its own: a link on another site leads here, and that site reads nothing of it."""
    return headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"


def _watched(receive: Receive, gone: Callable[[], object]) -> Receive:
    """Tell when whoever asks leaves before the answer: nobody else looks, once the question is read."""
    tasks: set[asyncio.Task[None]] = set()

    async def look() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        gone()

    async def read() -> MutableMapping[str, Any]:
        message = await receive()
        if message["type"] == "http.request" and not message.get("more_body"):
            tasks.add(asyncio.create_task(look()))
        return message

    return read


def _stream_of(scope: Scope) -> str:
    path = scope["path"].rstrip("/")
    if "/heartbeat/" in path:
        return str(path.rpartition("/")[2])
    if scope.get("method") == "GET" and (event := _OF_AN_EVENT.fullmatch(path)):
        return event[1]
    if path.endswith("/queue/data"):
        query: dict[str, list[str]] = parse_qs(scope.get("query_string", b"").decode("latin-1"))
        return query.get("session_hash", [""])[0]
    return ""


async def _answer(send: Send, status: int, text: str, extra: tuple[tuple[bytes, bytes], ...] = ()) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), *_HEADERS, *extra]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})
