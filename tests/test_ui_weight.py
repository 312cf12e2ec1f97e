"""What a first visit costs, and how many clicks things take, with 2,000 adapters in the library."""

from __future__ import annotations

import shutil

import pytest

from lora_mixer.library import Library
from tests.browser import PROMPT, serving
from tests.loras import write_lora

MANY = 2000


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A page with 2,000 adapters."""
    top = tmp_path_factory.mktemp("many")
    write_lora(top / "loras" / "style 0000.safetensors", seed=1)
    for number in range(1, MANY):
        shutil.copyfile(
            top / "loras" / "style 0000.safetensors", top / "loras" / f"style {number:04}.safetensors"
        )
    (top / "out").mkdir()
    Library([top / "out" / "adapters", top / "loras"], index=top / "out" / "library.sqlite").refresh()
    with serving(top / "out", top / "cache", loras=(top / "loras",)) as served:
        yield served


def test_a_first_visit_asks_for_no_card_and_the_pages_own_part_is_small(large, chromium):
    url, app = large
    assert app.library.search().total == MANY
    context = chromium.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    session = context.new_cdp_session(page)
    session.send("Network.enable")
    sizes, urls = {}, {}
    session.on(
        "Network.responseReceived", lambda event: urls.update({event["requestId"]: event["response"]["url"]})
    )
    session.on(
        "Network.loadingFinished",
        lambda event: sizes.update({event["requestId"]: event["encodedDataLength"]}),
    )
    page.goto(url)
    page.locator("#board h2").wait_for()
    page.wait_for_function("document.querySelectorAll('#sampler option').length > 5")
    page.wait_for_timeout(1500)
    own = {
        at: size
        for key, size in sizes.items()
        if "/assets/" not in (at := urls.get(key, "")) and "/static/" not in at
    }
    assert page.locator(".lm-card").count() == 0
    assert (
        sum(own.values()) < 90_000
    )  # with the styles of Gradio's components, which came by thirty requests before
    assert sum(sizes.values()) < 300_000
    asked = [at for at in urls.values() if not at.startswith("data:")]
    assert len(asked) <= 45, asked
    assert not [at for at in asked if ".css" in at and "/theme.css" not in at]
    assert "style 1999" not in page.content()
    context.close()


def clicks(page):
    """Count the clicks of a person from now on."""
    page.evaluate(
        """() => {
            if (window.clicked === undefined) addEventListener("click", event => { if (event.isTrusted) window.clicked++; }, true);
            window.clicked = 0;
        }"""
    )


def test_a_mix_of_two_takes_four_clicks_saving_one_opening_two_and_comparing_two(desk):
    page = desk.page
    desk.fill(PROMPT, count=2)
    desk.make()
    clicks(page)
    page.get_by_role("tab", name="Library").click()
    for name in ("ink", "pixel"):
        page.get_by_role("button", name=f"Add {name} to the mix").click()
        desk.row(name).wait_for()
    assert page.evaluate("window.clicked") == 3

    clicks(page)
    page.get_by_label("Save this mix").click()
    assert "Saved as ink + pixel" in desk.toast()
    assert page.evaluate("window.clicked") == 1
    page.get_by_label("Remove ink").click()

    clicks(page)
    page.get_by_text("Save and share").click()
    page.get_by_label("Load the mix ink + pixel").first.click()
    desk.row("ink").wait_for()
    assert page.evaluate("window.clicked") == 2

    desk.tab("Make")
    clicks(page)
    page.get_by_role("button", name="Compare", exact=True).click()
    page.locator("#stage .lm-pick").first.click()
    page.locator("#stage .lm-cut").wait_for()
    assert page.evaluate("window.clicked") == 2
