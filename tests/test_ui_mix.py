"""The rows of the mix in a real browser: text, order, blocks, schedule, mask."""

from __future__ import annotations

import pytest

from lora_mixer import Mix
from lora_mixer.mixes import LBW_IDS
from lora_mixer.picture_metadata import read_picture
from tests.browser import PROMPT, Desk, serving
from tests.models import tiny_sd, tiny_sdxl


def test_mixes_are_saved_loaded_written_as_text_and_undone(desk, app):
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
    assert app.mixes.load("evening") == Mix.of("ink:0.25, pixel:1")

    text.fill("neon:0.5,te=0.1,schedule=linear(0, 1)")
    desk.page.locator("#mix-apply").click()
    desk.row("neon").wait_for()
    assert desk.page.locator("#board .lm-row").count() == 1
    assert desk.page.get_by_label("neon: Text", exact=True).input_value() == "0.1"
    desk.page.get_by_label("Load the mix evening").click()
    desk.row("pixel").wait_for()


def test_a_mix_as_text_opens_no_file(desk):
    desk.page.get_by_text("Save and share").click()
    desk.page.locator("#mix-text textarea").fill("ink:1,mask=/etc/hostname")
    desk.page.locator("#mix-apply").click()
    assert "not opened by path" in desk.toast()


def test_html_in_a_message_is_text(desk):
    evil = "<img src=x onerror='window.hacked=1'>"
    desk.page.get_by_text("Save and share").click()
    desk.page.locator("#mix-text textarea").fill(f"{evil}=1")
    desk.page.locator("#mix-apply").click()
    assert evil in desk.toast()
    assert desk.page.locator("img[src=x]").count() == 0


def test_blocks_schedule_and_trigger_words_of_a_row(desk, app):
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


def test_a_painted_mask_keeps_an_adapter_to_its_place(desk, app):
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
    assert mask.digest in list(app.masks)
    assert 0 < mask.load().mean() < 0.5


def ordered(desk, *names):
    """Wait until the rows stand in this order."""
    desk.page.wait_for_function(
        """names => [...document.querySelectorAll("#board .lm-row")].map(row => row.dataset.name).join() === names""",
        arg=",".join(names),
    )


def test_rows_are_dragged_into_another_order_and_undone_by_key(desk):
    desk.add("ink", "pixel", "halftone")
    desk.page.get_by_label("Move ink", exact=True).drag_to(desk.row("halftone"))
    ordered(desk, "pixel", "halftone", "ink")
    desk.page.get_by_label("Move halftone", exact=True).press("Alt+ArrowUp")
    ordered(desk, "halftone", "pixel", "ink")
    desk.page.get_by_label("Move halftone", exact=True).press("Control+z")
    ordered(desk, "pixel", "halftone", "ink")
    desk.page.get_by_label("Remove pixel").click()
    ordered(desk, "halftone", "ink")
    desk.page.get_by_label("Undo", exact=True).first.click()
    ordered(desk, "pixel", "halftone", "ink")


def test_a_row_whose_adapter_is_renamed_keeps_its_details_open(desk):
    desk.add("ink")
    desk.page.get_by_label("More for ink").click()
    desk.page.evaluate("lm.mix.rename('ink', 'neon')")  # as the library does after a file's new name
    desk.row("neon").wait_for()
    assert desk.page.get_by_label("More for neon").get_attribute("aria-expanded") == "true"


def taken_out(desk):
    desk.page.get_by_label("Remove ink").click()


def taken_out_and_back(desk):
    taken_out(desk)
    desk.page.locator("#board h2").click()
    desk.page.keyboard.press("Control+z")


def replaced_by_another_mix(desk):
    desk.open_share()
    desk.page.locator("#mix-text textarea").fill("pixel:1")
    desk.page.locator("#mix-apply").click()
    desk.row("pixel").wait_for()


@pytest.mark.parametrize("gone", [taken_out, taken_out_and_back, replaced_by_another_mix])
def test_a_row_that_left_the_mix_open_comes_again_closed(desk, gone):
    desk.add("ink")
    desk.page.get_by_label("More for ink").click()
    assert desk.page.get_by_label("More for ink").get_attribute("aria-expanded") == "true"
    gone(desk)
    if gone is not taken_out_and_back:
        desk.row("ink").wait_for(state="detached")
        desk.add("ink")
    desk.row("ink").wait_for()
    assert desk.page.get_by_label("More for ink").get_attribute("aria-expanded") == "false"
    assert desk.row("ink").locator(".lm-more").count() == 0


def test_an_adapter_is_loaded_when_its_row_is_made_and_not_at_the_click(desk, app):
    app.preloader.wait()
    before = app.loads
    fresh = [name for name in ("lumo", "blueprint") if app.spare_for(name)]
    desk.add("lumo", "blueprint")
    app.preloader.wait()
    loads = app.loads
    assert loads == before + len(fresh)

    desk.fill(PROMPT)
    desk.make()

    assert app.loads == loads


def test_a_weight_kept_as_default_is_there_when_the_adapter_is_added_again(desk, app):
    desk.add("pixel")
    desk.weight("pixel", 0.45)
    desk.page.get_by_label("More for pixel").click()
    desk.page.get_by_label("Keep the weights of pixel as its default").click()
    assert "pixel now starts at 0.45" in desk.toast()
    try:
        desk.page.get_by_label("Remove pixel").click()
        desk.add("pixel")
        assert desk.page.get_by_label("pixel: UNet", exact=True).input_value() == "0.45"
    finally:
        (entry,) = app.library.find("pixel")
        app.library.set_default(entry.id, weight=None)


def attention_lora(pipe, path):
    """A file with a pair for each cross-attention of a UNet, in diffusers' names."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    tensors = {}
    for name, module in pipe.unet.named_modules():
        if name.endswith("attn2.to_k"):
            rows, columns = module.weight.shape
            tensors[f"unet.{name}.lora_A.weight"] = torch.randn(2, columns)
            tensors[f"unet.{name}.lora_B.weight"] = torch.randn(rows, 2)
    path.parent.mkdir()
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("family", "lengths"), [("SD 1.x", (17, 26)), ("SDXL", (12, 20, 26))], ids=["sd", "sdxl"]
)
def test_block_weights_are_sliders_of_every_length_that_the_model_has(desks, tmp_path, family, lengths):
    pipe = tiny_sd() if family == "SD 1.x" else tiny_sdxl()
    pipe.save_pretrained(tmp_path / "model")
    attention_lora(pipe, tmp_path / "loras" / "lines.safetensors")
    served = serving(
        tmp_path / "out", tmp_path / "cache", model=str(tmp_path / "model"), loras=(tmp_path / "loras",)
    )
    with served as (url, _):
        desk = Desk(desks, url)
        desk.add("lines")
        desk.page.get_by_label("More for lines").click()
        choice = desk.page.get_by_label("lines: blocks", exact=True)
        for length in lengths:
            choice.select_option(f"sliders {length}")
            sliders = desk.row("lines").locator(".lm-blocks input")
            assert sliders.evaluate_all("all => all.map(one => one.ariaLabel)") == [
                f"lines: {block}" for block in LBW_IDS[length]
            ]
        choice.select_option(f"sliders {lengths[0]}")
        first = desk.page.get_by_label(f"lines: {LBW_IDS[lengths[0]][1]}", exact=True)
        first.fill("0.5")
        desk.fill(PROMPT)
        made = read_picture(desk.make())
        wanted = [1, 0.5, *[1] * (lengths[0] - 2)]
        assert made.mix == Mix.of({"lines": {"blocks": wanted}})
        choice.select_option("INS" if lengths[0] == 17 else "b-lora:style")
        assert read_picture(desk.make()).mix != made.mix
        desk.page.close()
