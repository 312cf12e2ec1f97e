"""A stand-in for the Hub: the few answers of its HTTP API that huggingface_hub needs, on loopback."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urlsplit

TOKEN = "hf_let_me_in"
COMMIT = "a" * 40


@dataclass
class Repo:
    files: dict[str, bytes]
    commit: str = COMMIT
    gated: bool = False
    branches: tuple[str, ...] = ("main",)


@dataclass
class HubStandIn:
    """``with HubStandIn() as hub``: put repositories into ``hub.repos``, and see ``hub.requests``."""

    repos: dict[str, Repo] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    broken: int | None = None  # answer everything with this status

    def __enter__(self):
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def answer(self, path, token):  # noqa: PLR0911  (one way out per answer)
        """Return status, headers and body; as the Hub does, with its X-Error-Code."""
        if self.broken:
            return self.broken, {}, b"{}"
        parts = [unquote(part) for part in path.strip("/").split("/")]
        listing = parts[:2] == ["api", "models"]
        owner, name, *rest = parts[2:] if listing else parts
        repo = self.repos.get(f"{owner}/{name}")
        if repo is None:
            return 401, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}, b"{}"
        if listing:
            revision = rest[1] if rest else "main"  # /api/models/user/repo/revision/REV
            if revision not in (*repo.branches, repo.commit):
                return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
            siblings = [{"rfilename": file} for file in repo.files]
            info = {"id": f"{owner}/{name}", "sha": repo.commit, "siblings": siblings}
            return 200, {"Content-Type": "application/json"}, json.dumps(info).encode()
        revision, file = rest[1], "/".join(rest[2:])  # /user/repo/resolve/REV/FILE
        if repo.gated and token != TOKEN:
            return 401, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"}, b""
        if revision not in (*repo.branches, repo.commit):
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        if file not in repo.files:
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": repo.commit}, b""
        content = repo.files[file]
        etag = hashlib.sha256(content).hexdigest()
        return 200, {"ETag": f'"{etag}"', "X-Repo-Commit": repo.commit}, content

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self._respond(with_body=False)

            def do_GET(self) -> None:
                self._respond(with_body=True)

            def _respond(self, *, with_body: bool) -> None:
                hub.requests.append(f"{self.command} {self.path}")
                token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
                status, headers, body = hub.answer(urlsplit(self.path).path, token)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if with_body:
                    self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Keep the tests' output clean."""

        return Handler
