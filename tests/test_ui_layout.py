"""What stands where: the mix and the picture are seen, at every width, in both colours."""

from __future__ import annotations

import pytest

from tests.browser import PROMPT, STEPS, Desk, slowed
from tests.loras import write_lora

SIZES = {"desktop": (1440, 900), "tablet": (1024, 768), "phone": (390, 844)}
EIGHT = ("ink", "pixel", "halftone", "neon", "lumo", "watercolor", "blueprint")


def box(desk, where):
    return desk.page.locator(where).first.evaluate("node => node.getBoundingClientRect().toJSON()")


@pytest.mark.parametrize(
    "size",
    [
        pytest.param(each, id=name, marks=pytest.mark.slowed if name == "phone" else ())
        for name, each in SIZES.items()
    ],
)
def test_the_picture_is_on_the_screen_when_it_is_made(desk, size):
    desk.page.set_viewport_size({"width": size[0], "height": size[1]})
    desk.fill(PROMPT, steps=STEPS)
    desk.page.evaluate("scrollTo(0, 0)")
    assert desk.page.locator("#make-button").evaluate(
        "node => { const box = node.getBoundingClientRect(); return box.top >= 0 && box.bottom <= innerHeight; }"
    )
    desk.page.locator("#make-button").click()
    desk.page.locator("#stage .lm-final").wait_for()
    desk.page.evaluate("lm.stripAdd({ ...lm.store.get('strip')[0], id: 'another' })")  # two have a strip
    desk.page.evaluate("scrollTo(0, 0)")
    picture = box(desk, "#stage .lm-final")
    assert picture["top"] >= 0
    assert picture["bottom"] <= size[1]
    assert picture["width"] >= 200
    if size[0] > 900:  # and the words that it was made of, above the button
        bar = box(desk, "#make-bar")
        assert box(desk, "#prompt textarea")["bottom"] <= (bar["top"] if size[0] < 1181 else size[1])


def test_what_is_marked_slowed_is_far_away(desk):
    away = "async () => { const start = performance.now(); await fetch('/?' + start); return performance.now() - start; }"
    with slowed(desk):
        assert desk.page.evaluate(away) >= 199  # milliseconds there and back; clocks of browsers are coarse


def test_seven_rows_and_the_picture_are_seen_at_once(desk):
    desk.add(*EIGHT)
    desk.page.evaluate("scrollTo(0, 0)")
    rows = desk.page.locator("#board .lm-row").evaluate_all(
        "all => all.map(one => one.getBoundingClientRect().toJSON())"
    )
    assert len(rows) == len(EIGHT)
    assert all(row["height"] <= 60 for row in rows)
    assert rows[-1]["bottom"] < 900
    assert 8 * (rows[1]["top"] - rows[0]["top"]) < 900 - rows[0]["top"]  # an eighth has its place, too


@pytest.mark.slowed
def test_the_mix_stays_in_sight_in_a_long_library(desk, app, tidy):
    for number in range(24):
        write_lora(app.uploads / f"style {number:02}.safetensors", seed=number)
    app.scan(wait=60)
    desk.tab("Library")
    desk.page.locator("#cards .lm-card").nth(23).wait_for()
    desk.page.evaluate("scrollTo(0, document.documentElement.scrollHeight)")
    desk.page.wait_for_function("scrollY > 300")
    place = box(desk, "#board")
    assert 0 <= place["top"] < 200


# Of each control that is seen: its name, and how far to the sides and up and down of its middle a tap reaches it (pseudo-elements,
# paddings and labels count: what lies under the finger is asked for). What something else lies over cannot be tapped and is left out.
TARGETS = """where => {
    const what = "button, input:not([type=hidden]), select, textarea, summary, a[href], [role=switch], [role=tab], [role=button], [role=slider], [role=option], [role=checkbox], [role=radio]";
    const named = e => (e.ariaLabel || e.labels?.[0]?.innerText || e.innerText || e.placeholder || e.title || e.className).trim().slice(0, 40);
    const found = [];
    for (const e of document.querySelectorAll(where.split(",").map(one => `${one} :is(${what})`).join(","))) {
        if (!e.checkVisibility({ visibilityProperty: true })) continue;
        e.scrollIntoView({ block: "center", inline: "center", behavior: "instant" });
        const own = e.labels?.[0]?.contains(e) && /checkbox|radio|file/.test(e.type) ? e.labels[0] : e;
        const box = own.getBoundingClientRect(), x = box.x + box.width / 2, y = box.y + box.height / 2;
        if (box.width < 3 || box.height < 3) continue; // a field behind its button, which the system's dialogs are for
        const mine = (x, y) => { const at = document.elementFromPoint(x, y); return at !== null && own.contains(at); };
        const reach = (dx, dy) => { let far = 0; while (far < 44 && mine(x + dx * (far + 1), y + dy * (far + 1))) far += 1; return far; };
        if (mine(x, y)) found.push([named(e), reach(-1, 0) + reach(1, 0) + 1, reach(0, -1) + reach(0, 1) + 1]);
    }
    return found;
}"""


def targets(desk, *expected, where="body"):
    """What can be tapped is 44 px wide and high, and what is expected is among it."""
    desk.page.wait_for_function("!document.getAnimations().some(one => one.playState === 'running')")
    found = desk.page.evaluate(TARGETS, where)
    assert {name for name in expected if name not in {name for name, _, _ in found}} == set()
    assert [each for each in found if each[1] < 44 or each[2] < 44] == []


def test_whatever_one_taps_on_a_phone_is_44_px_wide_and_high(chromium, site):
    context = chromium.new_context(viewport={"width": 390, "height": 844}, has_touch=True)
    desk = Desk(context, site[0])
    page = desk.page
    targets(desk, "Earlier prompts", "Seed", "Keep this seed", "Steps", "Theme: dark or light", "octopus")
    desk.tab("Library")
    for name in ("ink", "pixel"):
        page.get_by_role("button", name=f"Add {name} to the mix").click()
        desk.row(name).wait_for(state="attached")
    page.evaluate("document.querySelectorAll('.lm-note-box').forEach(node => node.remove())")
    targets(desk, "Add adapters", "Search", "Add ink to the mix", "Favourite ink")
    page.get_by_role("button", name="As a list").click()
    page.locator(".lm-cardline").first.wait_for()
    targets(desk, "Details of ink", "Add ink to the mix", "Favourite ink")
    page.get_by_role("button", name="Details of ink", exact=True).click()
    page.locator(".lm-details").wait_for()
    page.evaluate("document.querySelectorAll('.lm-details details').forEach(node => { node.open = true; })")
    targets(desk, "Close details", "Default weight", "Blur its preview", where="#details")
    page.keyboard.press("Escape")
    page.get_by_role("button", name="As a list").click()
    desk.tab("Make")
    desk.open_mix()
    desk.open_share()
    of_row = ("Move ink", "ink on", "+ ink sketch", "Remove ink", "ink: UNet", "ink: UNet slider")
    targets(
        desk,
        *of_row,
        "Close the mix",
        "Save and share",
        "Random from",
        where="#board, .lm-phonebar, #make-bar",
    )
    page.get_by_label("More for ink").click()
    page.get_by_label("ink: blocks", exact=True).select_option(index=1)
    desk.weight("ink", 0.4, "Text")
    targets(desk, "ink: Text", "Move ink down", "+ ink sketch", "ink: schedule", where="#board")
    page.get_by_label("More for ink").click()
    targets(desk, "ink: Text", "ink: UNet", where="#board")
    heads = (
        page.locator("#board .lm-panel-head")
        .first.locator("button")
        .evaluate_all("all => all.map(one => one.getBoundingClientRect().top)")
    )
    assert len(set(heads)) == 1  # in one line, however large
    page.locator(".lm-sheetclose").click()
    desk.fill(PROMPT, count=2)
    desk.make()
    targets(desk, "Start from it", "Compare")
    page.get_by_label("Earlier prompts").first.click()
    targets(desk, "Close", where="dialog[open]")
    page.keyboard.press("Escape")
    desk.tab("Compare")
    targets(desk, "Compare", "Each alone", "Values")
    desk.tab("Export")
    targets(desk, "Smaller files, more finely")
    desk.tab("Gallery")
    page.locator(".lm-shot").first.click()
    page.locator(".lm-shotbox").wait_for()
    targets(desk, "Use these settings", "Delete")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert not desk.errors
    context.close()


def test_on_a_phone_the_mix_is_a_sheet_and_what_one_taps_is_large_enough(chromium, site):
    context = chromium.new_context(viewport={"width": 390, "height": 844}, has_touch=True)
    desk = Desk(context, site[0])
    desk.add("ink")
    assert box(desk, "#board")["top"] >= 844  # out of sight
    desk.page.get_by_role("button", name="Mix · 1").click()
    desk.page.wait_for_function(
        "document.querySelector('#board').getBoundingClientRect().bottom <= innerHeight"
    )
    for where in (
        "#make-button",
        ".lm-mixbutton",
        "#board .lm-row .lm-icon",
        "#board .lm-number",
        "#tabs [role=tab]",
    ):
        assert box(desk, where)["height"] >= 44, where
    desk.page.keyboard.press("Escape")
    desk.page.wait_for_function("document.querySelector('#board').getBoundingClientRect().top >= innerHeight")
    assert desk.page.evaluate("document.documentElement.scrollWidth") <= 390
    context.close()


def test_a_large_picture_fits_its_window_at_every_width(desk):
    desk.fill(PROMPT, count=2)
    desk.make()
    for width, height in SIZES.values():
        desk.page.set_viewport_size({"width": width, "height": height})
        desk.page.locator("#stage .lm-final").first.click()
        desk.page.locator("dialog[open] img").first.wait_for()
        wide, seen = desk.page.locator("dialog[open]").evaluate(
            "node => [node.scrollWidth, node.clientWidth]"
        )
        assert wide <= seen, width
        desk.page.keyboard.press("Escape")


@pytest.mark.slowed
def test_details_are_a_drawer_and_leave_the_library_where_it_is(desk):
    desk.tab("Library")
    desk.page.locator("#cards .lm-card").first.wait_for()
    before = box(desk, "#cards")["top"]
    desk.page.get_by_role("button", name="Show details of ink").click()
    desk.page.locator(".lm-details").wait_for()
    assert box(desk, "#cards")["top"] == before
    notes, hashes = (
        desk.page.locator(".lm-details").get_by_text(each).bounding_box()["y"]
        for each in ("Your notes", "Hashes")
    )
    assert notes < hashes
    assert not desk.page.locator(".lm-details").get_by_text("sha256").is_visible()
    desk.page.keyboard.press("Escape")
    desk.page.locator(".lm-details").wait_for(state="detached")


# what WCAG calls contrast, as CSS colours give it
CONTRAST = """node => {
    const light = text => { const [r, g, b] = text.match(/[0-9.]+/g).map(Number).map(v => { v /= 255; return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; }); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
    let opacity = 1, back = null;
    for (let at = node; at; at = at.parentElement) {
        const style = getComputedStyle(at);
        opacity *= Number(style.opacity);
        if (!back && !/rgba\\(.*, 0\\)|transparent/.test(style.backgroundColor)) back = style.backgroundColor;
    }
    const [a, b] = [light(getComputedStyle(node).color), light(back)].sort((x, y) => y - x);
    return opacity < 1 ? 1 : (a + 0.05) / (b + 0.05);
}"""


@pytest.mark.parametrize("colours", ["light", "dark"])
def test_rows_that_are_off_can_be_read(desk, colours):
    if desk.page.evaluate("document.body.classList.contains('dark')") != (colours == "dark"):
        desk.page.evaluate("lm.toggleTheme()")
    desk.add("ink")
    desk.page.get_by_label("More for ink").click()
    desk.weight("ink", 0.3, "Text")
    desk.page.get_by_label("More for ink").click()
    desk.row("ink").get_by_role("switch").focus()
    desk.page.keyboard.press("Space")
    for where in (".lm-title", ".lm-number", ".lm-te", ".lm-icon"):
        assert desk.row("ink").locator(where).first.evaluate(CONTRAST) >= 4.5, where
    desk.page.evaluate("localStorage.removeItem('lora-mixer-theme')")


def test_buttons_are_called_what_is_written_on_them_and_the_page_has_a_title(desk):
    desk.add("ink", "pixel")
    desk.page.get_by_label("More for ink").click()
    desk.fill(PROMPT)
    desk.make()
    assert desk.page.locator("h1").count() == 1
    for tab in ("Make", "Library", "Compare", "Gallery", "Export"):
        desk.tab(tab)
        desk.page.wait_for_timeout(150)
        wrong = desk.page.evaluate(
            """() => [...document.querySelectorAll(".lm-root button[aria-label], .lm-root input[aria-label]")]
                .map(node => [node.innerText.replace(/[^\\p{L}\\p{N} ]/gu, "").trim().toLowerCase(), node.ariaLabel.replace(/[^\\p{L}\\p{N} ]/gu, "").toLowerCase()])
                .filter(([text, label]) => text && !label.includes(text))"""
        )
        assert wrong == [], tab


@pytest.mark.slowed
def test_pictures_are_compared_by_keys_and_the_gallery_has_arrows(desk):
    desk.fill(PROMPT, count=2)
    desk.make()
    desk.page.get_by_role("button", name="Compare", exact=True).click()
    desk.page.locator("#stage .lm-pick").first.click()
    cut = desk.page.locator("#stage .lm-cut")
    cut.focus()
    for _ in range(5):
        desk.page.keyboard.press("ArrowRight")
    assert cut.input_value() == "55"
    assert (
        desk.page.locator("#stage .lm-pair").evaluate("node => node.style.getPropertyValue('--cut')") == "55%"
    )
    assert "seed 2" in desk.page.locator("#stage .lm-atleft").inner_text()
    desk.tab("Gallery")
    shots = desk.page.locator(".lm-shot")
    shots.nth(1).wait_for()
    shots.first.focus()
    desk.page.keyboard.press("ArrowRight")
    assert shots.nth(1).evaluate("node => node === document.activeElement")


@pytest.mark.slowed
def test_steps_are_not_read_out_one_by_one(desk):
    desk.fill(PROMPT, steps=20)
    desk.page.evaluate(
        """() => {
            window.spoken = [];
            const watched = [...document.querySelectorAll("#stage [aria-live], #stage [role=status]")];
            new MutationObserver(all => all.forEach(one => window.spoken.push(one.target.textContent)))
                .observe(watched[0], { childList: true, characterData: true, subtree: true });
            window.regions = watched.length;
        }"""
    )
    desk.make()
    assert desk.page.evaluate("window.regions") == 1
    assert len(desk.page.evaluate("window.spoken")) <= 4
