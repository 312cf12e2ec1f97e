"""Pictures dropped on the page in a real browser, and what comes back."""

from __future__ import annotations

from PIL import Image

from lora_mixer.recall import read_picture
from tests.browser import PROMPT, Desk, pixels


def test_a_dropped_picture_gives_the_same_picture_again(desk, studio, chromium, site, tmp_path):
    desk.add("ink", "pixel")
    desk.weight("ink", 0)
    desk.weight("pixel", 0.6)
    desk.fill(f"{PROMPT} <lora:halftone:0.2>", seed=77)
    made = desk.make()
    (tmp_path / "made.png").write_bytes(made)

    url, _ = site
    context = chromium.new_context(viewport={"width": 390, "height": 844})
    other = Desk(context, url)
    other.add("neon")  # is not in the picture, and must go
    other.tab("Gallery")
    other.upload("#picture-drop", tmp_path / "made.png")
    other.row("halftone").wait_for()
    assert other.page.locator("#board .lm-row").count() == 3
    assert other.page.get_by_label("ink: UNet", exact=True).input_value() == "0"
    other.tab("Make")
    assert other.page.get_by_label("Prompt", exact=True).input_value() == PROMPT
    again = other.make()
    assert pixels(again) == pixels(made)
    assert read_picture(again) == read_picture(made)
    context.close()


def test_a_missing_adapter_keeps_its_place(desk, tmp_path):
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text(
        "parameters",
        "a rose <lora:ink:0.5> <lora:gone:0.3> <lora:pixel:0.7>\nSteps: 3, Sampler: Euler, CFG scale: 2, Seed: 9",
    )
    Image.new("RGB", (128, 128)).save(tmp_path / "a1111.png", pnginfo=info)
    desk.tab("Gallery")
    desk.upload("#picture-drop", tmp_path / "a1111.png")
    desk.row("pixel").wait_for()
    names = desk.page.locator("#board .lm-row").evaluate_all("rows => rows.map(row => row.dataset.name)")
    assert names == ["ink", "gone", "pixel"]
    assert "not in the library" in desk.row("gone").get_by_role("note").inner_text()
    assert "gone" in desk.page.locator(".lm-slots .lm-missing").inner_text()
    desk.tab("Make")
    assert desk.page.get_by_label("Seed", exact=True).input_value() == "9"
