"""What the page says, and gives back whole: grids, recalled pictures, uploads, exports."""

from __future__ import annotations

import socket

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from lora_mixer import LoraMixerError, demo_adapters
from lora_mixer.ui import ServerOptions, launch
from tests.browser import PROMPT, Desk
from tests.hub_standin import Repo
from tests.test_ui_kept import reload


def grid(desk, columns, values, rows="nothing", row_values=""):
    desk.tab("Compare")
    for name, kind, text in (("columns", columns, values), ("rows", rows, row_values)):
        desk.page.locator(f"#{name}-kind select").select_option(kind)
        desk.page.locator(f"#{name}-values textarea").fill(text)
    desk.page.locator("#grid-button").click()


@pytest.mark.parametrize(
    ("columns", "values", "rows", "row_values", "cells"),
    [
        pytest.param("seed", "1-2", "nothing", "", 2, marks=pytest.mark.slowed),
        ("nothing", "", "seed", "1-2", 2),
        ("nothing", "", "nothing", "", 1),
        ("whole mix", "ink:1 | pixel:0.5", "nothing", "", 2),
    ],
)
def test_a_grid_of_one_axis_ends_with_its_sheet(desk, columns, values, rows, row_values, cells):
    desk.add("ink")
    desk.fill(PROMPT)
    if columns == "whole mix":
        values = values.replace(" | ", "\n")
    grid(desk, columns, values, rows, row_values)
    with desk.waiting():
        desk.page.locator("#grid [data-state=done], #grid [data-state=error]").wait_for()
    assert desk.page.locator("#grid .lm-error").count() == 0, desk.page.locator(
        "#grid .lm-error"
    ).inner_text()
    assert desk.page.locator("button.lm-cell").count() == cells
    assert desk.page.get_by_role("link", name="Download the sheet").count() == 1


@pytest.mark.slowed
def test_a_cell_gives_all_that_made_it_and_leaves_what_was_off(desk):
    desk.add("ink", "pixel")
    desk.row("pixel").get_by_role("switch").focus()
    desk.page.keyboard.press("Space")
    desk.weight("pixel", 0.35)
    desk.fill("a lighthouse", seed=3)
    desk.page.get_by_label("Guidance", exact=True).fill("4.5")
    desk.page.get_by_label("Guidance", exact=True).blur()
    grid(desk, "seed", "41, 42", "steps", "1, 3")
    with desk.waiting():
        desk.state("done", "#grid").wait_for()
    desk.page.get_by_label("Enlarge 3 steps seed 42").click()
    view = desk.page.locator("dialog.lm-large-view img")
    view.wait_for()
    assert view.bounding_box()["height"] >= 400
    desk.page.get_by_role("button", name="Use its settings").click()
    desk.page.wait_for_function("document.querySelector('#seed input, #seed textarea').value === '42'")
    for label, value in (("Steps", "3"), ("Guidance", "4.5"), ("Prompt", "a lighthouse")):
        assert desk.page.get_by_label(label, exact=True).input_value() == value, label
    assert not desk.row("pixel").get_by_role("switch").is_checked()
    assert desk.page.get_by_label("pixel: UNet", exact=True).input_value() == "0.35"


@pytest.mark.slowed
def test_two_axes_that_undo_each_other_are_refused(desk):
    desk.add("ink")
    desk.fill(PROMPT)
    desk.page.wait_for_timeout(400)
    grid(desk, "adapter's weight", "0, 1", "adapter's weight", "0.2, 0.4")
    desk.page.locator("#grid .lm-error").wait_for()
    assert "Both axes change the weight of ink" in desk.page.locator("#grid .lm-error").inner_text()


@pytest.mark.slowed
def test_a_recalled_picture_gives_its_sampler_and_says_what_of_it_is_not_used(desk, tmp_path):
    info = PngInfo()
    info.add_text(
        "parameters",
        "a (rose:1.3)\nSteps: 3, Sampler: DPM++ 2M Karras, CFG scale: 2, Seed: 9, Size: 128x128, Model: dreamy, Clip skip: 2, Hires upscale: 2, Variation seed: 7",
    )
    Image.new("RGB", (128, 128)).save(tmp_path / "a1111.png", pnginfo=info)
    desk.tab("Gallery")
    desk.upload("#picture-drop", tmp_path / "a1111.png")
    notes = desk.page.locator("#shot .lm-problem")
    notes.first.wait_for()
    text = "\n".join(notes.all_inner_texts())
    for part in ("dreamy", "Hires upscale", "Variation seed"):
        assert part in text, part
    for part in ("DPM++ 2M Karras", "Sampler", "lip skip", "(x:1.3)"):  # these are used
        assert part not in text, part
    desk.page.wait_for_function("lm.more.value.sampler === 'DPM++ 2M Karras'")
    assert desk.page.evaluate("lm.more.value.clip_skip") == 2


def test_the_caption_of_a_picture_with_a_mask_is_no_json(desk, app):
    import json

    digest = app.masks.put(Image.new("L", (64, 64), 255))
    desk.open_share()
    desk.page.locator("#mix-text textarea").fill(
        json.dumps({"ink": {"weight": 1, "mask": {"digest": digest, "feather": 0}}})
    )
    desk.page.locator("#mix-apply").click()
    desk.row("ink").wait_for()
    desk.fill(PROMPT)
    desk.make()
    assert "{" not in desk.page.locator("#stage .lm-mixline").inner_text()


@pytest.mark.slowed
def test_uploads_say_doubles_wrong_bases_and_new_names_and_take_one(desk, app, tidy, tmp_path):
    pixel = demo_adapters()["pixel"].path.read_bytes()
    (tmp_path / "ink.safetensors").write_bytes(pixel)
    meant = app.entry_named("ink").id
    desk.tab("Library")
    desk.page.get_by_text("Add adapters").click()
    desk.upload("#library-upload", tmp_path / "ink.safetensors")
    desk.page.get_by_text("there is another ink already; the same file as pixel").wait_for()
    assert app.entry_named("ink").id == meant
    (tmp_path / "pixel.safetensors").write_bytes(pixel)
    count = app.library.search().total
    desk.upload("#library-upload", tmp_path / "pixel.safetensors")
    desk.page.locator("#library-refused").get_by_text("it is here already").wait_for()
    assert app.library.search().total == count
    desk.page.locator("#upload-name input, #upload-name textarea").fill("of my own")
    desk.upload("#library-upload", tmp_path / "pixel.safetensors")
    desk.page.get_by_text("Added of my own").wait_for()
    assert len(app.library.find("of my own")) == 1
    assert desk.page.locator("#upload-name input").input_value() == ""
    desk.page.get_by_test_id("lm-said").get_by_role("button", name="Undo").click()
    desk.page.get_by_role("button", name="Add of my own to the mix").wait_for(state="detached")
    assert not app.library.find("of my own")


@pytest.mark.slowed
def test_a_page_of_the_hub_is_taken_by_its_address(desk, app, tidy, hub):
    hub.repos["someone/styles"] = Repo(
        {"a style.safetensors": demo_adapters()["ink"].path.read_bytes(), "b.safetensors": b""}
    )
    desk.tab("Library")
    desk.page.get_by_text("Add adapters").click()
    field = desk.page.locator("#hub-repo input, #hub-repo textarea")
    field.fill("https://huggingface.co/someone/styles/blob/main/a%20style.safetensors?download=true")
    desk.page.locator("#hub-get").click()
    desk.page.get_by_text("Added a style").wait_for()


def test_the_card_of_a_broken_file_holds_no_path_of_the_server(chromium, tmp_path):
    from tests.browser import serving

    (tmp_path / "loras").mkdir()
    (tmp_path / "loras" / "broken.safetensors").write_bytes(b"\xff" * 64)
    context = chromium.new_context()
    with serving(tmp_path / "out", tmp_path / "cache", loras=(tmp_path / "loras",)) as (url, _):
        desk = Desk(context, url)
        desk.tab("Library")
        note = desk.page.locator(".lm-card").get_by_role("note")
        note.wait_for()
        assert str(tmp_path) not in desk.page.content()
        assert "/loras" not in note.inner_text()
    context.close()


def test_a_port_that_is_taken_is_said_before_a_model_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr("lora_mixer.ui.app.AppState", lambda *_: pytest.fail("the model was loaded"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(LoraMixerError, match=f"port {port} .* --port"):
            launch(ServerOptions(out=tmp_path / "out"), port=port)


@pytest.mark.slowed
def test_an_export_says_in_colour_what_the_rank_costs_and_writes_peft(desk, app):
    desk.add("ink", "pixel")
    desk.tab("Export")
    for rank, level, words in (("1", "bad", "is lost"), ("0", "good", "Exact")):
        desk.page.locator("#export-name input, #export-name textarea").fill(f"of rank {rank}")
        desk.page.get_by_label("Rank (0: exact)").fill(rank)
        desk.page.get_by_label("Rank (0: exact)").blur()
        desk.page.locator("#export-button").click()
        with desk.waiting():
            desk.page.locator(f"#export-verdict .lm-{level}").get_by_text(words).wait_for()
    desk.page.get_by_label("Format").select_option("peft")
    desk.page.locator("#export-name input, #export-name textarea").fill("for peft")
    desk.page.locator("#export-button").click()
    desk.page.wait_for_function("document.querySelector('#export-report textarea').value.includes('peft')")
    assert list((app.exports / "for peft").rglob("adapter_config.json"))


@pytest.mark.slowed
def test_a_mask_is_painted_in_colour_over_the_picture_and_kept_until_it_is_used(desk, app, tmp_path):  # noqa: PLR0915 -- one visit
    desk.add("ink", "pixel")
    desk.fill(PROMPT)
    desk.make()
    desk.page.get_by_label("More for ink").click()
    desk.page.get_by_role("button", name="Paint a mask").click()
    dialog = desk.page.locator("dialog.lm-maskdialog")
    assert dialog.locator(".lm-behind").get_attribute("src") == desk.shown()
    canvas = desk.page.get_by_label("ink: mask", exact=True)
    area = canvas.bounding_box()
    assert area["width"] >= 300

    def stroke(at):
        desk.page.mouse.move(area["x"] + area["width"] * at, area["y"] + area["height"] * 0.2)
        desk.page.mouse.down()
        desk.page.mouse.move(area["x"] + area["width"] * at, area["y"] + area["height"] * 0.8, steps=4)
        desk.page.mouse.up()

    covered = """node => { const all = node.getContext("2d").getImageData(0, 0, node.width, node.height).data;
        let count = 0, last = 3; for (let at = 3; at < all.length; at += 4) if (all[at] > 200) { count++; last = at; }
        return [count / (all.length / 4), count ? all.slice(last - 3, last).join() : ""]; }"""

    def shows(share, close):
        desk.page.wait_for_function(
            f"([node, share, close]) => Math.abs(({covered})(node)[0] - share) < close",
            arg=[canvas.element_handle(), share, close],
            polling=200,  # it goes through all pixels
        )

    stroke(0.25)
    one, colour = canvas.evaluate(covered)
    assert 0.02 < one < 0.4
    assert colour != "255,255,255"
    stroke(0.75)
    two, _ = canvas.evaluate(covered)
    assert two > one
    desk.page.get_by_label("Undo the last stroke").click()
    assert canvas.evaluate(covered)[0] == pytest.approx(one)

    desk.page.get_by_label("Close the mask").click()  # not lost, whatever the rows do meanwhile
    desk.weight("pixel", 0.2)
    desk.row("pixel").get_by_role("switch").focus()
    desk.page.keyboard.press("Space")
    desk.page.get_by_role("button", name="Paint a mask").click()
    shows(one, 0.01)
    desk.page.get_by_label("ink: invert the mask").click()
    assert canvas.evaluate(covered)[0] == pytest.approx(1 - one, abs=0.02)
    desk.page.get_by_role("button", name="Use this mask").click()
    desk.row("ink").get_by_text("painted").wait_for()
    desk.row("ink").locator(".lm-row-head .lm-maskmark img").wait_for()

    desk.page.get_by_role("button", name="Paint again").click()  # begins with the mask that is there
    shows(1 - one, 0.03)
    desk.page.get_by_label("ink: feather of the mask").fill("6")  # seen as it will be
    assert canvas.evaluate("node => node.style.filter").startswith("blur(")
    half = Image.new("L", (32, 32))
    half.paste(255, (0, 0, 32, 8))
    half.save(tmp_path / "quarter.png")
    dialog.locator("input[type=file]").set_input_files(str(tmp_path / "quarter.png"))
    shows(0.25, 0.06)
    reload(desk)  # strokes that nobody used yet are there after it
    desk.page.get_by_label("More for ink").click()
    desk.page.get_by_role("button", name="Paint again").click()
    shows(0.25, 0.06)
    desk.page.get_by_label("Close the mask").click()
