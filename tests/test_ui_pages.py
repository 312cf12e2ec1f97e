"""The page in a real browser, on the demo pipeline: adapters in, weights moved, pictures out and back in."""

from __future__ import annotations

import io
import json
import struct

import pytest
from PIL import Image

from lora_mixer import Axis, Mix, PictureRequest, demo_adapters
from lora_mixer.recall import read_picture
from tests.browser import STEPS, Desk, browser, serving

PROMPT = "a castle"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    with serving(out, tmp_path_factory.mktemp("cache")) as (url, studio):
        playwright, chromium = browser()
        try:
            yield url, studio, chromium
        finally:
            chromium.close()
            playwright.stop()


@pytest.fixture
def desk(site):
    url, _, chromium = site
    context = chromium.new_context(viewport={"width": 1440, "height": 900})
    desk = Desk(context, url)
    yield desk
    assert not desk.errors
    context.close()


@pytest.fixture(scope="module")
def studio(site):
    return site[1]


def alone(studio, mix, seed=1, prompt=PROMPT):
    """The picture as its request gives it to whoever is alone: its pixels."""
    width, height = studio.size
    request = PictureRequest(
        prompt, seed=seed, steps=STEPS, guidance_scale=studio.defaults["guidance_scale"],
        width=width, height=height, mix=mix,
    )  # fmt: skip
    studio.ready(request.mix.names)
    (picture,) = studio.maker.make([request])
    return picture.image.tobytes()


def pixels(data):
    with Image.open(io.BytesIO(data)) as image:
        return image.convert("RGB").tobytes()


def test_a_mix_changes_the_picture_and_all_off_is_the_base_to_the_byte(desk, studio):
    desk.fill(PROMPT)
    base = desk.make()
    assert pixels(base) == alone(studio, {})

    desk.add("ink", "halftone")
    desk.weight("halftone", 0.4)
    mixed = desk.make()
    assert pixels(mixed) == alone(studio, {"ink": 1, "halftone": 0.4})
    assert pixels(mixed) != pixels(base)
    assert read_picture(mixed).mix == Mix.of("ink:1, halftone:0.4")

    loads = studio.loads
    desk.weight("ink", 0.3)
    desk.weight("ink", 0.1, "Text")
    assert pixels(desk.make()) == alone(
        studio, {"ink": {"weight": 0.3, "components": {"te": 0.1}}, "halftone": 0.4}
    )
    assert studio.loads == loads  # a weight moved: nothing is loaded again

    desk.page.get_by_label("Switch all off or on").click()
    assert desk.make() == base


def test_uploaded_kohya_and_peft_files_are_mixed(desk, studio, tmp_path):
    kohya, peft = tmp_path / "my kohya.safetensors", tmp_path / "my-peft.safetensors"
    kohya.write_bytes(demo_adapters()["watercolor"].path.read_bytes())
    studio.ready(["neon"])
    studio.mixer.save_lora_weights(peft, weights={"neon": 1.0}, format="diffusers")
    desk.tab("Library")
    desk.page.get_by_text("Add adapters").click()
    desk.upload("#library-upload", kohya, peft)
    desk.page.get_by_text("Added my").wait_for()

    names = [entry.name for entry in studio.library.search("my").entries]
    desk.add(*names)
    desk.weight(names[0], 0.5)
    desk.fill(PROMPT)
    assert pixels(desk.make()) == alone(studio, {names[0]: 0.5, names[1]: 1})


def test_a_wrong_base_is_greyed_with_its_reason_and_a_bad_file_is_refused(desk, studio, tmp_path):
    import torch
    from safetensors.torch import save_file

    pair = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"
    save_file(
        {
            f"{pair}.lora_down.weight": torch.ones(2, 2048),
            f"{pair}.lora_up.weight": torch.ones(640, 2),
            f"{pair}.alpha": torch.tensor(2.0),
        },
        tmp_path / "for-sdxl.safetensors",
    )
    bad = tmp_path / "<img src=x onerror=alert(1)>.safetensors"
    bad.write_bytes(struct.pack("<Q", 2**60) + b"{}")
    desk.tab("Library")
    desk.page.get_by_text("Add adapters").click()
    desk.upload("#library-upload", tmp_path / "for-sdxl.safetensors", bad)
    refused = desk.page.locator("#library-refused")
    refused.get_by_text("Not added").wait_for()
    assert "onerror" in refused.inner_text()
    assert refused.locator("img").count() == 0
    assert not studio.library.search("onerror").total

    card = desk.page.locator(".lm-card[aria-label='for-sdxl']")
    assert "made for SDXL" in card.get_by_role("note").inner_text()
    assert card.get_by_label("Add for-sdxl to the mix").is_disabled()


def test_html_in_metadata_is_text(desk, studio, tmp_path):
    import torch
    from safetensors.torch import save_file

    evil = "<img src=x onerror='window.hacked=1'>${window.hacked=1}{{hacked}}"
    pair = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
    width = studio.mixer.pipe.unet.config.cross_attention_dim
    rows = (
        studio.mixer.pipe.unet.down_blocks[1].attentions[0].transformer_blocks[0].attn2.to_k.weight.shape[0]
    )
    save_file(
        {f"{pair}.lora_down.weight": torch.ones(2, width), f"{pair}.lora_up.weight": torch.ones(rows, 2)},
        tmp_path / "evil.safetensors",
        metadata={
            "ss_output_name": evil,
            "modelspec.title": evil,
            "modelspec.trigger_phrase": evil,
            "ss_training_comment": evil,
        },
    )
    desk.tab("Library")
    desk.page.get_by_text("Add adapters").click()
    desk.upload("#library-upload", tmp_path / "evil.safetensors")
    entry = studio.library.find("evil")
    desk.page.locator(".lm-cards").get_by_text("onerror").first.wait_for()
    (entry,) = studio.library.find("evil")
    desk.page.locator(f".lm-card[data-id='{entry.id}']").get_by_text("Details").click()
    desk.page.locator(".lm-details").get_by_text("ss_training_comment").wait_for()
    assert evil in desk.page.locator(".lm-details").inner_text()
    desk.page.locator(".lm-details").get_by_text("Add to mix").click()
    desk.row("evil").wait_for()
    assert desk.page.evaluate("window.hacked") is None
    assert desk.page.locator(".lm-root img[src=x]").count() == 0


def test_details_show_hashes_and_strength_by_block(desk, studio):
    desk.tab("Library")
    desk.page.get_by_role("button", name="Show details of ink").click()
    shown = desk.page.locator(".lm-details")
    shown.get_by_text("Strength by layer").wait_for()
    (entry,) = studio.library.find("ink")
    assert studio.library.hashes(entry.id)["sha256"] in shown.inner_text()
    assert shown.locator(".lm-barline").count() > 3


def test_stop_ends_within_a_step_and_the_next_picture_is_right(desk, studio):
    desk.fill(PROMPT, steps=200)
    desk.page.locator("#make-button").click()
    desk.page.locator("#stage .lm-preview").wait_for()
    desk.page.locator("#stop-button").click()
    desk.state("stopped").wait_for()
    assert len(studio.queue) == 0

    desk.fill(PROMPT)
    assert pixels(desk.make()) == alone(studio, {})


def test_a_grid_has_labels_and_a_cell_gives_its_mix(desk, studio):
    desk.add("ink")
    desk.fill(PROMPT)
    desk.tab("Compare")
    desk.page.locator("#columns-values input, #columns-values textarea").fill("0-1 (+0.5)")
    desk.page.locator("#rows-values input, #rows-values textarea").fill("1, 5")
    desk.page.locator("#grid-button").click()
    desk.state("done", "#grid").wait_for()
    heads = desk.page.locator(".lm-grid th").all_inner_texts()
    assert heads == ["", "ink 0", "ink 0.5", "ink 1", "seed 1", "seed 5"]
    assert desk.page.locator("button.lm-cell").count() == 6

    desk.page.get_by_label("Take the mix of seed 5 ink 0.5").click()
    desk.page.wait_for_function("""document.querySelector('[aria-label="ink: UNet"]').value === "0.5\"""")


def test_base_and_mix_are_compared_with_one_seed(desk, studio):
    desk.add("ink")
    desk.fill(PROMPT)
    desk.tab("Compare")
    desk.page.locator("#compare-button").click()
    desk.state("done", "#compare-state").wait_for()
    pair = desk.page.locator("#compare-slider img")
    pair.nth(1).wait_for()
    found = {pixels(desk.fetch(pair.nth(at).get_attribute("src"))) for at in range(2)}
    assert found == {alone(studio, {}), alone(studio, {"ink": 1})}


def test_a_dropped_picture_gives_the_same_picture_again(desk, studio, site, tmp_path):
    desk.add("ink", "pixel")
    desk.weight("ink", 0)
    desk.weight("pixel", 0.6)
    desk.fill(f"{PROMPT} <lora:halftone:0.2>", seed=77)
    made = desk.make()
    (tmp_path / "made.png").write_bytes(made)

    url, _, chromium = site
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


def test_the_mix_is_exported_as_one_file(desk, studio):
    desk.add("ink", "pixel")
    desk.tab("Export")
    desk.page.get_by_label("Rank (0: exact)").fill("3")
    desk.page.get_by_label("Rank (0: exact)").blur()
    desk.page.locator("#export-button").click()
    desk.page.wait_for_function(
        "document.querySelector('#export-report textarea').value.includes('error at most')"
    )
    with desk.page.expect_download() as download:
        desk.page.locator("#export-file a").first.click()
    from lora_mixer import read_adapter

    info = read_adapter(download.value.path().read_bytes() and studio.exports / "my-mix.safetensors")
    assert info.ranks == (3,)
    desk.page.locator("#export-button").click()
    assert "already" in desk.toast()


def test_the_page_fits_a_phone_and_works_by_keyboard(site):
    url, _, chromium = site
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


def test_axes_are_read_as_people_write_them():
    assert Axis.read("weight", "0-1 [3]", "ink").values == (0.0, 0.5, 1.0)
    assert Axis.read("weight", "-1-1 (+1)", "ink").values == (-1.0, 0.0, 1.0)
    assert Axis.read("seed", "3-1").values == (3, 2, 1)
    assert Axis.read("adapter", "base, ink").values == ("", "ink")
    assert Axis.read("mix", "base; ink:1, neon:0.5").values == ("", "ink:1, neon:0.5")
    assert Axis.read("blocks", "OUTALL, [1,0,0]", "ink").values == ("OUTALL", [1.0, 0.0, 0.0])
    for kind, text in (
        ("weight", "0-1 (-0.5)"),
        ("weight", "nan"),
        ("seed", "1.5"),
        ("weight", "0-1 (+0.0000001)"),
    ):
        with pytest.raises(ValueError, match=f"axis {kind}"):
            Axis.read(kind, text, "ink")
    assert json.dumps(Axis.read("guidance", "1, 2.5").values) == "[1.0, 2.5]"
