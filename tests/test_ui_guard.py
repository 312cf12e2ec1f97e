"""What stands in front of the page: floods, other hosts, other sites, wrong passwords, addresses without paths."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace

import httpx
import pytest
import torch
from gradio import networking

from lora_mixer import demo_adapters, match_adapters
from lora_mixer.errors import LoraMixerError, PictureCancelled, PictureError
from lora_mixer.picture_metadata import PictureAdapter, PictureSettings
from lora_mixer.ui import app_state as ui_state
from lora_mixer.ui import guard as ui_guard
from lora_mixer.ui import jobs as ui_jobs
from lora_mixer.ui.guard import TRIES, Brake, Sessions
from lora_mixer.ui.jobs import Jobs, Order, SessionJob
from lora_mixer.ui.messages import without_paths
from tests.browser import STEPS, serving


@pytest.fixture(scope="module")
def calls(site):
    """Call the page's handlers by name, as programs do."""
    url, _ = site
    found = httpx.get(f"{url}config", timeout=60).json()["dependencies"]
    return url, {each.get("api_name"): each["id"] for each in found}


def join(url, number, data, session, **headers):
    body = {"fn_index": number, "data": data, "session_hash": session, "trigger_id": 1}
    return httpx.post(f"{url}gradio_api/queue/join", json=body, headers=headers, timeout=60)


def answer(url, number, data, session):
    join(url, number, data, session)
    with httpx.stream(
        "GET", f"{url}gradio_api/queue/data", params={"session_hash": session}, timeout=60
    ) as lines:
        return next(line for line in lines.iter_lines() if "process_completed" in line)


def test_a_flood_of_calls_leaves_the_page_answering_and_ends_when_nobody_listens(calls, app, monkeypatch):
    url, numbers = calls
    for number in range(40):
        data = [f"flood {number}", "", number, 500, 3.0, 64, 64, "", 64, "", "", 0]
        join(url, numbers["make"], data, f"flood{number}")
    assert "entries" in answer(url, numbers["adapters"], ["", "", "Name", 0], "reader")
    refused = answer(url, numbers["make"], ["one more", "", 1, 500, 3.0, 64, 64, "", 1, "", "", 0], "late")
    assert "work for 32 sessions already" in refused
    monkeypatch.setattr(ui_jobs, "GRACE", 1.0)
    end = time.monotonic() + 120
    while len(app.queue) and time.monotonic() < end:
        threading.Event().wait(0.2)
    assert len(app.queue) == 0


def held(jobs, owner, kind="make"):
    """An order that goes on until it is stopped."""

    def work(job: SessionJob):
        job.stop.wait(60)
        raise PictureCancelled("stopped")

    return jobs.submit(owner, kind, Order(owner, work), {}, lambda view, event: {**view, **event})


def test_jobs_are_bounded_for_each_session_and_in_all():
    jobs = Jobs(limit=2)
    first, fresh = held(jobs, "a")
    assert fresh
    for _ in range(ui_jobs.MAX_WAITING):
        same, fresh = held(jobs, "a")
        assert (same, fresh) == (first, False)
    with pytest.raises(PictureError, match="wait already"):
        held(jobs, "a")
    with pytest.raises(PictureError, match="still being made on Make"):
        held(jobs, "a", "grid")
    held(jobs, "b")
    with pytest.raises(PictureError, match="2 sessions"):
        held(jobs, "c")
    for order in list(first.orders):
        jobs.rearrange("a", order.number, None)
    for owner in ("a", "b"):
        jobs.stop(owner)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("make", "being made on Make"),
        ("grid", "being made on Compare"),
        ("export", "export of yours is still being written"),
    ],
)
def test_what_is_refused_while_something_goes_on_says_where_it_goes_on(kind, words):
    jobs = Jobs()
    held(jobs, "a", kind)
    with pytest.raises(PictureError, match=words):
        held(jobs, "a", "bake")
    jobs.stop("a")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"), "There is not enough memory"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
            "There is not enough memory",
        ),
        (MemoryError(), "There is not enough memory"),
        (KeyError("x"), r"This should not have happened \(KeyError\)"),
    ],
)
def test_an_error_of_no_ones_is_told_in_words(error, words):
    def work(_: SessionJob):
        raise error

    with pytest.raises(PictureError, match=f"^{words}"):
        asyncio.run(Jobs().result("a", "make", "a picture", work))


def test_one_session_cannot_rearrange_what_another_has_waiting():
    jobs = Jobs()
    job, _ = held(jobs, "a")
    held(jobs, "a")
    held(jobs, "b")
    (order,) = job.orders
    jobs.rearrange("b", order.number, None)
    assert list(job.orders) == [order]
    jobs.rearrange("a", order.number, None)
    assert not job.orders
    for owner in ("a", "b"):
        jobs.stop(owner)


def test_who_brings_the_same_token_is_the_same_person_and_nobody_else():
    sessions = Sessions()
    sessions.opened("one")
    sessions.join("one", "browser-a")
    assert (sessions.owner("one"), sessions.owner("two")) == ("browser-a", "two")
    assert sessions.present("browser-a")
    sessions.closed("one")
    assert not sessions.present("browser-a")
    sessions.join("two", "browser-a")
    sessions.opened("two")
    assert sessions.present("browser-a")
    assert not sessions.present("one")


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:7860", "127.0.0.1.evil.example", "", "[::2]", "localhost.evil"]
)
@pytest.mark.parametrize("path", ["", "config", "gradio_api/info", "theme.css"])
def test_another_host_is_refused_everywhere(site, host, path):
    assert httpx.get(f"{site[0]}{path}", headers={"Host": host}, timeout=60).status_code == 421


@pytest.mark.parametrize("host", ["evil.example", None])
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS", "HEAD"])
@pytest.mark.parametrize("path", ["", "config", "gradio_api/queue/join"])
def test_no_answer_lets_another_origin_read_it(site, host, method, path):
    headers = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    found = httpx.request(
        method, f"{site[0]}{path}", headers=headers | ({"Host": host} if host else {}), timeout=60
    )
    assert [name for name in found.headers if name.startswith("access-control")] == []
    assert host is None or found.status_code == 421


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST:1", "[::1]", "[::1]:7860"])
def test_names_of_loopback_are_answered(site, host):
    assert httpx.get(f"{site[0]}config", headers={"Host": host}, timeout=60).status_code == 200


@pytest.mark.parametrize("path", ["upload", "component_server", "queue/join", "cancel", "run/predict"])
@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "http://127.0.0.1:1"},
    ],
)
def test_what_writes_is_refused_to_other_sites(site, path, headers):
    found = httpx.post(
        f"{site[0]}gradio_api/{path}",
        content=b"{}",
        headers={**headers, "Content-Type": "text/plain"},
        timeout=60,
    )
    assert found.status_code == 403


@pytest.mark.parametrize(
    ("path", "body", "kind"),
    [
        ("upload", b'--x\r\nContent-Disposition: form-data; name="files"\r\n\r\na\r\n--x--\r\n', "multipart/form-data; boundary=x"),
        ("call/make", b"\xff\xfe", "text/plain"),
        ("call/nothing", b"\xff\xfe", ""),
    ],
)  # fmt: skip
def test_what_no_browser_sends_is_refused_in_one_line(site, path, body, kind, capfd, caplog):
    """Gradio's own routes raise what they like at it: an error 500, and a hundred lines in the log for each."""
    url, _ = site
    answer = httpx.post(f"{url}gradio_api/{path}", content=body, headers={"content-type": kind}, timeout=60)
    assert 400 <= answer.status_code < 500
    assert len(answer.text) < 1000
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "Traceback" not in capfd.readouterr().err
    assert sum(len(record.getMessage()) for record in caplog.records) < 1000


def test_the_page_is_in_no_frame(site):
    found = httpx.get(site[0], timeout=60).headers
    assert found["x-frame-options"] == "DENY"
    assert "frame-ancestors 'none'" in found["content-security-policy"]


def test_a_page_whose_first_answer_is_slow_is_served_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(networking, "url_ok", lambda _: False)  # what Gradio finds after 3 s
    with serving(tmp_path / "out", tmp_path / "cache") as (url, _):
        assert httpx.get(f"{url}config", timeout=60).status_code == 200


def test_wrong_passwords_are_slowed_and_the_right_one_works_afterwards(tmp_path):
    with serving(tmp_path / "out", tmp_path / "cache", auth=("user", "word")) as (url, _):
        tries = [
            httpx.post(f"{url}login", data={"username": "user", "password": str(n)}, timeout=60).status_code
            for n in range(TRIES + 5)
        ]
        assert tries == [400] * TRIES + [429] * 5
        # the guard is one of many addresses: another one may still come in
        assert httpx.get(f"{url}config", timeout=60).status_code == 401


def test_the_brake_lets_go_and_holds_each_address_alone(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(ui_guard, "time", SimpleNamespace(monotonic=lambda: now[0]))
    brake = Brake(tries=2, seconds=0.5)
    for _ in range(2):
        brake.tries("a")
        now[0] += 0.125
    assert brake.waits("a") == 0.25
    assert brake.waits("b") == 0
    now[0] += 0.25
    assert brake.waits("a") == 0
    now[0] += 0.125
    assert brake.waits("a") == 0


@pytest.mark.parametrize(
    ("addresses", "status", "let_in"),
    [
        (["1.1.1.1"] * 99, 400, TRIES),
        (["1.1.1.1", "::ffff:1.1.1.1", "::FFFF:0101:0101"] * 33, 400, TRIES),
        ([f"2001:db8:0:1::{n:x}" for n in range(99)], 400, TRIES),
        ([f"2001:db8:0:{n:x}::1" for n in range(99)], 400, 99),
        ([f"1.1.1.{n}" for n in range(99)], 400, 99),
        (["fe80::1%eth0", "fe80::2%eth0"] * 50, 400, TRIES),
        (["unix", ""] * 50, 400, 2 * TRIES),
        (["1.1.1.1"] * 9 * TRIES, 200, 9 * TRIES),
    ],
)
@pytest.mark.parametrize("path", ["/login", "/login/", "/root/login"])
def test_passwords_tried_at_once_or_from_one_network_are_slowed(addresses, status, let_in, path, tmp_path):
    """In turn there would be no race: all of a crowd come before the first has its answer."""
    tried, done = [], []

    async def page(scope, receive, send):
        tried.append(scope)
        if status == 400:
            await asyncio.sleep(0)
        await send({"type": "http.response.start", "status": status, "headers": []})

    async def send(message):
        done.append(message.get("status"))

    async def crowd():
        guard = ui_guard.PageGuard(page, Sessions(), None, tmp_path, tmp_path)
        scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "headers": [(b"host", b"x")],
            "query_string": b"",
        }
        await asyncio.gather(*(guard({**scope, "client": (each, 1)}, None, send) for each in addresses))

    asyncio.run(crowd())
    assert (len(tried), done.count(status), done.count(429)) == (let_in, let_in, len(addresses) - let_in)


def test_answers_hold_no_path_of_the_server(calls, app):
    url, numbers = calls
    found = answer(
        url, numbers["make"], ["a castle", "ink:0.5", 3, STEPS, 3.0, 64, 64, "", 1, "", "", 0], "pathless"
    )
    assert str(app.out) not in found
    name = max(app.pictures.glob("*.png")).name
    assert f'"url":"pictures/{name}"' in found.replace(" ", "")
    assert httpx.get(f"{url}pictures/{name}", timeout=60).content == (app.pictures / name).read_bytes()
    assert httpx.get(f"{url}pictures/..%2f..%2fmixes.json.png", timeout=60).status_code in (403, 404)
    assert httpx.get(f"{url}pictures/20260101-000000-000-ffffff.png", timeout=60).status_code in (403, 404)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/home/ann/loras/ink.safetensors: cut short", "ink.safetensors: cut short"),
        ("in '/srv/a b/x.pt'", "in 'a b/x.pt'"),
        ("https://huggingface.co/a/b is away", "https://huggingface.co/a/b is away"),
        ("use owner/name, 1/2 and and/or", "use owner/name, 1/2 and and/or"),
        (r"C:\loras\ink.safetensors is broken", "ink.safetensors is broken"),
    ],
)
def test_paths_in_messages_are_cut_to_their_last_name(text, shown):
    assert without_paths(text) == shown


NAMES = ("../ink.safetensors", "INK", "INK-{ID}", "once", "ONCE", "STAYS-{USED}")


@pytest.mark.parametrize("way", ["upload", "hub", "rename"])
def test_no_upload_takes_a_name_over(app, tidy, tmp_path, monkeypatch, way):
    """Nor does what comes from a Hub, or gets another name: what a name means in mixes, in whatever letters, it means afterwards."""
    from lora_mixer.library import adding
    from lora_mixer.ui.handlers import library as handlers

    files = [each.path for each in demo_adapters().values() if each.path.is_file()]
    for called, file in zip(("once", "\u00fcber", "mine"), files, strict=False):
        (app.uploads / f"{called}.safetensors").write_bytes(file.read_bytes())
    app.scan(wait=20)
    app.library.rename(app.entry_named("once").id, "Stays")  # mixes know it by both
    mine = app.entry_named("mine").id
    told = {"first": "stays", "id": app.entry_named("ink").id[:8], "used": app.entry_named("Stays").id[:8]}
    names = [
        name.format(**told, **{key.upper(): value.upper() for key, value in told.items()}) for name in NAMES
    ]
    spelled = {*names, *map(str.lower, names), *map(str.upper, names), *app.names()}
    before = {each: found.id for each in spelled if (found := app.entry_named(each)) is not None}
    file = tmp_path / "x.safetensors"
    file.write_bytes(files[0].read_bytes())
    taken = {}
    for name in names:
        if way == "upload":
            handlers.upload(app, [str(file)], str(tmp_path), name)
        elif way == "hub":
            monkeypatch.setattr(adding, "from_hub", lambda *_, name=name: adding.Downloaded(file, name, None))
            handlers.from_hub(app, "a/b", None)
        else:
            with suppress(LoraMixerError):
                handlers.rename(app, {"id": mine, "name": name})
        taken[name] = [each for each, meant in before.items() if app.entry_named(each).id != meant]
    assert {name: spelled for name, spelled in taken.items() if spelled} == {}


def test_an_id_of_an_adapter_is_not_taken_as_a_name(app, tidy, tmp_path):
    from lora_mixer.ui.handlers.library import upload

    twin = demo_adapters()["halftone"].path.read_bytes()
    (app.uploads / "sub").mkdir(exist_ok=True)
    (app.uploads / "sub" / "halftone.safetensors").write_bytes(twin)
    app.scan(wait=20)
    second = next(each for each in app.names() if each.startswith("halftone-"))
    meant = app.entry_named(second).id
    file = tmp_path / "x.safetensors"
    file.write_bytes(demo_adapters()["pixel"].path.read_bytes())
    upload(app, [str(file)], str(tmp_path), second)
    assert app.entry_named(second).id == meant


def test_a_picture_makes_no_file_be_read_in_the_handler(app, monkeypatch):
    from lora_mixer.ui.handlers import gallery

    entries = [replace(entry, hashes={}) for entry in app.every_entry()]
    monkeypatch.setattr(app, "every_entry", lambda: entries)
    read, may_go_on = [], threading.Event()

    def slow(entry_id):
        read.append((threading.current_thread().name, entry_id))
        may_go_on.wait(60)
        return {}

    monkeypatch.setattr(app.library, "hashes", slow)
    settings = PictureSettings(adapters=(PictureAdapter("unknown", hashes={"autov2": "0123456789"}),))
    _, found = gallery.recalled(app, settings)  # ends, though no hash is there yet
    assert found.missing[0].name == "unknown"
    assert any("looked into yet" in note for note in gallery.report(app, settings, found, ())["notes"])
    named = PictureSettings(adapters=(PictureAdapter("unknown"),))  # whose hashes nobody has to know
    assert gallery.report(app, named, match_adapters(named, {}), ())["notes"] == []
    may_go_on.set()
    end = time.monotonic() + 30
    while app.hashing and time.monotonic() < end:
        threading.Event().wait(0.01)
    assert {name for name, _ in read} == {"hashes"}
    usable = [entry for entry in entries if not entry.problem and not entry.offline]
    assert len(read) == len(usable)


def test_behind_the_page_no_more_is_read_than_the_bound(app, monkeypatch):
    entries = [
        replace(entry, hashes={}) for entry in app.every_entry() if not entry.problem and not entry.offline
    ]
    read = []
    monkeypatch.setattr(app.library, "hashes", lambda entry_id: read.append(entry_id) or {})
    sizes = {entry.id: entry.bytes for entry in entries}
    bound = sum(sorted(sizes.values())[:2])
    for limit, count in ((bound, None), (0, 1)):
        monkeypatch.setattr(ui_state, "HASHED_AT_ONCE", limit)
        read.clear()
        app.hash_all(entries)
        end = time.monotonic() + 30
        while app.hashing and time.monotonic() < end:
            threading.Event().wait(0.01)
        assert len(read) == count or sum(sizes[each] for each in read) <= limit
        assert read


def test_the_trash_gives_back_what_was_put_there_and_nothing_else(app, tmp_path):
    from PIL import Image

    from lora_mixer.ui import gallery

    place = SimpleNamespace(out=tmp_path, pictures=tmp_path / "pictures")
    place.pictures.mkdir()
    name = gallery.new_id()
    Image.new("RGB", (8, 8)).save(place.pictures / f"{name}.png")
    before = (place.pictures / f"{name}.png").read_bytes()
    gallery.remove(place, name)
    with pytest.raises(PictureError):
        gallery.path_of(place, name)
    for wrong in ("../pictures", name + "x", "", None):
        with pytest.raises(PictureError):
            gallery.restore(place, wrong)
    gallery.restore(place, name)
    assert (place.pictures / f"{name}.png").read_bytes() == before
