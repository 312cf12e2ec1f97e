"""The rows of the mix in a real browser: text, order, blocks, schedule, mask."""

from __future__ import annotations

from lora_mixer import Mix
from lora_mixer.recall import read_picture
from tests.browser import PROMPT


def test_mixes_are_saved_loaded_written_as_text_and_undone(desk, studio):
    desk.add("ink", "pixel")
    desk.page.get_by_text("Save and share").click()
    text = desk.page.locator("#mix-text textarea")
    desk.weight("ink", 0.25)
    desk.page.wait_for_function("document.querySelector('#mix-text textarea').value === 'ink:0.25, pixel:1'")
    desk.page.get_by_label("Move ink", exact=True).press("Alt+ArrowDown")
    desk.page.wait_for_function("document.querySelector('#mix-text textarea').value === 'pixel:1, ink:0.25'")
    desk.page.get_by_label("Undo", exact=True).first.click()
    desk.page.wait_for_function("document.querySelector('#mix-text textarea').value === 'ink:0.25, pixel:1'")

    desk.page.get_by_label("Name").first.fill("evening")
    desk.page.locator("#mix-save").click()
    desk.page.wait_for_function("document.querySelector('#mix-saved input').value === 'evening'")
    assert studio.mixes.load("evening") == Mix.of("ink:0.25, pixel:1")

    text.fill("neon:0.5,te=0.1,schedule=linear(0, 1)")
    desk.page.locator("#mix-apply").click()
    desk.row("neon").wait_for()
    assert desk.page.locator("#board .lm-row").count() == 1
    assert desk.page.get_by_label("neon: Text", exact=True).input_value() == "0.1"
    desk.page.locator("#mix-load").click()
    desk.row("pixel").wait_for()


def test_a_mix_as_text_opens_no_file(desk):
    desk.page.get_by_text("Save and share").click()
    desk.page.locator("#mix-text textarea").fill("ink:1,mask=/etc/hostname")
    desk.page.locator("#mix-apply").click()
    assert "not opened by path" in desk.toast()


def test_blocks_schedule_and_trigger_words_of_a_row(desk, studio):
    desk.add("ink")
    desk.page.get_by_label("Prompt", exact=True).fill("a rocket")
    desk.row("ink").get_by_text("+ ink sketch").click()
    desk.page.wait_for_function("document.querySelector('#prompt textarea').value === 'a rocket, ink sketch'")
    desk.page.get_by_label("More for ink").click()
    desk.page.get_by_label("ink: blocks", exact=True).select_option("only up")
    desk.page.get_by_label("ink: shape of the schedule").select_option("window(0.5, 1)")
    curve = desk.page.locator(".lm-curve .lm-stroke")
    curve.wait_for()
    desk.page.wait_for_function(
        "document.querySelector('.lm-curve svg').ariaLabel === 'Schedule: from 0 to 1'"
    )
    desk.fill("a rocket, ink sketch", steps=4)
    made = read_picture(desk.make())
    blocks = {
        "down": {f"block_{n}": 0 for n in range(3)},
        "mid": 0,
        "up": {f"block_{n}": 1 for n in range(3)},
    }
    assert made.mix == Mix.of({"ink": {"blocks": blocks, "schedule": "window(0.5, 1)"}})

    desk.page.get_by_label("ink: schedule", exact=True).fill("0@0,nonsense")
    desk.page.locator(".lm-curve .lm-problem").wait_for()


def test_a_painted_mask_keeps_an_adapter_to_its_place(desk, studio):
    desk.add("ink")
    desk.page.get_by_label("More for ink").click()
    desk.page.get_by_role("button", name="Paint a mask").click()
    canvas = desk.page.get_by_label("ink: mask", exact=True)
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    mouse = desk.page.mouse
    mouse.move(box["x"] + box["width"] * 0.3, box["y"] + box["height"] * 0.3)
    mouse.down()
    mouse.move(box["x"] + box["width"] * 0.4, box["y"] + box["height"] * 0.6, steps=5)
    mouse.up()
    desk.page.get_by_role("button", name="Use this mask").click()
    desk.row("ink").get_by_text("painted").wait_for()
    desk.fill(PROMPT)
    made = read_picture(desk.make())
    mask = made.mix["ink"].mask
    assert mask.digest in list(studio.masks)
    assert 0 < mask.load().mean() < 0.5
