"""
Draw the screenshots of the web page that the docs show, with a real browser on the demo pipeline.

    python -m benchmarks.ui_pictures [--out docs/images] [--steps 20] [--both]

``--both`` draws each view in the other colours, too, as ``...-other.png``; these are for looking at, not for the docs.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

WIDE, MIDDLE, NARROW = ({"width": w, "height": h} for w, h in ((1440, 900), (1024, 768), (390, 844)))
COLOURS = 192


def shot(desk: Any, path: Path, *, both: bool = False) -> None:
    """Write what is seen of the page as a small PNG."""
    from PIL import Image

    if both:
        desk.page.evaluate("lm.toggleTheme()")
        shot(desk, path.with_name(f"{path.stem}-other.png"))
        desk.page.evaluate("lm.toggleTheme()")
    desk.page.evaluate("scrollTo(0, 0); document.activeElement?.blur()")
    desk.page.mouse.move(0, 0)
    desk.page.wait_for_timeout(700)
    with Image.open(io.BytesIO(desk.page.screenshot())) as image:
        image.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    print(path)


def views(desk: Any, take: Callable[[str], None], name: str, steps: int) -> None:
    """Go through all views; each is drawn as it comes up."""
    desk.page.locator(".lm-first").wait_for()
    take("first")
    desk.page.evaluate("lm.drafts = false")  # the pictures themselves, no draft over them
    desk.add("ink", "watercolor", "neon")
    desk.weight("watercolor", 0.6)
    desk.weight("ink", 0.8)
    desk.row("neon").get_by_role("switch").focus()
    desk.page.keyboard.press("Space")
    desk.page.keyboard.press("Escape")
    desk.fill("a castle, ink sketch", seed=4, steps=steps, count=3)
    desk.make()
    desk.open_mix()
    desk.page.get_by_label("More for ink").click()
    desk.page.get_by_label("ink: blocks", exact=True).select_option("only up")
    desk.page.get_by_label("ink: shape of the schedule").select_option("linear(0, 1)")
    desk.page.locator(".lm-curve svg").wait_for()
    take("row")
    desk.page.get_by_label("More for ink").click()
    desk.page.get_by_label("Undo", exact=True).first.click()
    desk.page.get_by_label("Undo", exact=True).first.click()
    desk.page.keyboard.press("Escape")
    take("make")
    desk.page.get_by_role("button", name="Compare", exact=True).click()
    desk.page.locator("#stage .lm-pick").first.click()
    desk.page.locator("#stage .lm-cut").wait_for()
    take("pair")
    desk.page.get_by_role("button", name="End comparing").click()
    desk.open_mix()
    desk.page.get_by_label("More for ink").click()
    desk.page.get_by_role("button", name="Paint a mask").click()
    desk.page.get_by_label("ink: left half").click()
    take("mask")
    desk.page.keyboard.press("Escape")
    desk.page.locator("dialog[open]").first.wait_for(state="detached")
    desk.page.get_by_label("More for ink").click()
    desk.page.keyboard.press("Escape")
    other_views(desk, take, name)


def other_views(desk: Any, take: Callable[[str], None], name: str) -> None:
    """Go through the tabs beside Make."""
    desk.tab("Library")
    desk.page.get_by_role("button", name="Details of ink", exact=True).click()
    desk.page.locator(".lm-barline").first.wait_for()
    take("details")
    desk.page.keyboard.press("Escape")
    take("library")
    desk.page.get_by_role("button", name="As a list").click()
    desk.page.locator(".lm-cardline").first.wait_for()
    take("list")
    desk.page.get_by_role("button", name="As a list").click()
    desk.tab("Compare")
    desk.page.locator("#compare-button").click()
    desk.state("done", "#compare-state").wait_for(timeout=600_000)
    desk.page.locator("#grid-button").click()
    desk.state("done", "#grid").wait_for(timeout=600_000)
    take("compare")
    desk.tab("Gallery")
    desk.page.locator(".lm-shot").nth(3).click()
    desk.page.locator(".lm-shotbox").wait_for()
    take("gallery")
    desk.tab("Export")
    desk.page.locator("#export-name input, #export-name textarea").fill(f"my mix {name}")
    desk.page.get_by_label("Rank (0: exact)").fill("4")
    desk.page.get_by_label("Rank (0: exact)").blur()
    desk.page.locator("#export-button").click()
    desk.page.wait_for_function("document.querySelector('#export-report textarea').value.includes('rank')")
    take("export")


def main() -> None:
    """Serve the demo and draw all views at all widths; the narrow ones are dark."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--out", type=Path, default=Path("docs/images"))
    options.add_argument("--steps", type=int, default=20)
    options.add_argument("--widths", type=int, nargs="*", default=[1440, 390])
    options.add_argument("--both", action="store_true", help="in the other colours, too")
    given = options.parse_args()
    from tests.browser import Desk, browser, serving

    with tempfile.TemporaryDirectory() as folder, serving(f"{folder}/out", f"{folder}/cache") as (url, _):
        playwright, chromium = browser()
        for size, colours, name in (
            (WIDE, "light", "1440"),
            (MIDDLE, "light", "1024"),
            (NARROW, "dark", "390"),
        ):
            if size["width"] not in given.widths:
                continue
            context = chromium.new_context(viewport=size, color_scheme=colours)
            desk = Desk(context, url)

            def take(view: str, desk: Any = desk, name: str = name) -> None:
                shot(desk, given.out / f"ui-{view}-{name}.png", both=given.both)

            views(desk, take, name, given.steps)
            context.close()
        chromium.close()
        playwright.stop()


if __name__ == "__main__":
    main()
