"""A stand-in for the Hub: the few answers of its HTTP API that huggingface_hub needs, on loopback."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from urllib.parse import unquote, urlsplit

from tests.loopback import Loopback, Quiet

TOKEN = "hf_let_me_in"
COMMIT = "a" * 40


@dataclass
class Repo:
    files: dict[str, bytes]
    commit: str = COMMIT
    gated: bool = False
    branches: tuple[str, ...] = ("main",)


@dataclass
class HubStandIn(Loopback):
    """``with HubStandIn() as hub``: put repositories into ``hub.repos``, and see ``hub.requests``."""

    repos: dict[str, Repo] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    made: dict[str, dict] = field(default_factory=dict)  # repositories that were made, and how
    messages: list[str] = field(default_factory=list)  # of commits
    broken: int | None = None  # answer everything with this status

    @property
    def endpoint(self) -> str:
        return self.root

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

    def take(self, path, raw, token):
        """Take what is pushed: a new repository, the question how files come, and a commit with all of them in it."""
        if token != TOKEN:
            return 401, {"error": "Invalid credentials"}
        parts = path.strip("/").split("/")
        if parts[:3] == ["api", "repos", "create"]:
            given = json.loads(raw)
            name = f"{given.get('organization') or 'me'}/{given['name']}"
            known = name in self.repos
            self.repos.setdefault(name, Repo({}))
            self.made[name] = given
            return (409 if known else 200), {"url": f"{self.endpoint}/{name}", "name": name}
        if parts[:2] == ["api", "validate-yaml"]:
            return 200, {"errors": [], "warnings": []}
        name = f"{parts[2]}/{parts[3]}"
        if parts[4] == "preupload":
            files = [
                {"path": x["path"], "uploadMode": "regular", "shouldIgnore": False}
                for x in json.loads(raw)["files"]
            ]
            return 200, {"files": files}
        for line in map(json.loads, raw.splitlines()):
            if line["key"] == "file":
                self.repos[name].files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            elif line["key"] == "header":
                self.messages.append(line["value"]["summary"])
        return 200, {
            "commitOid": COMMIT,
            "commitUrl": f"{self.endpoint}/{name}/commit/{COMMIT}",
            "success": True,
        }

    def handler(self) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(Quiet, BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self._respond(with_body=False)

            def do_GET(self) -> None:
                self._respond(with_body=True)

            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                status, answer = hub.take(urlsplit(self.path).path, raw, self._token())
                self.send(status, {"Content-Type": "application/json"}, json.dumps(answer).encode())

            def _respond(self, *, with_body: bool) -> None:
                token = self._token()
                self.send(*hub.answer(urlsplit(self.path).path, token), with_body=with_body)

            def _token(self) -> str | None:
                """Note the request; return the token that it has."""
                hub.requests.append(f"{self.command} {self.path}")
                return (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None

        return Handler
