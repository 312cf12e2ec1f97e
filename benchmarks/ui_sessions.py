"""
Browser sessions with different mixes at once: each picture must be, to the byte, the one made alone.

    python -m benchmarks.ui_sessions --sessions 8 --pictures 5 --steps 6
"""

from __future__ import annotations

import argparse
import io
import os
import tempfile
import time
from typing import Any

MIXES = (
    "ink:1",
    "neon:0.7, ink:0.3",
    "watercolor:0.8,te=0.2",
    "halftone:1",
    "pixel:0.9, lumo:0.5",
    "blueprint:1,schedule=linear(0, 1)",
    "lumo:1",
    "",
)
PROMPT = "a castle"


def compare(
    desks: list[Any], app: Any, mixes: Any, pictures: int, steps: int, *, reload: bool = False
) -> tuple[int, int]:
    """
    Press Make in all sessions at once, then make each picture alone; gives how many are equal, and how many there are.

    With ``reload`` each page is loaded again while its pictures are made.
    """
    for number, (desk, mix) in enumerate(zip(desks, mixes, strict=True)):
        if mix:
            desk.page.get_by_text("Save and share").click()
            desk.page.locator("#mix-text textarea").fill(mix)
            desk.page.locator("#mix-apply").click()
            desk.page.locator("#board .lm-row").first.wait_for()
        desk.fill(PROMPT, seed=100 * number, steps=steps, count=pictures)
    for desk in desks:
        desk.page.locator("#make-button").click()
    for desk in desks if reload else ():
        desk.page.on("dialog", lambda dialog: dialog.accept())  # it asks before one leaves
        # on a busy machine the last may be finished before the first are loaded again
        desk.page.wait_for_function("lm.busy || (lm.store.get('strip') || []).length > 0")
        desk.page.reload()
        desk.page.locator("#board h2").wait_for()
    found = []
    for desk in desks:
        desk.state("done").wait_for(timeout=1_800_000)
        if pictures > 1:
            picks = desk.page.locator(".lm-pick")
            links = []
            for at in range(pictures):
                picks.nth(at).click()
                links.append(desk.page.locator("#stage .lm-final").get_attribute("src"))
        else:
            links = [desk.shown()]
        found.append([desk.fetch(link) for link in links])
    from PIL import Image

    from lora_mixer import PictureRequest

    equal = 0
    for number, (mix, files) in enumerate(zip(mixes, found, strict=True)):
        for at, data in enumerate(files):
            request = PictureRequest(
                PROMPT, seed=100 * number + at, steps=steps, guidance_scale=app.defaults["guidance_scale"],
                width=app.size[0], height=app.size[1], mix=mix,
            )  # fmt: skip
            app.ready(request.mix.names)
            (alone,) = app.maker.make([request])
            with Image.open(io.BytesIO(data)) as shown:
                equal += shown.convert("RGB").tobytes() == alone.image.tobytes()
    return equal, sum(map(len, found))


def first_preview(desk: Any) -> float:
    """Give the seconds from the click on Make to the first preview, as the page sees them; the picture is stopped then."""
    desk.fill(PROMPT, steps=20)
    seconds: float = desk.page.evaluate(
        """() => new Promise(done => {
            const start = performance.now();
            const look = new MutationObserver(() => {
                if (!document.querySelector("#stage .lm-preview")) return;
                look.disconnect();
                done((performance.now() - start) / 1000);
            });
            look.observe(document.querySelector("#stage"), { childList: true, subtree: true });
            document.querySelector("#make-button").click();
        })"""
    )
    desk.page.locator("#stop-button").click()
    desk.state("stopped").wait_for()
    return seconds


def main() -> None:
    """Serve the demo, open the sessions, compare, print."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--sessions", type=int, default=8)
    options.add_argument("--pictures", type=int, default=5)
    options.add_argument("--steps", type=int, default=6)
    options.add_argument("--preview", action="store_true", help="time the first preview, too")
    given = options.parse_args()
    from tests.browser import Desk, browser, serving

    with (
        tempfile.TemporaryDirectory() as folder,
        serving(f"{folder}/out", f"{folder}/cache") as (url, app),
    ):
        playwright, chromium = browser()
        if given.preview:
            desk = Desk(chromium.new_context(), url)
            desk.add("ink", "neon")
            seconds = [first_preview(desk) for _ in range(5)]
            print(
                f"click to first preview: {seconds[0]:.2f} s the first time, with two adapters new in the mix; then "
                + ", ".join(f"{each:.2f}" for each in seconds[1:])
            )
        start = time.perf_counter()
        desks = [Desk(chromium.new_context(), url) for _ in range(given.sessions)]
        mixes = [MIXES[number % len(MIXES)] for number in range(given.sessions)]
        equal, made = compare(desks, app, mixes, given.pictures, given.steps)
        print(
            f"{given.sessions} browser sessions with different mixes at once, {given.pictures} pictures each at "
            f"{given.steps} steps: {equal} of {made} equal to the byte to those made alone "
            f"({time.perf_counter() - start:.0f} s, {os.cpu_count()} cores)"
        )
        chromium.close()
        playwright.stop()


if __name__ == "__main__":
    main()
