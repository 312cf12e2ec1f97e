"""Several people at once, and a server that is killed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from benchmarks.ui_sessions import MIXES, compare
from lora_mixer import Mix
from lora_mixer.ui import AppState, ServerOptions
from tests.browser import STEPS, Desk


def test_people_with_different_mixes_at_once_get_what_each_would_get_alone(site, chromium):
    url, app = site
    contexts = [chromium.new_context() for _ in range(3)]

    equal, made = compare(
        [Desk(context, url) for context in contexts], app, MIXES[:3], pictures=2, steps=STEPS
    )

    assert (equal, made) == (6, 6)
    for context in contexts:
        context.close()


def test_one_session_cannot_stop_another(site, chromium):
    url, _ = site
    contexts = [chromium.new_context() for _ in range(2)]
    one, other = (Desk(context, url) for context in contexts)
    one.fill("a castle", steps=40)
    other.fill(
        "a rose"
    )  # now, so that the first is still at work when the second asks, however slow the machine
    one.page.locator("#make-button").click()
    one.page.locator("#stage .lm-preview").wait_for()
    other.page.locator("#stop-button").click()
    other.page.locator("#make-button").click()
    other.page.locator("#stage").get_by_text("Waiting: 1 ahead of you").wait_for()
    one.state("done").wait_for()
    other.state("done").wait_for()
    for context in contexts:
        context.close()


def test_a_killed_server_loses_no_saved_mix_and_no_finished_picture(chromium, tmp_path):
    command = [sys.executable, "-m", "lora_mixer", "ui", "--port", "0", "--out", str(tmp_path / "out")]
    environment = {
        **os.environ,
        "GRADIO_TEMP_DIR": str(tmp_path / "cache"),
        "GRADIO_ANALYTICS_ENABLED": "False",
        "PYTHONPATH": str(Path(__file__).resolve().parent.parent),
    }
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment)
    context = chromium.new_context()
    try:
        url = next(
            (found[1] for line in server.stdout if (found := re.search(r"(http://127\.0\.0\.1:\d+)", line))),
            None,
        )
        assert url, (tmp_path / "log").read_text()
        desk = Desk(context, url)
        desk.add("ink")
        desk.page.get_by_text("Save and share").click()
        desk.page.locator("#mix-name input, #mix-name textarea").fill("kept")
        desk.page.locator("#mix-save").click()
        desk.page.wait_for_function("document.querySelector('#mix-saved input').value === 'kept'")
        desk.fill("a castle")
        made = desk.make()
        desk.fill("a castle", steps=200)
        desk.page.locator("#make-button").click()
        desk.page.locator("#stage .lm-preview").wait_for()
    finally:
        server.send_signal(signal.SIGKILL)
        server.wait()
        server.stdout.close()
        context.close()

    again = AppState(ServerOptions(out=tmp_path / "out"))
    assert again.mixes.load("kept") == Mix.of("ink:1")
    (path,) = again.pictures.glob("*.png")
    assert path.read_bytes() == made
    assert [path.name for path in again.pictures.iterdir()] == [path.name]
