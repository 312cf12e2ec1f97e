"""What stands in front of the page: floods, other hosts, other sites, wrong passwords, addresses without paths."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
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
from lora_mixer.ui import messages as ui_messages
from lora_mixer.ui import readers as ui_readers
from lora_mixer.ui.guard import TRIES, Brake, Sessions
from lora_mixer.ui.jobs import Jobs, Order, SessionJob
from lora_mixer.ui.messages import without_paths, words_of
from tests.browser import STEPS, held, serving


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


SLOW = ("adapter", "duplicates", "upload", "dropped", "rescan", "look")


@pytest.mark.parametrize("what", SLOW)
def test_files_that_take_long_leave_the_pages_handlers_their_threads(calls, app, monkeypatch, what):
    """A disk that sleeps, files of many gigabytes, 250 who ask at once: who wants something else has it."""
    from lora_mixer.ui.handlers import gallery
    from lora_mixer.ui.handlers import library as handlers

    url, numbers = calls
    parts = httpx.get(f"{url}config", timeout=60).json()["components"]
    at = {name: part["id"] for part in parts for name in part["props"].get("server_fns") or ()}
    may_go_on, begun = threading.Event(), []

    def slow(*_values, **_named):
        begun.append(threading.current_thread().name)
        may_go_on.wait(60)
        raise PictureError("it took long")

    def ask(name):
        body = {"data": "x", "component_id": at[name], "fn_name": name, "session_hash": "many"}
        return httpx.post(f"{url}gradio_api/component_server", json=body, timeout=60).text

    monkeypatch.setattr(handlers, "details", slow)
    monkeypatch.setattr(handlers, "duplicates", slow)
    monkeypatch.setattr(handlers, "take_uploads", slow)
    monkeypatch.setattr(gallery, "dropped", slow)
    if what in ("rescan", "look"):
        monkeypatch.setattr(app.library, "refresh", slow)
    many = 160
    with ThreadPoolExecutor(many) as threads:
        try:
            if what in ("adapter", "duplicates"):
                answers = [threads.submit(ask, what) for _ in range(many)]
            elif what == "look":
                answers = [threads.submit(app.scan, wait=0) for _ in range(many)]
            else:
                data = {"upload": [None, None], "dropped": [None], "rescan": []}[what]
                answers = [
                    threads.submit(join, url, numbers[what], data, f"{what}{number}")
                    for number in range(many)
                ]
            end = time.monotonic() + 60
            while not begun and time.monotonic() < end:
                threading.Event().wait(0.01)
            assert '"names"' in ask("saved")
            assert "entries" in answer(url, numbers["adapters"], ["", "", "Name", 0], f"reader beside {what}")
            assert len(begun) <= ui_readers.THREADS
            if what in ("adapter", "duplicates"):
                refused = [
                    text
                    for each in answers
                    if each.done() and "try again in a while" in (text := each.result())
                ]
                assert len(refused) == many - ui_readers.THREADS - ui_readers.WAITING
        finally:
            may_go_on.set()
    while app.scanning:
        threading.Event().wait(0.01)
    assert (
        what not in ("rescan", "look") or len(begun) == 2
    )  # one look, and one more for all who came meanwhile


def test_many_who_look_on_at_one_job_leave_room_for_others(calls, app, monkeypatch):
    url, numbers = calls
    config = httpx.get(f"{url}config", timeout=60).json()["dependencies"]
    hello = next(each["id"] for each in config if each.get("api_name") == "hello")
    run = next(each for each in config if each.get("api_name") == "run")

    def joined(number, data, session, **event):
        body = {
            "fn_index": number,
            "data": data,
            "session_hash": session,
            "trigger_id": 1,
            "event_data": event or None,
        }
        assert httpx.post(f"{url}gradio_api/queue/join", json=body, timeout=60).status_code == 200

    with held(app, monkeypatch) as gate, ThreadPoolExecutor(32) as threads:
        joined(hello, [], "who makes", token="browser-looked-on")
        values = ["looked on", "", "1", True, 2, 3.0, 64, 64, 1, None, {"rows": []}]
        joined(run["id"], values, "who makes")
        list(threads.map(lambda n: joined(hello, [], f"looks on {n}", token="browser-looked-on"), range(200)))
        assert "entries" in answer(
            url, numbers["adapters"], ["", "", "Name", 0], "reader beside those who look on"
        )
        gate.open()


def test_a_picture_with_unknown_hashes_waits_for_no_adapter_that_is_being_loaded(app):
    entries = [replace(entry, hashes={}) for entry in app.every_entry()]
    with app._lock, ThreadPoolExecutor(1) as threads:
        threads.submit(app.hash_all, entries).result(timeout=30)


def test_a_picture_of_this_page_is_read_while_the_model_is_loaded(app, monkeypatch):
    from lora_mixer.ui.handlers import gallery

    monkeypatch.setattr(app.models, "_there", threading.Event())
    name = app.models.facts.scheduler
    settings = PictureSettings(sampler=name, dialect=gallery.OWN)
    with ThreadPoolExecutor(1) as threads:
        found = threads.submit(gallery.taken, app, settings).result(timeout=30)
    assert (name.endswith("Scheduler"), found.more["sampler"]) == (True, "")


def test_no_more_sessions_are_kept_than_the_bound(calls):
    """Sessions of Gradio's: who is dropped loses nothing, since browsers keep what is theirs."""
    import gc

    from gradio.blocks import Blocks

    url, numbers = calls
    (blocks,) = [
        each
        for each in gc.get_objects()
        if isinstance(each, Blocks) and getattr(each, "local_url", "") == url and each.is_running
    ]
    bound = blocks.app.state_holder.capacity
    assert bound == 256
    with httpx.Client(timeout=60) as client:
        for number in range(bound + 10):
            body = {"data": ["no such word", "", "Name", 0], "session_hash": f"one of many {number}"}
            assert client.post(f"{url}gradio_api/run/adapters", json=body).status_code == 200
    kept = blocks.app.state_holder
    assert len(kept.session_data) == bound
    assert len(kept.time_last_used) <= bound + 1
    assert "entries" in answer(url, numbers["adapters"], ["", "", "Name", 0], "one of many 0")


ASKED = ["a program", "", 1, 2, 3.0, 64, 64, "", 1, "", "", 0]
WAYS = ("run", "api", "call", "call of a session", "call/v2", "queue")


@pytest.fixture
def begun(monkeypatch):
    """The jobs that begin, whose listeners are looked for all the time."""
    jobs, own = [], Jobs.submit

    def submit(*values, **named):
        job, fresh = own(*values, **named)
        jobs.append(job)
        return job, fresh

    monkeypatch.setattr(Jobs, "submit", submit)
    monkeypatch.setattr(ui_jobs, "GRACE", 0.5)
    monkeypatch.setattr(ui_jobs, "_LOOK_EVERY", 0.05)
    return jobs


def asked_for(url, numbers, way, leaves):
    """Ask for a picture as programs do, and return what came of it; ``leaves`` ends it at once."""
    api = f"{url}gradio_api/"
    if way in ("run", "api"):
        patience = httpx.Timeout(60, read=0.3) if leaves else 60
        with suppress(httpx.ReadTimeout):
            return httpx.post(f"{api}{way}/make", json={"data": ASKED}, timeout=patience).text
        return ""
    session = f"program-{threading.get_ident()}-{time.monotonic_ns()}"
    if way == "queue":
        join(url, numbers["make"], ASKED, session)
        stream, params = f"{api}queue/data", {"session_hash": session}
    else:
        body = {"data": ASKED, **({"session_hash": session} if "session" in way else {})}
        path = way.partition(" ")[0]
        if path == "call/v2":
            body = {"prompt": "a program", "steps": 2, "width": 64, "height": 64}
        event = httpx.post(f"{api}{path}/make", json=body, timeout=60).json()["event_id"]
        stream, params = f"{api}{path}/make/{event}", {}
    with httpx.stream("GET", stream, params=params, timeout=60) as lines:
        told = ""
        for line in lines.iter_lines():
            if leaves:
                return ""
            told += line
        return told


@pytest.mark.parametrize("way", WAYS)
def test_a_program_that_waits_for_its_picture_gets_it_and_one_that_left_keeps_nobody_waiting(
    calls, app, begun, monkeypatch, way
):
    url, numbers = calls
    with held(app, monkeypatch) as gate, ThreadPoolExecutor(2) as threads:
        waits = threads.submit(asked_for, url, numbers, way, False)
        others = threads.submit(asked_for, url, numbers, "run", False)  # is one more and nobody's
        end = time.monotonic() + 60
        while len(begun) < 2 and time.monotonic() < end:
            threading.Event().wait(0.02)
        start = time.monotonic()
        while (
            any(not job.stop.is_set() and job.seen < start + 1.5 for job in begun) and time.monotonic() < end
        ):
            threading.Event().wait(0.02)
        assert [job.stop.is_set() for job in begun] == [False, False]
        gate.open()
        for answer in (waits, others):
            assert "pictures/" in answer.result(), answer.result()
    begun.clear()
    with held(app, monkeypatch):
        asked_for(url, numbers, way, True)
        end = time.monotonic() + 60
        while not (begun and begun[0].stop.is_set()) and time.monotonic() < end:
            threading.Event().wait(0.02)
        assert [job.stop.is_set() for job in begun] == [True]


def test_all_who_come_by_the_model_context_protocol_are_several(calls, app, begun, monkeypatch):
    """They have one session of Gradio's own, which is there as long as the server."""
    url, numbers = calls
    with held(app, monkeypatch) as gate:
        for _ in range(3):
            join(url, numbers["make"], ASKED, "all of the protocol", **{"x-gradio-user": "mcp"})
        end = time.monotonic() + 60
        while len(begun) < 3 and time.monotonic() < end:
            threading.Event().wait(0.02)
        assert len({job.owner for job in begun}) == 3
        gate.open()


def kept_busy(jobs, owner, kind="make"):
    """An order that goes on until it is stopped."""

    def work(job: SessionJob):
        job.stop.wait(60)
        raise PictureCancelled("stopped")

    return jobs.submit(owner, kind, Order(owner, work), {}, lambda view, event: {**view, **event})


def test_jobs_are_bounded_for_each_session_and_in_all():
    jobs = Jobs(limit=2)
    first, fresh = kept_busy(jobs, "a")
    assert fresh
    for _ in range(ui_jobs.MAX_WAITING):
        same, fresh = kept_busy(jobs, "a")
        assert (same, fresh) == (first, False)
    with pytest.raises(PictureError, match="wait already"):
        kept_busy(jobs, "a")
    with pytest.raises(PictureError, match="still being made on Make"):
        kept_busy(jobs, "a", "grid")
    kept_busy(jobs, "b")
    with pytest.raises(PictureError, match="2 sessions"):
        kept_busy(jobs, "c")
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
    kept_busy(jobs, "a", kind)
    with pytest.raises(PictureError, match=words):
        kept_busy(jobs, "a", "bake")
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
    job, _ = kept_busy(jobs, "a")
    kept_busy(jobs, "a")
    kept_busy(jobs, "b")
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
    "host",
    ["evil.example", "evil.example:7860", "127.0.0.1.evil.example", "", "[::2]", "localhost.evil", "localhost.", "2130706433",
     "0x7f.1", "127.1", "[::1]evil", "[::1].evil.example", "127.0.0.1:evil.example", "127.0.0.1:80@evil.example", "127.0.0.1, evil.example"],
)  # fmt: skip
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
        {"Origin": "http://[evil"},
        {"Referer": "http://evil.example/page"},  # all that an old browser says
        {"Referer": "http://127.0.0.1:1/"},
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


ELSEWHERE = (
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"},
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors", "Sec-Fetch-Dest": "empty"},
    {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "script"},
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"},
    {"Origin": "http://evil.example"},
)
FOLLOWED = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}


@pytest.mark.parametrize("headers", ELSEWHERE)
@pytest.mark.parametrize(
    "path", ["", "config", "gradio_api/heartbeat/x", "pictures/x.png", "gradio_api/queue/data?session_hash=x"]
)
def test_other_sites_draw_nothing_of_the_page_into_theirs(site, path, headers):
    """Nor is a picture of it shown in theirs, nor a stream opened; a link that somebody follows leads here."""
    assert httpx.get(f"{site[0]}{path}", headers=headers, timeout=60).status_code == 403


def test_a_link_on_another_site_leads_to_the_page(site):
    assert httpx.get(site[0], headers=FOLLOWED, timeout=60).status_code == 200


@pytest.mark.parametrize("headers", [*ELSEWHERE, FOLLOWED, {"Referer": "http://evil.example/"}])
def test_nobody_is_logged_out_by_another_site(tmp_path, headers):
    with serving(tmp_path / "out", tmp_path / "cache", auth=("user", "word")) as (url, _):
        said = httpx.post(f"{url}login", data={"username": "user", "password": "word"}, timeout=60)
        cookies = "; ".join(each.partition(";")[0] for each in said.headers.get_list("set-cookie"))
        seen = [
            httpx.get(f"{url}{path}", headers={"Cookie": cookies, **more}, timeout=60).status_code
            for path, more in (("logout", headers), ("config", {}), ("logout", {}), ("config", {}))
        ]
        assert seen == [403, 200, 302, 401]


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


@pytest.mark.parametrize("name", ["X-Forwarded-For", "X-Real-IP", "Forwarded"])
def test_an_address_that_a_header_names_takes_the_brake_off_for_no_one(tmp_path, name):
    """Whoever is at this machine may write any address there."""
    with serving(tmp_path / "out", tmp_path / "cache", auth=("user", "word")) as (url, _):
        tries = [
            httpx.post(
                f"{url}login",
                data={"username": "user", "password": str(n)},
                headers={name: f"9.9.{n // 250}.{n % 250}"},
                timeout=60,
            ).status_code
            for n in range(ui_guard.TRIES_IN_ALL + 20)
        ]
        assert tries.count(400) <= ui_guard.TRIES_IN_ALL
        assert set(tries) == {400, 429}


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
        ([f"1.1.{n // 200}.{n % 200}" for n in range(400)], 400, ui_guard.TRIES_IN_ALL),
        ([f"2001:db8:{n:x}::1" for n in range(400)], 400, ui_guard.TRIES_IN_ALL),
        ([f"1.1.{n // 200}.{n % 200}" for n in range(400)], 200, 400),
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
        ("in '/srv/a b/x.pt'", "in 'x.pt'"),
        ("[Errno 2] No such file: '/home/ann smith/x.pt'", "[Errno 2] No such file: 'x.pt'"),
        ("/known by name/my loras/ink.safetensors: cut short", "ink.safetensors: cut short"),
        (
            "cannot be written to /known by name/my loras (No space left)",
            "cannot be written to my loras (No space left)",
        ),
        ("/known by name/my loras-2 and /known by name/my loras/a", "/known by name/my loras-2 and a"),
        ("file:///home/ann/x.pt and /a/b:/c/d", "x.pt and b:d"),
        (r"in \\server\share\x.pt", "in x.pt"),
        ("https://huggingface.co/a/b is away", "https://huggingface.co/a/b is away"),
        ("use owner/name, 1/2 and and/or", "use owner/name, 1/2 and and/or"),
        (r"C:\loras\ink.safetensors is broken", "ink.safetensors is broken"),
    ],
)
def test_paths_in_messages_are_cut_to_their_last_name(text, shown, monkeypatch):
    monkeypatch.setattr(ui_messages, "_folders", {})
    ui_messages.hide(Path("/known by name/my loras"))
    assert without_paths(text) == shown


def test_folders_with_blanks_are_shown_to_nobody(tmp_path):
    """In answers to whatever is wrong with their files: such a path does not tell where it ends."""
    from lora_mixer.ui import AppState, ServerOptions
    from lora_mixer.ui.handlers import library as handlers

    loras, out = tmp_path / "ann smith" / "my loras", tmp_path / "ann smith" / "my pictures"
    (loras / "sub folder").mkdir(parents=True)
    for name, data in (("empty", b""), ("cut", b"\x10"), ("odd", b"\x02\0\0\0\0\0\0\0[]")):
        (loras / "sub folder" / f"{name}.safetensors").write_bytes(data)
    (loras / "gone.safetensors").write_bytes(demo_adapters()["ink"].path.read_bytes())
    app = AppState(ServerOptions(out=out, loras=(loras,)))
    (loras / "gone.safetensors").unlink()
    shown = [repr(handlers.search(app, {}))]
    shown += [repr(handlers.details(app, entry.id)) for entry in app.every_entry()]
    try:
        app.ready(["gone"])
    except LoraMixerError as error:
        shown += [words_of(error), repr(ui_messages.told(error))]
    for place in (loras, out):
        with suppress(OSError):
            (place / "no such file.txt").read_text()
        shown.append(words_of(PictureError(f"cannot read {place / 'x y.txt'}: it is odd")))
    assert len(app.every_entry()) == 4
    assert [text for text in shown if "smith" in text or str(tmp_path) in text] == []


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


def unlike(count, folder):
    """So many adapters for the demo's model, no two the same."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(demo_adapters()["ink"].path)
    files = [folder / f"{number}.safetensors" for number in range(count)]
    for number, file in enumerate(files):
        save_file({key: (each.float() * (number + 2)).to(each.dtype) for key, each in tensors.items()}, file)
    return files


def test_uploads_of_one_name_at_once_get_names_that_nothing_had(app, tidy, tmp_path):
    """Nor those that the library would number them by: ``same_2`` is what mixes know another by."""
    from lora_mixer.ui.handlers import library as handlers

    first, *files = unlike(7, tmp_path)
    handlers.upload(app, [str(first)], str(tmp_path), "same_2")
    known = app.entry_named("same_2").id
    handlers.rename(app, {"id": known, "name": "renamed"})
    with ThreadPoolExecutor(6) as threads:
        list(threads.map(lambda file: handlers.upload(app, [str(file)], str(tmp_path), "same"), files))
    assert {name for name in app.names() if name.startswith("same")} == {
        "same",
        *(f"same-{n}" for n in range(2, 7)),
    }
    assert app.entry_named("same_2").id == known


def test_a_folder_of_the_name_makes_no_upload_take_another_ones(app, tidy, tmp_path):
    from lora_mixer.ui.handlers import library as handlers

    first, second = unlike(2, tmp_path)
    handlers.upload(app, [str(first)], str(tmp_path), "folded_2")
    known = app.entry_named("folded_2").id
    handlers.rename(app, {"id": known, "name": "unfolded"})
    (app.uploads / "folded").mkdir()
    try:
        assert "folded-2" in handlers.upload(app, [str(second)], str(tmp_path), "folded")[0]
        assert app.entry_named("folded_2").id == known
    finally:
        (app.uploads / "folded").rmdir()


def test_a_name_under_which_a_file_is_being_added_is_given_to_nobody_else(app, tidy, tmp_path):
    from lora_mixer.ui.handlers import library as handlers

    (file,) = unlike(1, tmp_path)
    handlers.upload(app, [str(file)], str(tmp_path), "waits")
    card = {"id": app.entry_named("waits").id, "name": "COMING"}
    with app.new_name("coming") as name:
        assert name == "coming"
        with pytest.raises(PictureError, match="being added under the name COMING"):
            handlers.rename(app, card)
        with app.new_name("Coming") as other:
            assert other == "Coming-2"
    assert handlers.rename(app, card)["title"] == "COMING"


def test_who_puts_an_adapter_into_the_trash_is_told_whom_its_name_means_now(app, tidy, tmp_path):
    from lora_mixer.ui.handlers import library as handlers

    for folder, file in zip(("one", "two"), unlike(2, tmp_path), strict=True):
        (app.uploads / folder).mkdir(exist_ok=True)
        (app.uploads / folder / "heirloom.safetensors").write_bytes(file.read_bytes())
    app.scan(wait=20)
    gone = handlers.to_trash(app, app.entry_named("heirloom").id)
    assert (gone["title"], gone["heir"]) == ("heirloom", "adapters/two")
    assert handlers.to_trash(app, app.entry_named("heirloom").id)["heir"] == ""


def test_a_mix_is_saved_over_no_other_that_comes_at_the_same_time(app):
    from lora_mixer.ui.handlers import mix as handlers

    def save(weight):
        rows = {"rows": [{"name": "ink", "unet": weight / 16}]}
        return handlers.save(app, "all at once", rows, replacing=False)

    with ThreadPoolExecutor(12) as threads:
        answers = list(threads.map(save, range(1, 13)))
    handlers.delete(app, "all at once")
    assert sum("said" in each for each in answers) == 1
    assert sum("exists" in each for each in answers) == 11
    for name in ("a\0", "\ud800"):
        with pytest.raises(LoraMixerError, match="letters that cannot be written"):
            handlers.save(app, name, {"rows": [{"name": "ink"}]}, replacing=True)


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
