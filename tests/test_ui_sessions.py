"""Several people at once, and a server that is killed."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

from benchmarks.ui_sessions import MIXES, compare
from lora_mixer import Mix
from lora_mixer.ui import AppState, ServerOptions
from tests.browser import STEPS, Desk


def test_eight_people_with_different_mixes_who_all_reload_get_what_each_would_get_alone(site, chromium):
    url, app = site
    contexts = [chromium.new_context() for _ in MIXES]

    equal, made = compare(
        [Desk(context, url) for context in contexts], app, MIXES, pictures=2, steps=STEPS, reload=True
    )

    assert (equal, made) == (16, 16)
    for context in contexts:
        context.close()


def test_one_session_cannot_stop_another(site, chromium):
    url, _ = site
    contexts = [chromium.new_context() for _ in range(2)]
    one, other = (Desk(context, url) for context in contexts)
    one.fill("a castle", steps=500)  # it is at work until its own Stop ends it, however slow the machine
    other.fill("a rose")
    one.page.locator("#make-button").click()
    one.page.locator("#stage .lm-preview").wait_for()
    other.page.evaluate(  # which it has to press in spite of the page: nothing of its own is under way
        "() => { const stop = document.querySelector('#stop-button'); stop.disabled = false; stop.click(); }"
    )
    other.page.locator("#make-button").click()
    other.page.locator("#stage").get_by_text("Waiting: 1 ahead of you").wait_for()
    status = "document.querySelector('#stage .lm-status').innerText"
    step = one.page.evaluate(status)
    one.page.wait_for_function(f"step => {status} !== step && {status}.includes('step')", arg=step)
    one.page.locator("#stop-button").click()
    one.state("stopped").wait_for()
    other.state("done").wait_for()
    for context in contexts:
        context.close()


@contextmanager
def server(folder, port=0):
    """The page as people start it: its address, and what it said by then."""
    command = [sys.executable, "-m", "lora_mixer", "ui", "--port", str(port), "--out", str(folder / "out")]
    environment = {
        **os.environ,
        "GRADIO_TEMP_DIR": str(folder / "cache"),
        "GRADIO_ANALYTICS_ENABLED": "False",
        "PYTHONPATH": str(Path(__file__).resolve().parent.parent),
    }
    with (folder / "log").open("w") as log:
        running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment)
    said = []
    try:
        for line in running.stdout:
            said.append(line.strip())
            if found := re.search(r"(http://127\.0\.0\.1:\d+)", line):
                break
        else:
            raise AssertionError((folder / "log").read_text())
        yield found[1], said
    finally:
        running.send_signal(signal.SIGKILL)
        running.wait()
        running.stdout.close()


def test_a_killed_server_loses_nothing_that_was_shown_as_kept(chromium, tmp_path):
    context = chromium.new_context()
    with server(tmp_path) as (url, said):
        assert "getting ready" in said[0]
        assert [words for words in said if "loading the model demo" in words or "adapters are there" in words]
        desk = Desk(context, url)
        desk.page.on("dialog", lambda dialog: dialog.accept())  # it asks before one leaves its work
        desk.add("ink", "pixel")
        desk.row("pixel").get_by_role("switch").focus()
        desk.page.keyboard.press("Space")
        desk.weight("ink", 0.7)
        desk.page.get_by_text("Save and share").click()
        desk.page.locator("#mix-name input, #mix-name textarea").fill("kept")
        desk.page.locator("#mix-save").click()
        desk.page.wait_for_function("document.querySelector('#mix-saved input').value === 'kept'")
        desk.fill("a castle", seed=12)
        made = desk.make()
        shown = desk.shown()
        desk.fill("a rose", seed=13, steps=200)
        desk.page.locator("#make-button").click()
        desk.page.locator("#stage .lm-preview").wait_for()

    again = AppState(ServerOptions(out=tmp_path / "out"))
    assert again.mixes.load("kept") == Mix.of("ink:0.7")
    (path,) = again.pictures.glob("*.png")
    assert path.read_bytes() == made
    assert [path.name for path in again.pictures.iterdir()] == [path.name]

    with server(tmp_path, url.rpartition(":")[2]) as (url, _):  # the same page, at the same address
        desk.page.goto(url)
        desk.page.locator("#board h2").wait_for()
        desk.row("pixel").wait_for(state="attached")
        assert desk.page.get_by_label("ink: UNet", exact=True).input_value() == "0.7"
        assert not desk.row("pixel").get_by_role("switch").is_checked()
        desk.page.wait_for_function("lm.fields.get('prompt') === 'a rose' && lm.fields.get('seed') === '13'")
        desk.page.locator("#stage .lm-final").wait_for()
        assert desk.shown() == shown
        assert desk.fetch(shown) == made
        desk.open_share()
        desk.page.get_by_label("Load the mix kept").wait_for()
    context.close()


def test_a_port_that_is_taken_is_said_before_anything_is_loaded(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        command = [
            sys.executable,
            "-X",
            "importtime",
            "-m",
            "lora_mixer",
            "ui",
            "--port",
            str(port),
            "--out",
            str(tmp_path),
        ]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode != 0
    assert f"port {port} of 127.0.0.1 cannot be had" in found.stderr + found.stdout
    assert not re.search(r"\|\s+(torch|gradio|diffusers)$", found.stderr, re.MULTILINE)
    assert "Traceback" not in found.stderr
