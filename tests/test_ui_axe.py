"""axe-core on every view, in both colours: no violation of WCAG 2.2 AA; and the whole loop with the keyboard alone."""

from __future__ import annotations

import functools
import importlib.util
import os
from pathlib import Path

import pytest

from lora_mixer.picture_metadata import read_picture
from tests.browser import PROMPT, STEPS, Desk

RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22a", "wcag22aa"]
GRADIOS_OWN: dict[str, tuple[str, ...]] = {}
"""Violations by rule that are in Gradio's own components: none at present."""


@functools.cache
def axe():
    """axe-core, as the package brings it along; CI has it, elsewhere tests skip when it is missing."""
    found = importlib.util.find_spec("axe_playwright_python")
    if found is None:
        reason = "axe-playwright-python is missing: install the extra 'test'"
        if os.environ.get("CI", "").lower() in ("1", "true"):
            pytest.fail(reason)
        pytest.skip(reason)
    return Path(found.origin).with_name("axe.min.js").read_text(encoding="utf-8")


def violations(desk):
    """What axe finds: rule, element and reason."""
    if not desk.page.evaluate("!!window.axe"):
        desk.page.evaluate(axe())
    found = desk.page.evaluate(
        """rules => axe.run(document, { runOnly: rules }).then(all => all.violations.flatMap(each => each.nodes.map(node =>
            [each.id, node.target.join(" "), [...node.any, ...node.all, ...node.none][0]?.message || ""])))""",
        RULES,
    )
    return [each for each in found if each[1] not in GRADIOS_OWN.get(each[0], ())]


def opened(desk, view):  # noqa: C901 -- a list of views, one after the other
    """Bring a view up."""
    page = desk.page
    if view in ("library", "list", "details", "doubles"):
        desk.tab("Library")
        page.locator("#cards .lm-card").first.wait_for()
        if view == "list":
            page.get_by_role("button", name="As a list").click()
            page.locator(".lm-cardline").first.wait_for()
        if view == "doubles":
            page.get_by_role("button", name="Doubles").click()
            page.locator(".lm-empty, #cards h3").first.wait_for()
        if view == "details":
            page.get_by_label("Details of ink", exact=True).click()
            page.locator(".lm-details").wait_for()
    elif view == "gallery":
        desk.tab("Gallery")
        page.locator(".lm-shot").first.click()
        page.locator("#shot .lm-shotbox").wait_for()
    elif view in ("compare", "export"):
        desk.tab(view.capitalize())
    elif view == "row":
        page.get_by_label("More for ink").click()
        desk.open_share()
    elif view == "start":
        page.get_by_role("button", name="Start from it").click()
        page.locator("#more .lm-startpic").wait_for()
    elif view == "pair":
        page.get_by_role("button", name="Compare", exact=True).click()
        page.locator("#stage .lm-pick").first.click()
        page.locator("#stage .lm-cut").wait_for()
    elif view == "mask":
        page.get_by_label("More for ink").click()
        page.get_by_role("button", name="Paint a mask").click()
        page.locator("dialog.lm-maskdialog").wait_for()
    elif view == "large":
        page.get_by_label("Show it large").click()
        page.locator("dialog.lm-large-view").wait_for()
    elif view == "error":
        page.get_by_label("Steps", exact=True).fill("0")
        page.get_by_label("Steps", exact=True).blur()
        page.locator("#make-button").click()
        page.locator("#stage .lm-error").wait_for()


VIEWS = (
    "make",
    "row",
    "start",
    "pair",
    "mask",
    "large",
    "error",
    "library",
    "list",
    "details",
    "doubles",
    "compare",
    "gallery",
    "export",
)


def all_colours(desk, widths):
    """What axe finds in the view that is up, at each width in light and in dark."""
    found = {}
    for width in widths:
        desk.page.set_viewport_size({"width": width, "height": 900})
        for _ in range(2):
            dark = desk.page.evaluate("document.body.classList.contains('dark')")
            if wrong := violations(desk):
                found[width, "dark" if dark else "light"] = wrong
            desk.page.evaluate("lm.toggleTheme()")
    return found


@pytest.mark.parametrize("widths", [(1024, 1440), (390,)], ids=["wide", "phone"])
def test_axe_finds_nothing_in_any_view(chromium, site, widths):
    # without transitions: colours halfway from light to dark are nobody's
    context = chromium.new_context(viewport={"width": widths[-1], "height": 900}, reduced_motion="reduce")
    desk = Desk(context, site[0])
    desk.page.wait_for_function("document.querySelectorAll('#sampler option').length > 5")
    found = {"first": all_colours(desk, widths)}
    desk.add("ink", "pixel")
    desk.open_mix()
    desk.row("pixel").get_by_role("switch").focus()
    desk.page.keyboard.press("Space")
    desk.page.keyboard.press("Escape")
    desk.fill(PROMPT, count=2)
    desk.make()
    for view in VIEWS:
        desk.tab("Make")
        if view in ("row", "mask"):
            desk.open_mix()
        opened(desk, view)
        found[view] = all_colours(desk, widths)
        desk.page.keyboard.press("Escape")
        desk.page.locator("dialog[open]").first.wait_for(state="detached")
        if view == "pair":
            desk.page.get_by_role("button", name="End comparing").click()
        if view in ("row", "mask"):
            desk.open_mix()
            desk.page.get_by_label("More for ink").click()
            desk.page.keyboard.press("Escape")
    wrong = {view: all_ for view, all_ in found.items() if all_}
    assert not wrong, wrong
    context.close()


def reached(desk, where, key="Tab", most=80):
    """Press a key until the focus is there, as one who has no mouse."""
    for _ in range(most):
        if desk.page.evaluate("where => !!document.activeElement?.closest(where)", where):
            return
        desk.page.keyboard.press(key)
    raise AssertionError(f"{where} is not reached by {key}")


def test_first_picture_mix_mask_and_export_with_the_keyboard_alone(chromium, site, app):  # noqa: PLR0915 -- one visit
    context = chromium.new_context(viewport={"width": 1440, "height": 900})
    desk = Desk(context, site[0])
    keys = desk.page.keyboard
    reached(desk, "#prompt textarea")
    keys.type(PROMPT)
    reached(desk, "#steps input")
    keys.press("Control+a")
    keys.type(str(STEPS))
    keys.press("Control+Enter")
    desk.page.locator("#stage .lm-final").wait_for()

    reached(desk, "#tabs [role=tab]", "Shift+Tab")
    while desk.page.evaluate("document.activeElement.textContent.trim()") != "Library":
        keys.press("ArrowRight") if desk.page.evaluate(
            "document.activeElement.getAttribute('role') === 'tab' && document.activeElement.tabIndex < 0"
        ) else keys.press("Tab")
    keys.press("Enter")
    desk.page.locator("#cards .lm-card").first.wait_for()
    for name in ("ink", "pixel"):
        reached(desk, f"[aria-label='Add {name} to the mix']")
        keys.press("Enter")
        desk.row(name).wait_for()

    reached(desk, "[aria-label='ink: UNet slider']", "Shift+Tab", 200)
    for _ in range(4):
        keys.press("ArrowLeft")
    assert desk.page.get_by_label("ink: UNet", exact=True).input_value() == "0.8"
    reached(desk, "[aria-label='More for ink']")
    keys.press("Enter")
    reached(desk, "#board fieldset:nth-of-type(3) button")
    keys.press("Enter")
    desk.page.locator("dialog.lm-maskdialog").wait_for()
    reached(desk, "[aria-label='ink: left half']")
    keys.press("Enter")
    reached(desk, "dialog .lm-main")
    keys.press("Enter")
    desk.row("ink").get_by_text("painted").wait_for()

    reached(desk, "#tabs [role=tab]", most=200)
    while desk.page.evaluate("document.activeElement.textContent.trim()") != "Make":
        keys.press("Shift+Tab")
    keys.press("Enter")
    before = desk.page.evaluate("lm.store.get('strip').length")
    keys.press("Control+Enter")
    desk.page.wait_for_function("before => lm.store.get('strip').length > before", arg=before)
    made = read_picture(desk.fetch(f"pictures/{desk.page.evaluate('lm.store.get(`strip`).at(-1).id')}.png"))
    assert made.mix.names == ("ink", "pixel")
    assert made.mix["ink"].weight == 0.8
    assert made.mix["ink"].mask is not None

    reached(desk, "#board fieldset:nth-of-type(3) button", "Shift+Tab", 200)  # no LoRA file can hold a mask
    while desk.page.evaluate("document.activeElement.textContent.trim()") != "Remove mask":
        keys.press("Shift+Tab")
    keys.press("Enter")
    desk.row("ink").get_by_text("Works everywhere.").wait_for()
    reached(desk, "#tabs [role=tab]", most=200)
    while desk.page.evaluate("document.activeElement.textContent.trim()") != "Export":
        keys.press("Tab")
    keys.press("Enter")
    reached(desk, "#export-name input, #export-name textarea")
    keys.press("Control+a")
    keys.type("by keys alone")
    keys.press("Control+Enter")
    desk.page.locator("#export-verdict").get_by_text("Exact").wait_for()
    assert (app.exports / "by keys alone.safetensors").is_file()
    context.close()
