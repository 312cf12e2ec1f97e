"""The page in a real browser, on the demo pipeline: weights moved, pictures made, stopped, on a phone."""

from __future__ import annotations

from lora_mixer import Mix
from lora_mixer.picture_metadata import read_picture
from tests.browser import PROMPT, Desk, alone, pixels


def test_a_mix_changes_the_picture_and_all_off_is_the_base_to_the_byte(desk, app):
    desk.fill(PROMPT)
    base = desk.make()
    assert pixels(base) == alone(app, {})

    desk.add("ink", "halftone")
    desk.weight("halftone", 0.4)
    mixed = desk.make()
    assert pixels(mixed) == alone(app, {"ink": 1, "halftone": 0.4})
    assert pixels(mixed) != pixels(base)
    assert read_picture(mixed).mix == Mix.of("ink:1, halftone:0.4")

    loads = app.loads
    desk.weight("ink", 0.3)
    desk.page.get_by_label("More for ink").click()
    desk.weight("ink", 0.1, "Text")
    assert pixels(desk.make()) == alone(
        app, {"ink": {"weight": 0.3, "components": {"te": 0.1}}, "halftone": 0.4}
    )
    assert app.loads == loads  # a weight moved: nothing is loaded again

    desk.page.get_by_label("Switch all off or on").click()
    assert desk.make() == base


def test_stop_ends_within_a_step_and_the_next_picture_is_right(desk, app):
    desk.fill(PROMPT, steps=200)
    desk.page.locator("#make-button").click()
    desk.page.locator("#stage .lm-preview").wait_for()
    desk.page.locator("#stop-button").click()
    desk.state("stopped").wait_for()
    assert len(app.queue) == 0

    desk.fill(PROMPT)
    assert pixels(desk.make()) == alone(app, {})


def test_the_page_fits_a_phone_and_works_by_keyboard(chromium, site):
    url, _ = site
    context = chromium.new_context(viewport={"width": 390, "height": 844}, color_scheme="dark")
    desk = Desk(context, url)
    desk.add("ink")
    for name in ("Make", "Library", "Compare", "Gallery", "Export"):
        desk.tab(name)
        assert desk.page.evaluate("document.documentElement.scrollWidth") <= 390, name
    assert "dark" in desk.page.locator("body").get_attribute("class")
    desk.tab("Make")
    desk.fill(PROMPT)
    before = desk.shown()
    desk.page.get_by_label("Prompt", exact=True).press("Control+Enter")
    desk.state("done").wait_for()
    assert desk.shown() != before
    desk.row("ink").get_by_role("switch").focus()
    desk.page.keyboard.press("Space")
    assert desk.row("ink").get_by_role("switch").is_checked() is False
    context.close()


def test_errors_say_what_to_do(desk):
    desk.fill("a castle <lora:unknown-style:1>")
    desk.page.locator("#make-button").click()
    desk.state("error").wait_for()
    assert "unknown-style" in desk.page.get_by_role("alert").first.inner_text()


def test_a_seed_is_kept_or_drawn_anew(desk):
    desk.fill(PROMPT, seed=5)
    lock = desk.page.get_by_label("Keep this seed")
    seeds = [read_picture(desk.make()).seed for _ in range(2)]
    lock.uncheck()
    seeds += [read_picture(desk.make()).seed for _ in range(2)]
    assert seeds[:2] == [5, 5]
    assert len(set(seeds)) == 3
    assert desk.page.get_by_label("Seed", exact=True).input_value() == str(seeds[-1])
