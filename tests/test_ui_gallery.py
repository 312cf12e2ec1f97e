"""Pictures dropped on the page in a real browser, and what comes back."""

from __future__ import annotations

import json

import pytest
from PIL import Image
from safetensors.torch import load_file, save

from lora_mixer import demo_adapters
from lora_mixer.picture_metadata import read_picture
from tests.browser import PROMPT, Desk, pixels
from tests.pictures import (
    A1111,
    COMFYUI,
    FOOOCUS_JSON,
    FOOOCUS_TEXT,
    INVOKEAI,
    SDNEXT,
    SWARMUI,
    png,
)
from tests.site_standin import SiteStandIn


def test_a_dropped_picture_gives_the_same_picture_again(desk, app, chromium, site, tmp_path):
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


@pytest.mark.slowed
def test_a_missing_adapter_keeps_its_place(desk, app, tmp_path):
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text(
        "parameters",
        "a rose <lora:ink:0.5> <lora:gone:0.3> <lora:pixel:0.7>\nSteps: 3, Sampler: Wanderer, CFG scale: 2, Seed: 9, "
        "Schedule type: Sideways, Hires upscale: 2, Hires upscaler: it's own, "
        'Lora hashes: "gone: e3b0c442"',  # what other programs write where they hashed nothing: it is no file's
    )
    Image.new("RGB", (128, 128)).save(tmp_path / "a1111.png", pnginfo=info)
    # those of a file shorter than what such a hash is made of, and which the picture does not name
    app.library.hashes(app.entry_named("watercolor").id)
    desk.tab("Gallery")
    desk.upload("#picture-drop", tmp_path / "a1111.png")
    desk.row("pixel").wait_for()
    names = desk.page.locator("#board .lm-row").evaluate_all("rows => rows.map(row => row.dataset.name)")
    assert names == ["ink", "gone", "pixel"]
    assert "not in the library" in desk.row("gone").get_by_role("note").inner_text()
    # where several files' hashes are known, that of nothing would be all of theirs: "could be"
    told = desk.page.locator(".lm-slots .lm-missing").all_inner_texts()
    assert told == ['gone: "gone" is not here; its place is kept']
    notes = desk.page.locator("#shot .lm-problem").all_inner_texts()
    assert 'Not used: Hires upscale: "2" has no counterpart.' in notes
    assert 'Not used: Hires upscaler: "it\'s own" has no counterpart.' in notes
    assert any('"Wanderer" is unknown' in note for note in notes)
    assert not [note for note in notes if "'2'" in note or "'Wanderer'" in note or "'Sideways'" in note]
    desk.tab("Make")
    assert desk.page.get_by_label("Seed", exact=True).input_value() == "9"


def test_what_to_do_without_a_picture_open_is_said_for_any_width_and_for_an_empty_gallery(
    desk, app, tmp_path, monkeypatch
):
    def said(width):
        desk.page.set_viewport_size({"width": width, "height": 844})
        desk.tab("Gallery")
        desk.page.evaluate("lm.galleryFresh()")
        return desk.page.locator("#shot .lm-empty p")

    desk.fill(PROMPT)
    desk.make()
    with monkeypatch.context() as patch:
        for width in (390, 1440):
            desk.tab("Make")
            said(width).get_by_text("Choose one of the pictures, or drop one").wait_for()
        patch.setattr(app, "pictures", tmp_path)
        for width in (1440, 390):
            desk.tab("Make")
            words = said(width)
            words.get_by_text("Drop one from here").wait_for()
            assert "hoose" not in words.inner_text()
            assert desk.page.locator(".lm-shot").count() == 0
    desk.page.set_viewport_size({"width": 1440, "height": 900})


def test_what_is_missing_is_fetched_from_a_site_when_one_says_so(desk, app, tidy, tmp_path, monkeypatch):
    raw = save(load_file(demo_adapters()["ink"].path), {"ss_epoch": "3"})
    with SiteStandIn() as there:
        monkeypatch.setenv("LORA_MIXER_SITE", there.endpoint)
        sha = there.add("a title of theirs.safetensors", raw, model=7, version=70, title="Night signs")
        text = f'a rose <lora:signs:0.5> <lora:gone:0.3>\nSteps: 3, Sampler: Euler, CFG scale: 2, Seed: 9, Lora hashes: "signs: {sha[:10]}, gone: {"ab" * 6}"'
        (tmp_path / "a1111.png").write_bytes(png(parameters=text))
        desk.tab("Gallery")
        desk.upload("#picture-drop", tmp_path / "a1111.png")
        desk.row("signs").get_by_role("note").wait_for()
        ask = desk.page.get_by_role("button", name="for what is missing")
        ask.wait_for()
        assert there.requests == []  # nobody is asked unless one says so
        ask.click()
        desk.page.get_by_text("gone: not known there").wait_for()
        desk.page.get_by_text("signs: Night signs").wait_for()
        desk.page.get_by_label("Get it: signs").click()
        desk.row("signs").get_by_role("note").wait_for(state="detached")
        assert app.library.hashes(app.entry_named("signs").id)["sha256"] == sha
        desk.page.get_by_test_id("lm-said").get_by_role("button", name="Undo").click()
        desk.row("signs").get_by_role("note").wait_for()
        assert app.entry_named("signs") is None


# what is dropped; the dialect; seed, steps, size; rows as (name, UNet weight)
FOREIGN = {
    "sdnext.png": (png(parameters=SDNEXT), "sdnext", ("5", "20", "512"), [("ink", "0.5"), ("oil", "0.9"), ("lines", "1")]),
    "fooocus text.png": (png(parameters=FOOOCUS_TEXT, fooocus_scheme="a1111"), "fooocus", ("77", "30", "1152"),
                         [("sd_xl_offset", "0.1"), ("ink", "-0.5")]),
    "fooocus.png": (png(parameters=FOOOCUS_JSON, fooocus_scheme="fooocus"), "fooocus", ("7777777777777777777", "30", "1152"),
                    [("sd_xl_offset", "0.1"), ("ink", "0")]),
    "invokeai.png": (png(invokeai_metadata=INVOKEAI), "invokeai", ("42", "30", "1024"), [("ink", "0.75"), ("oil", "0")]),
    "comfyui.png": (png(prompt=json.dumps(COMFYUI)), "comfyui", ("156680208700286", "20", "512"),
                    [("ink", "0.8"), ("lines", "0.3"), ("oil", "0")]),
    "swarmui.png": (png(parameters=SWARMUI), "swarmui", ("389463", "20", "1024"), [("ink", "0.8"), ("oil", "0")]),
    "forge.png": (png(parameters=A1111), "a1111", ("1234567890123", "20", "512"), [("ink", "0.8"), ("oil painting", "0.9")]),
}  # fmt: skip


def test_pictures_of_other_programs_give_their_settings(desk, tmp_path):
    shot = desk.page.locator("#shot")
    for name, (data, dialect, fields, rows) in FOREIGN.items():
        desk.add("neon")  # is in none of them, and must go
        (tmp_path / name).write_bytes(data)
        desk.tab("Gallery")
        desk.upload("#picture-drop", tmp_path / name)
        shot.get_by_text(f"Settings read ({dialect})").wait_for()
        desk.page.wait_for_function(
            "seed => document.querySelector('#seed input, #seed textarea').value === seed", arg=fields[0]
        )
        desk.row("neon").wait_for(state="detached")
        found = desk.page.locator("#board .lm-row").evaluate_all("rows => rows.map(row => row.dataset.name)")
        assert found == [row for row, _ in rows], name
        for row, weight in rows:
            assert desk.page.get_by_label(f"{row}: UNet", exact=True).input_value() == weight, (name, row)
            missing = desk.row(row).get_by_role("note")
            assert missing.count() == (row != "ink")  # named, and its place is kept
        desk.tab("Make")
        assert desk.page.get_by_label("Prompt", exact=True).input_value().startswith("a castle")
        for label, value in zip(("Seed", "Steps", "Width"), fields, strict=True):
            assert desk.page.get_by_label(label, exact=True).input_value() == value, (name, label)


EVIL = "<img src=x onerror='window.hacked=1'><script>window.hacked=1</script>${window.hacked=1}{{hacked}}"
SCRIPTS = {
    "a1111": {"parameters": f"{EVIL} <lora:<img src=x onerror='window.hacked=1':0.5> <lora:ink:0.5>\nNegative prompt: {EVIL}\nSteps: 3, Sampler: {EVIL}, CFG scale: 2, Seed: 9, "
              f'Model: {EVIL}, Lora hashes: "{EVIL}: 0123456789ab", {EVIL}: {EVIL}'},
    "comfyui": {"prompt": json.dumps({"1": {"class_type": EVIL, "inputs": {"text": EVIL}}, **json.loads(
        json.dumps(COMFYUI).replace("ink", f"ink {EVIL[:40]}"))})},
    "invokeai": {"invokeai_metadata": json.dumps({**json.loads(INVOKEAI), "positive_prompt": EVIL, "scheduler": EVIL,
                 "loras": [{"model": {"name": EVIL, "hash": EVIL}, "weight": 0.5}]})},
    "swarmui": {"parameters": json.dumps({"sui_image_params": {"prompt": EVIL, "model": EVIL, "loras": [EVIL], "loraweights": ["1"],
                "seed": 5, "steps": 3}})},
}  # fmt: skip


def test_scripts_in_a_pictures_metadata_are_text(desk, tmp_path):
    """Names, prompts, samplers, models and hashes of four programs, in the mix, the fields, messages and the gallery."""
    for name, texts in SCRIPTS.items():
        (tmp_path / f"{name}.png").write_bytes(png(**texts))
        desk.tab("Gallery")
        desk.upload("#picture-drop", tmp_path / f"{name}.png")
        desk.page.locator("#shot").get_by_text(f"Settings read ({name})").wait_for()
        desk.page.locator("#board .lm-row").first.wait_for()
        desk.tab("Make")
        prompt = desk.page.get_by_label("Prompt", exact=True).input_value()
        assert "onerror" in desk.page.locator("#board").inner_text() + prompt, name
        desk.tab("Library")
        assert desk.page.evaluate("window.hacked") is None, name
        assert desk.page.locator("img[src=x]").count() == 0, name


def test_pictures_without_settings_are_refused_with_words(desk, tmp_path):
    (tmp_path / "plain.png").write_bytes(png())
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\xff" * 64)
    desk.tab("Gallery")
    for name, said in (("plain.png", "no known settings"), ("broken.png", "")):
        desk.upload("#picture-drop", tmp_path / name)
        note = desk.page.get_by_test_id("lm-said").filter(has_text=said)
        note.wait_for()
        note.get_by_label("Close this message").click()
