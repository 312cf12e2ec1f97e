"""A stand-in for a model site: the two questions of its interface and its files, on loopback."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from urllib.parse import urlsplit

from tests.loopback import Loopback, Quiet


@dataclass
class SiteStandIn(Loopback):
    """``with SiteStandIn() as site``: put files in with ``add``, and see ``site.requests``."""

    versions: dict[int, dict] = field(default_factory=dict)  # by number
    models: dict[int, dict] = field(default_factory=dict)
    content: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    raw: bytes | None = None  # answer everything with this
    status: int | None = None
    moved: str | None = None  # where downloads are sent to

    @property
    def endpoint(self) -> str:
        return f"{self.root}/api/v1"

    def add(
        self,
        name: str,
        raw: bytes,
        *,
        model: int,
        version: int,
        title: str = "Ink",
        base: str = "SD 1.5",
        **more,
    ) -> str:
        """Put a file in as the newest version of a model, and return its SHA-256."""
        sha = hashlib.sha256(raw).hexdigest()
        self.content[f"/files/{version}"] = raw
        about = {
            "name": title,
            "allowNoCredit": False,
            "allowCommercialUse": ["Image"],
            "allowDerivatives": True,
        }
        entry = {
            "id": version, "modelId": model, "name": f"v{version}", "baseModel": base, "trainedWords": ["ink sketch"],
            "model": about, "files": [
                {"name": "training.zip", "sizeKB": 1, "hashes": {"SHA256": "0" * 63 + "1"}},
                {"name": name, "sizeKB": len(raw) / 1024, "primary": True, "downloadUrl": f"{self.root}/files/{version}",
                 "hashes": {"SHA256": sha.upper(), "AutoV2": sha[:10].upper(), "BLAKE3": ("b" + sha)[:64].upper()}, **more},
            ],
        }  # fmt: skip
        self.versions[version] = entry
        listed = self.models.setdefault(model, {"id": model, "name": title, "modelVersions": []})[
            "modelVersions"
        ]
        listed.insert(0, {key: value for key, value in entry.items() if key not in ("modelId", "model")})
        return sha

    def answer(self, path: str) -> tuple[int, bytes]:
        if self.status is not None:
            return self.status, b"{}"
        if self.raw is not None:
            return 200, self.raw
        if path in self.content:
            return 200, self.content[path]
        front, _, last = path.rpartition("/")
        if front == "/api/v1/models" and int(last) in self.models:
            return 200, json.dumps(self.models[int(last)]).encode()
        if front == "/api/v1/model-versions/by-hash":
            for version in self.versions.values():
                held = [digits for file in version["files"] for digits in file["hashes"].values()]
                if last.upper() in held:
                    return 200, json.dumps(version).encode()
        return 404, b'{"error": "not found"}'

    def handler(self) -> type[BaseHTTPRequestHandler]:
        site = self

        class Handler(Quiet, BaseHTTPRequestHandler):
            def do_GET(self):
                path = urlsplit(self.path).path
                site.requests.append((path, self.headers.get("Authorization")))
                if site.moved is not None and path.startswith("/files/"):
                    self.send(302, {"Location": site.moved}, b"")
                else:
                    status, body = site.answer(path)
                    self.send(status, {}, body)

        return Handler
