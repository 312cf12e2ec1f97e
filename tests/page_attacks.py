"""
The page attacked at random: hostile values to every handler and function of the server, hostile uploads, requests of other sites.

``python -m tests.page_attacks --seed 1 --count 2000`` serves a page of its own, calls each of its endpoints in turn with values
that are drawn, uploads bombs and damaged files under hostile names, and prints a table: what was called how often, what was
answered or refused, what was wrong. Wrong is a traceback, a path or a secret of the server in an answer, an error 500, an answer
over :data:`LETTERS_AT_MOST` letters, one that takes over :data:`SECONDS_AT_MOST`, a file outside of where uploads go, a log of
over :data:`LOG_AT_MOST` bytes for each call, and a page that makes no picture afterwards.
"""

from __future__ import annotations

import argparse
import collections
import io
import json
import random
import struct
import sys
import tempfile
import time
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import httpx
import torch

from tests.browser import serving
from tests.long_runs import Person, sample

if TYPE_CHECKING:
    from collections.abc import Callable

SECRET = "the-secret-of-this-machine"
SECONDS_AT_MOST = 20.0
LETTERS_AT_MOST = 400_000
LOG_AT_MOST = 4_000
MIB_AT_MOST = 400.0

TEXTS = (
    "", " ", "\0", "a\0b", "\n\r\n", "\u202egnp.exe", "\ud800", "\N{PILE OF POO}" * 300, "x" * 200_000, "../../secret.txt", "/etc/passwd",
    "~/.ssh/id_rsa", "C:\\secret.txt", "file:///etc/passwd", "https://[::1/", "http://169.254.169.254/", "github://a/b", "NaN", "1e999",
    "9" * 5000, "-1", "true", "null", "[" * 20_000, '{"a":' * 5000, "<img src=x onerror=alert(1)>", "${window.a=1}", "{{a}}", "ink:1,mask=/etc/passwd",
    "ink:1,blocks=re:(a+)+$", "re:(a|a)*b", "*a" * 60, "{a|b}" * 4000, "__../../secret__", "<lora:ink:nan>" * 200, "(" * 3000,
    "a: &a [x,x,x]\nb: &b [*a,*a,*a]\nc: &c [*b,*b,*b]\nd: [*c,*c,*c]", "!!python/object/apply:os.system ['true']", "%s%n%x", "' OR 1=1 --",
    "ink:" + "0." * 900,
)  # fmt: skip
NUMBERS = (0, -1, 1, 7, 2**31, 2**63, -(2**70), 1e308, 1e-320, 0.5, True)
KEYS = (
    "id", "name", "rows", "token", "key", "number", "to", "weight", "notes", "labels", "folder", "root", "picture", "address", "text", "base",
    "label", "sort", "first", "page", "word", "png", "mask", "mix", "unet", "te", "blocks", "schedule", "path", "meta", "url", "orig_name",
)  # fmt: skip


def value(dice: random.Random, secret: str, depth: int = 0) -> Any:
    """Draw a value that JSON can say."""
    kind = dice.randrange(8 if depth < 3 else 5)
    if kind < 3:
        return dice.choice((*TEXTS, secret))
    if kind == 3:
        return dice.choice(NUMBERS)
    if kind == 4:
        return None
    if kind == 5:
        return [value(dice, secret, depth + 1) for _ in range(dice.choice((0, 1, 3)))]
    if kind == 6:
        return {key: value(dice, secret, depth + 1) for key in dice.sample(KEYS, dice.randint(1, 6))}
    nested: Any = secret
    for _ in range(dice.choice((30, 900))):
        nested = [nested] if depth % 2 else {"rows": nested}
    return nested


def _deflated_checkpoint() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}q\x00.")
        archive.writestr("archive/data/0", b"\0" * (64 << 20))
    return stream.getvalue()


def _png(*chunks: tuple[bytes, bytes], width: int = 8, height: int = 8) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"\0" * (min(height, 64) * (1 + 3 * min(width, 64)))))
    return (
        b"\x89PNG\r\n\x1a\n" + head + b"".join(chunk(*each) for each in chunks) + pixels + chunk(b"IEND", b"")
    )


def _header(table: Any, data: bytes = b"") -> bytes:
    text = table if isinstance(table, bytes) else json.dumps(table).encode()
    return struct.pack("<Q", len(text)) + text + data


def _adapter() -> bytes:
    from safetensors.torch import save

    pair = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
    return save({f"{pair}.lora_down.weight": torch.ones(2, 8), f"{pair}.lora_up.weight": torch.ones(8, 2)})


FILES: dict[str, Callable[[], bytes]] = {
    "nothing": lambda: b"",
    "a header of 2^62": lambda: struct.pack("<Q", 2**62) + b"{}",
    "a deep header": lambda: _header(b'{"a":' + b"[" * 90_000),
    "a huge shape": lambda: _header({"a.lora_A.weight": {"dtype": "F32", "shape": [1 << 40, 1 << 20], "data_offsets": [0, 4]}}, b"\0" * 4),
    "offsets over each other": lambda: _header({
        f"a.lora_{x}.weight": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]} for x in "AB"}, b"\0" * 16),
    "a deep configuration in its metadata": lambda: _header({"__metadata__": {"lora_adapter_metadata": "[" * 90_000}}),
    "names of 5,000 letters": lambda: _header({("a" * 5000 + str(n)): {"dtype": "F32", "shape": [1], "data_offsets": [4 * n, 4 * n + 4]}
                                               for n in range(300)}, b"\0" * 1200),
    "names with a zero byte and a line": lambda: _header({
        "a\0b\n.lora_A.weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"\0" * 4),
    "a pickle": lambda: b"\x80\x04cos\nsystem\n(S'true'\ntR.",
    "a packed checkpoint": _deflated_checkpoint,
    "a page": lambda: b"<script>alert(1)</script>",
    "a picture of 10^10 pixels": lambda: _png(width=100_000, height=100_000),
    "a picture with a text that unpacks": lambda: _png((b"zTXt", b"parameters\0\0" + zlib.compress(b"a" * (64 << 20)))),
    "a picture with a deep workflow": lambda: _png((b"tEXt", b"prompt\0" + b'{"a":' * 50_000)),
    "a picture that names files": lambda: _png((b"tEXt", b"parameters\0a <lora:/etc/passwd:1> <lora:../../secret:1>\nSteps: 3, Seed: 1")),
    "an adapter": _adapter,
}  # fmt: skip


NAMES = (
    "ink.safetensors", "../../ink.safetensors", "a\0.safetensors", "a\nb.safetensors", "\u202esrotesnefas.a", ".hidden.safetensors", "a" * 250 + ".png",
    "<img src=x>.safetensors", "con.png", "a.pt", "a.ckpt", "adapter_config.json", "a.png", "a.svg", "a.html", "..", "",
)  # fmt: skip


ROUTES = (
    "user", "login_check", "token", "app_id", "dev/reload", "runs", "run-history/connect", "run-history/buckets", "run-history/records",
    "run-history/records/{}/{}/assets/{}", "deep_link", "info", "openapi.json", "custom_component/{}/server/component/{}", "proxy={}", "file={}", "file/{}",
    "stream/{}", "stream/{}/close", "stream/{}/{}/{}/playlist.m3u8", "stream/{}/{}/{}/{}.ts", "stream/{}/{}/{}/playlist-file", "reset", "heartbeat/{}",
    "run/{}", "api/{}", "call/v2/{}", "call/{}", "queue/join", "cancel", "call/{}/{}", "queue/data", "component_server", "queue/status", "upload_progress",
    "upload", "startup-events", "theme.css", "process_recording", "vibe-edit", "undo-vibe-edit", "vibe-code", "vibe-starter-queries", "profiling/traces",
    "profiling/summary", "profiling/clear", "../config", "../static/{}", "../assets/{}", "../svelte/{}", "../pwa_icon/{}", "../manifest.json", "../monitoring",
    "../monitoring/summary", "../monitoring/{}", "../pictures/{}", "../exports/{}/{}", "../login", "../logout", "../{}",
)  # fmt: skip
"""Those of Gradio and of the page, below ``gradio_api``; some are there in other settings only."""

SHOWN = ("image/png", "image/jpeg", "image/webp", "application/json")
"""What a browser may show of what strangers upload; it runs nothing of these."""


class Table:
    """What was called, and what came of it."""

    def __init__(self, hidden: tuple[str, ...]) -> None:
        self.hidden = hidden
        self.rows: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
        self.wrong: list[str] = []

    def note(
        self, what: str, outcome: str, text: str, seconds: float, sent: Any = None, *, is_echo: bool = False
    ) -> None:
        """Count an answer and look at it."""
        self.rows[what][outcome] += 1
        problems = {
            "a traceback": "Traceback" in text,
            "a secret": SECRET in text,
            "a path of the server": any(path in text for path in self.hidden) and not is_echo,
            "an error 500": outcome == "500",
            f"{len(text)} letters": len(text) > LETTERS_AT_MOST,
            f"{seconds:.1f} s": seconds > SECONDS_AT_MOST,
        }
        for problem, is_so in problems.items():
            if is_so:
                self.rows[what]["WRONG"] += 1
                self.wrong.append(f"{what}: {problem}: sent {str(sent)[:300]!r}: {text[:600]!r}")

    def __str__(self) -> str:
        """Lay it out."""
        lines = [f"{'endpoint':44} {'calls':>6}  outcomes"]
        for name, row in sorted(self.rows.items()):
            told = ", ".join(f"{key} {count}" for key, count in sorted(row.items()) if key != "WRONG")
            calls = sum(count for key, count in row.items() if key != "WRONG")
            lines.append(f"{name:44} {calls:6}  {told}" + (f"  WRONG {row['WRONG']}" if row["WRONG"] else ""))
        return "\n".join(lines)


class Attacker:
    """Whoever calls a page by hand."""

    def __init__(self, url: str, secret: str, table: Table, seed: int) -> None:
        self.url, self.secret, self.table, self.dice = url, secret, table, random.Random(seed)
        self.client = httpx.Client(timeout=60, follow_redirects=False)
        config = self.client.get(f"{url}config").json()
        self.handlers = config["dependencies"]
        self.functions = [
            (part["id"], name)
            for part in config["components"]
            for name in part["props"].get("server_fns") or ()
        ]
        self.uploaded: list[str] = []
        self.calls = 0

    def _post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        raw = json.dumps(body).encode("utf-8", "surrogatepass")
        return self.client.post(
            f"{self.url}{path}", content=raw, headers={"content-type": "application/json"}, **options
        )

    def _value(self) -> Any:
        if self.uploaded and self.dice.random() < 0.3:
            path = self.dice.choice(self.uploaded)
            return {"path": path, "orig_name": self.dice.choice(NAMES), "meta": {"_type": "gradio.FileData"}}
        return value(self.dice, self.secret)

    def handler(self, dependency: dict[str, Any]) -> None:
        """Call one of the page's handlers."""
        sent = [self._value() for _ in dependency["inputs"]]
        session = f"attacker{self.calls}"
        body = {
            "fn_index": dependency["id"], "data": sent, "session_hash": session, "trigger_id": 1, "event_data": self._value(),
        }  # fmt: skip
        start = time.monotonic()
        answer = self._post("gradio_api/queue/join", body)
        text, outcome = answer.text, str(answer.status_code)
        if answer.status_code == 200:
            text, outcome = self._listen(session)
        what = f"handler {dependency.get('api_name') or dependency['id']}"
        self.table.note(what, outcome, text, time.monotonic() - start, sent)

    def _listen(self, session: str) -> tuple[str, str]:
        told = []
        with self.client.stream(
            "GET", f"{self.url}gradio_api/queue/data", params={"session_hash": session}
        ) as lines:
            for line in lines.iter_lines():
                told.append(line)
                if "process_completed" in line:
                    return "\n".join(
                        told
                    ), "answered" if '"success": true' in line or '"success":true' in line else "refused"
                if "close_stream" in line or "unexpected_error" in line:
                    break
        return "\n".join(told), "ended"

    def function(self, part: int, name: str) -> None:
        """Call one of the server's functions."""
        sent = self._value()
        start = time.monotonic()
        answer = self._post(
            "gradio_api/component_server",
            {"data": sent, "component_id": part, "fn_name": name, "session_hash": "attacker"},
        )
        self.table.note(
            f"function {name}", str(answer.status_code), answer.text, time.monotonic() - start, sent
        )

    def upload(self) -> None:
        """Upload a hostile file."""
        kind, name = self.dice.choice(tuple(FILES)), self.dice.choice(NAMES)
        start = time.monotonic()
        try:
            answer = self.client.post(f"{self.url}gradio_api/upload", files={"files": (name, FILES[kind]())})
        except httpx.HTTPError as error:  # answered before all of it was sent
            self.table.note(f"upload: {kind}", type(error).__name__, "", time.monotonic() - start)
            return
        if answer.status_code == 200:
            self.uploaded += answer.json()
        # where an upload lies is told to who uploads: Gradio's handlers take it from there
        text = "" if answer.status_code == 200 else answer.text
        self.table.note(f"upload: {kind}", str(answer.status_code), text, time.monotonic() - start, name)

    def other_site(self) -> None:
        """Ask as a page of another site, or under another name of this machine."""
        path = self.dice.choice(
            (
                "",
                "config",
                "gradio_api/upload",
                "gradio_api/queue/join",
                "gradio_api/component_server",
                "gradio_api/file=x.png",
            )
        )
        headers = self.dice.choice(
            (
                {"host": "evil.example"}, {"host": "127.0.0.1.evil.example"}, {"host": ""}, {"host": "a" * 5000},
                {"origin": "https://evil.example"}, {"origin": "null"}, {"referer": "https://evil.example/", "sec-fetch-site": "cross-site"},
            )
        )  # fmt: skip
        reads = path in ("", "config", "gradio_api/file=x.png")
        start = time.monotonic()
        try:
            if reads:
                answer = self.client.get(f"{self.url}{path}", headers=headers)
            else:
                answer = self.client.post(f"{self.url}{path}", headers=headers, json={})
        except httpx.HTTPError as error:
            self.table.note("another site", type(error).__name__, "", 0.0)
            return
        is_host = "host" in headers
        refused = answer.status_code >= 400
        self.table.note(
            "another site", str(answer.status_code), answer.text if refused else "", time.monotonic() - start
        )
        if (is_host or not reads) and not refused:
            self.table.wrong.append(f"another site: {headers} were answered {answer.status_code} at {path!r}")
        if answer.headers.get("access-control-allow-origin"):
            self.table.wrong.append(f"another site: {headers} may read what is answered at {path!r}")

    def route(self) -> None:
        """Ask a route for anything, by any method, with anything."""
        dice = self.dice
        route = dice.choice(ROUTES)
        texts = (
            *TEXTS[:20],
            self.secret,
            "make",
            "make_grid",
            "x.png",
            "0",
            "..%2f..%2fsecret.txt",
            "%00",
            "http://127.0.0.1:1/",
        )
        filled = "".join(
            piece
            + (
                quote(
                    dice.choice(texts)[:2000].encode("utf-8", "surrogatepass"), safe=dice.choice(("", "/:"))
                )
                if at
                else ""
            )
            for at, piece in reversed([*enumerate(reversed(route.split("{}")))])
        )
        body = dice.choice(
            (
                b"", b"{", b"[]", b"null", b"NaN", b"\xff\xfe", b"[" * 50_000, b"a" * 100_000,
                json.dumps(value(dice, self.secret)).encode("utf-8", "surrogatepass"),
                json.dumps({key: value(dice, self.secret) for key in ("data", "fn_index", "session_hash", "event_id", "fn_name", "component_id")}).encode(
                    "utf-8", "surrogatepass"
                ),
                b'--x\r\nContent-Disposition: form-data; name="files"\r\n\r\na\r\n--x--\r\n',
                b'--x\r\nContent-Disposition: form-data; name="files"; filename=""\r\n\r\na\r\n--x--\r\n',
                b'--x\r\nContent-Disposition: form-data; name="files"; filename="../../a"\r\n\r\na',
            )
        )  # fmt: skip
        kind = dice.choice(
            (
                "application/json",
                "multipart/form-data; boundary=x",
                "multipart/form-data",
                "text/plain",
                "application/x-www-form-urlencoded",
                "",
            )
        )
        method = dice.choice(
            ("GET", "GET", "GET", "POST", "POST", "POST", "HEAD", "PUT", "OPTIONS", "DELETE")
        )
        asked = {
            key: dice.choice(texts)[:500]
            for key in dice.sample(("session_hash", "upload_id", "fn_index", "deep_link", "view", "x"), 2)
        }
        start, told = time.monotonic(), b""
        url = f"{self.url}gradio_api/{filled}"
        try:
            with self.client.stream(
                method,
                url,
                content=body,
                headers={"content-type": kind},
                params=asked if dice.random() < 0.5 else None,
            ) as answer:
                for piece in answer.iter_raw():
                    told += piece
                    if (
                        len(told) > 2_000_000 or time.monotonic() - start > 2
                    ):  # some never end: who listens is counted off as it leaves
                        break
                text = told.decode("utf-8", "replace")
                is_said = answer.status_code >= 400
                self.table.note(
                    f"route {route}",
                    str(answer.status_code),
                    text if is_said else text[:0],
                    min(time.monotonic() - start, 1),
                    (method, url[:200], kind, body[:200]),
                    is_echo=True,
                )
                if (
                    SECRET in text
                    or "Traceback" in text
                    or (not is_said and any(path in text for path in self.table.hidden))
                ):
                    self.table.wrong.append(f"route {method} {url[:200]} says {text[:300]!r}")
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, UnicodeError) as error:
            self.table.note(f"route {route}", type(error).__name__, "", 0.0)

    def path(self) -> None:
        """Ask for files."""
        wanted = self.dice.choice(
            (self.secret, "/etc/passwd", "../../secret.txt", "x.png", *self.uploaded[-3:])
        )
        start = time.monotonic()
        answer = self.client.get(f"{self.url}gradio_api/file={wanted}")
        self.table.note(
            "file",
            str(answer.status_code),
            "" if answer.status_code == 200 else answer.text,
            time.monotonic() - start,
            wanted,
        )
        if SECRET in answer.text:
            self.table.wrong.append(f"file: {wanted} is served")
        kind = answer.headers.get("content-type", "").partition(";")[0]
        is_saved = answer.headers.get("content-disposition", "").startswith("attachment")
        if answer.status_code == 200 and not is_saved and kind not in SHOWN:
            self.table.wrong.append(f"file: {wanted} is shown as {kind}")

    def attack(self) -> None:
        """Do one of them; each handler and function has its turn."""
        turns = len(self.handlers) + len(self.functions)
        at = self.calls % (turns + turns // 2)
        self.calls += 1
        if at < len(self.handlers):
            self.handler(self.handlers[at])
        elif at < turns:
            self.function(*self.functions[at - len(self.handlers)])
        else:
            self.dice.choice(
                (self.upload, self.upload, self.other_site, self.path, self.route, self.route, self.route)
            )()


def attack(seed: int, count: int, folder: Path, *, seconds: float = float("inf")) -> Table:
    """
    Serve a page and attack it.

    Returns:
        What was called, what came of it and what was wrong.
    """
    out, cache = folder / "site" / "out", folder / "cache"
    out.parent.mkdir()
    (out.parent / "secret.txt").write_text(SECRET)
    end = time.monotonic() + seconds
    stderr, sys.stderr = sys.stderr, io.StringIO()
    try:
        with serving(out, cache) as (url, app):
            table = Table((str(out.parent), str(Path(__file__).resolve().parent.parent)))
            # under a name of its own: what answers repeat of what was sent is no path that they give away
            (folder / "alias").symlink_to(out.parent)
            attacker = Attacker(url, str(folder / "alias" / "secret.txt"), table, seed)
            before = {path for path in out.parent.rglob("*") if path.is_file()}
            early = sample()
            while attacker.calls < count and time.monotonic() < end:
                attacker.attack()
                if attacker.calls == count // 3:
                    early = sample()
            late = sample()
            if late.mib - early.mib > MIB_AT_MOST:
                table.wrong.append(f"memory: {early.mib:.0f} to {late.mib:.0f} MiB")
            make = next(each["id"] for each in attacker.handlers if each.get("api_name") == "make")
            made = Person(url, 0, make).picture(1, leave=False)
            if made != "made":
                table.wrong.append(f"no picture can be made afterwards: {made}")
            table.rows["a picture afterwards"][made[:40]] += 1
            known = (app.out, app.uploads, app.pictures)
            odd = [
                path
                for path in out.parent.rglob("*")
                if path.is_file()
                and path not in before
                and not any(path.is_relative_to(each) for each in known)
            ]
            table.wrong += [f"a file outside: {path}" for path in odd]
            log = sys.stderr.getvalue()
            if len(log) > LOG_AT_MOST * attacker.calls:
                table.wrong.append(f"the log has {len(log)} letters after {attacker.calls} calls")
            table.rows[f"log: {len(log) // max(1, attacker.calls)} letters a call"]["told"] += 1
            table.rows[f"memory: {early.mib:.0f} MiB after a third, {late.mib:.0f} at the end"]["told"] += 1
            return table
    finally:
        sys.stderr = stderr


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        table = attack(chosen.seed, chosen.count, Path(folder), seconds=chosen.seconds)
    print(table)  # noqa: T201
    print(f"{len(table.wrong)} wrong", *table.wrong, sep="\n")  # noqa: T201
    sys.exit(bool(table.wrong))


if __name__ == "__main__":
    main()
