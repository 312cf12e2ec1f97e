"""Several people at once, programs beside them, and a server that is killed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.ui_sessions import MIXES, compare
from lora_mixer import Mix
from lora_mixer.recall import read_picture
from tests.browser import STEPS, Desk, browser, serving


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("out"), tmp_path_factory.mktemp("cache")) as (url, studio):
        yield url, studio


@pytest.fixture
def chromium(site):
    playwright, chromium = browser()
    yield chromium
    chromium.close()
    playwright.stop()


def test_people_with_different_mixes_at_once_get_what_each_would_get_alone(site, chromium):
    url, studio = site
    desks = [Desk(chromium.new_context(), url) for _ in range(3)]

    equal, made = compare(desks, studio, MIXES[:3], pictures=2, steps=STEPS)

    assert (equal, made) == (6, 6)


def test_one_session_cannot_stop_another(site, chromium):
    url, _ = site
    one, other = (Desk(chromium.new_context(), url) for _ in range(2))
    one.fill("a castle", steps=60)
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


def test_the_api_makes_pictures_for_programs(site):
    """The example of docs/ui.md."""
    from gradio_client import Client

    url, studio = site
    client = Client(url, verbose=False)
    found = client.predict("ink", "", "Name", 0, api_name="/adapters")
    assert [entry["name"] for entry in found["entries"]] == ["ink"]
    (made,) = client.predict(
        "a castle, ink sketch", "ink:0.8", 7, STEPS, 3.0, 128, 128, "", 1, api_name="/make"
    )
    assert (made["seed"], made["mix"]) == (7, "ink:0.8")
    settings = read_picture(studio.pictures / f"{made['id']}.png")
    assert (settings.seed, settings.mix) == (7, Mix.of("ink:0.8"))
    assert client.predict(made["id"], api_name="/picture")["prompt"] == "a castle, ink sketch"
    assert settings.adapters[0].hashes


def test_a_killed_server_loses_no_saved_mix_and_no_finished_picture(tmp_path):
    command = [sys.executable, "-m", "lora_mixer", "ui", "--port", "0", "--out", str(tmp_path / "out")]
    environment = {
        **os.environ,
        "GRADIO_TEMP_DIR": str(tmp_path / "cache"),
        "GRADIO_ANALYTICS_ENABLED": "False",
        "PYTHONPATH": str(Path(__file__).resolve().parent.parent),
    }
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment)
    playwright = None
    try:
        url = next(
            (found[1] for line in server.stdout if (found := re.search(r"(http://127\.0\.0\.1:\d+)", line))),
            None,
        )
        assert url, (tmp_path / "log").read_text()
        playwright, chromium = browser()
        desk = Desk(chromium.new_context(), url)
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
        chromium.close()
    finally:
        server.send_signal(signal.SIGKILL)
        server.wait()
        server.stdout.close()
        if playwright is not None:
            playwright.stop()

    with serving(tmp_path / "out", tmp_path / "cache") as (_, studio):
        assert studio.mixes.load("kept") == Mix.of("ink:1")
        (path,) = studio.pictures.glob("*.png")
        assert path.read_bytes() == made
        assert [path.name for path in studio.pictures.iterdir()] == [path.name]
