"""Beside the mix, in a real browser: sampler, model, what a picture starts from, words of prompts."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from lora_mixer import load_pipeline
from lora_mixer.errors import LoraMixerError
from lora_mixer.library import base_family
from lora_mixer.picture_metadata import read_picture
from lora_mixer.pictures import SAMPLERS, ModelOptions, fitting_samplers
from lora_mixer.ui.models import Models
from tests.browser import PROMPT, STEPS, Desk, alone, pixels, serving
from tests.models import tiny_sd, tiny_sdxl
from tests.test_ip_adapters import write_adapter


def choose(desk, label, value):
    desk.page.get_by_label(label, exact=True).select_option(value)


def test_a_sampler_its_schedule_and_clip_skip_make_the_picture_and_come_back(desk, app, tmp_path):
    desk.add("ink")
    desk.fill(PROMPT)
    plain = desk.make()
    choose(desk, "Sampler", "DPM++ 2M")
    choose(desk, "Schedule", "karras")
    choose(desk, "Clip skip", "2")
    made = desk.make()
    assert pixels(made) == alone(app, {"ink": 1}, sampler="DPM++ 2M", schedule="karras", clip_skip=1)
    assert pixels(made) != pixels(plain)
    (tmp_path / "made.png").write_bytes(made)
    choose(desk, "Sampler", "Euler a")  # which cannot have karras
    assert desk.page.get_by_label("Schedule", exact=True).input_value() == ""
    assert "karras" not in desk.page.get_by_label("Schedule", exact=True).inner_text()
    choose(desk, "Clip skip", "1")

    desk.tab("Gallery")
    desk.upload("#picture-drop", tmp_path / "made.png")
    desk.page.wait_for_function("lm.more.value.sampler === 'DPM++ 2M'")
    assert desk.page.evaluate("[lm.more.value.schedule, lm.more.value.clip_skip]") == ["karras", 2]
    assert desk.page.locator("#shot .lm-problem").count() == 0
    desk.tab("Make")
    assert pixels(desk.make()) == pixels(made)
    desk.page.reload()
    desk.page.locator("#board h2").wait_for()
    desk.page.wait_for_function("lm.more?.value.sampler === 'DPM++ 2M'")


def test_the_samplers_offered_are_those_that_can_carry_the_model(app, desk):
    wanted = fitting_samplers(app.mixer.pipe.scheduler)
    assert dict(app.models.facts.samplers) == wanted
    assert 15 < len(wanted) < len(SAMPLERS) + 1
    assert "Flow Euler" not in wanted
    desk.page.wait_for_function("document.querySelectorAll('#sampler option').length > 5")
    shown = desk.page.locator("#sampler option").evaluate_all("all => all.map(one => one.value)")
    assert shown == list(wanted)


@pytest.mark.parametrize(
    ("more", "field", "words"),
    [
        ({"sampler": "no such"}, "sampler", "is unknown"),
        ({"schedule": "nonsense"}, "schedule", "is unknown"),
        ({"sampler": "Euler a", "schedule": "karras"}, "schedule", "cannot have karras"),
        ({"clip_skip": 40}, "clip-skip", "from 1 to 12"),
        ({"start": "0" * 64}, "", "not here any more"),
        ({"start": "../../etc/passwd"}, "", "not an id"),
    ],
)
def test_what_a_browser_sends_beside_the_fields_is_checked(app, more, field, words):
    from lora_mixer.ui.handlers.make import read_more

    with pytest.raises(LoraMixerError, match=words) as caught:
        read_more(app, more)
    assert getattr(caught.value, "field", "") == field


def test_weights_of_words_change_the_picture(desk, app):
    desk.fill("a (castle:1.4)")
    made = desk.make()
    assert pixels(made) == alone(app, {}, prompt="a (castle:1.4)")
    assert pixels(made) != alone(app, {}, prompt="a castle")


def test_words_are_made_stronger_by_keys_and_taken_back(desk):
    field = desk.page.get_by_label("Prompt", exact=True)
    field.fill("a red rose, night")
    field.press("Home")
    for _ in range(3):
        field.press("ArrowRight")
    field.press("Control+ArrowUp")
    assert field.input_value() == "a (red:1.1) rose, night"
    field.press("Control+ArrowUp")
    assert field.input_value() == "a (red:1.2) rose, night"
    for _ in range(2):
        field.press("Control+ArrowDown")
    assert field.input_value() == "a red rose, night"
    desk.page.get_by_label("Undo", exact=True).first.click()
    assert field.input_value() == "a (red:1.1) rose, night"


def test_words_and_tags_are_completed_by_keys(desk, app):
    field = desk.page.get_by_label("Prompt", exact=True)
    words = desk.page.locator("#prompt-words li")
    field.click()
    desk.page.keyboard.type("a boat, waterc")
    words.first.wait_for()
    assert words.first.locator("b").inner_text() == "watercolor painting"
    field.press("ArrowDown")
    assert words.first.get_attribute("aria-selected") == "true"
    field.press("Enter")
    assert field.input_value() == "a boat, watercolor painting"
    desk.page.keyboard.type(" <lora:hal")
    words.first.wait_for()
    field.press("ArrowDown")
    field.press("Tab")
    assert field.input_value() == "a boat, watercolor painting <lora:halftone:1>"
    desk.page.keyboard.type(", ink")
    words.first.wait_for()
    field.press("Escape")
    assert not words.first.is_visible()
    field.fill("a boat <lora:halftone:1>")
    desk.fill("a boat <lora:halftone:1>")
    assert read_picture(desk.make()).mix.names == ("halftone",)


def test_prompts_of_before_come_back(desk):
    for prompt in ("a first one", "a second one"):
        desk.fill(prompt)
        desk.make()
    desk.page.get_by_label("Earlier prompts").click()
    desk.page.get_by_role("button", name="a first one").click()
    field = desk.page.get_by_label("Prompt", exact=True)
    assert field.input_value() == "a first one"
    desk.page.get_by_label("Undo", exact=True).first.click()
    assert field.input_value() == "a second one"


def test_a_picture_is_started_from_with_the_same_mix_and_only_a_part_is_made_anew(desk, app, tmp_path):
    desk.add("ink")
    desk.fill(PROMPT)
    first = desk.make()
    desk.page.get_by_role("button", name="Start from it").click()
    desk.page.locator("#more .lm-startpic").wait_for()
    desk.page.get_by_label("Change", exact=True).fill("0.5")
    made = desk.make()
    start = desk.page.evaluate("lm.more.value.start")
    assert pixels(made) == alone(app, {"ink": 1}, image=str(app.starts.path(start)), strength=0.5)
    about = read_picture(made)
    assert about.strength == 0.5
    assert about.image == f"{start}.png"

    desk.page.get_by_role("button", name="Only a part").click()
    desk.page.get_by_label("What is made anew: left half").click()
    desk.page.get_by_role("button", name="Use this mask").click()
    desk.page.get_by_role("button", name="All of it").wait_for()
    desk.page.get_by_label("Change", exact=True).fill("0.95")
    part = desk.make()
    before, after = (
        np.frombuffer(pixels(each), "uint8").reshape(*app.size[::-1], 3) for each in (first, part)
    )
    left, right = (
        np.abs(before[:, half].astype(int) - after[:, half]).mean()
        for half in (slice(0, app.size[0] // 2 - 8), slice(app.size[0] // 2 + 8, None))
    )
    assert left > 4 * right
    (tmp_path / "part.png").write_bytes(part)

    desk.page.get_by_role("button", name="Start from noise").click()
    assert pixels(desk.make()) == pixels(first)
    desk.tab("Gallery")
    desk.upload("#picture-drop", tmp_path / "part.png")
    desk.page.wait_for_function("lm.more.value.inpaint !== ''")
    assert desk.page.locator("#shot .lm-problem").count() == 0
    desk.tab("Make")
    assert pixels(desk.make()) == pixels(part)


def test_a_picture_of_ones_own_is_started_from(desk, app, tmp_path):
    Image.new("RGB", (300, 200), (200, 30, 30)).save(tmp_path / "photo.jpg")
    (tmp_path / "no picture.png").write_bytes(b"no picture")
    desk.fill(PROMPT)
    with desk.page.expect_file_chooser() as chooser:
        desk.page.get_by_role("button", name="Start from a picture").click()
    chooser.value.set_files(tmp_path / "no picture.png")
    assert "not a picture" in desk.toast()
    desk.give("#more", tmp_path / "photo.jpg")
    desk.page.locator("#more .lm-startpic").wait_for()
    width, height = (
        int(desk.page.get_by_label(each, exact=True).input_value()) for each in ("Width", "Height")
    )
    assert (width, height) == (192, 128)  # its shape, at what the model likes
    made = desk.make()
    assert app.starts.open(read_picture(made).image.removesuffix(".png")).size == (300, 200)


def test_the_model_is_changed_for_all_and_a_broken_one_changes_nothing(chromium, tmp_path):
    pipe = tiny_sd()
    pipe.save_pretrained(tmp_path / "models" / "tiny one")
    pipe.save_pretrained(tmp_path / "models" / "broken one")
    (tmp_path / "models" / "broken one" / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(
        b"\x08" * 64
    )
    context = chromium.new_context()
    served = serving(tmp_path / "out", tmp_path / "cache", models=(tmp_path / "models",))
    with served as (url, app):
        desk, other = Desk(context, url), Desk(context, url)
        desk.add("ink")
        desk.fill(PROMPT)
        before = desk.make()

        choose(
            desk,
            "Model",
            {"label": "broken one"}["label"]
            and desk.page.locator("#model option", has_text="broken one").get_attribute("value"),
        )
        desk.page.locator("#more .lm-problem").wait_for()
        assert str(tmp_path) not in desk.page.content()
        assert pixels(desk.make()) == pixels(before)

        number = app.models.number
        choose(desk, "Model", desk.page.locator("#model option", has_text="tiny one").get_attribute("value"))
        for each in (desk, other):
            each.page.locator("#top").get_by_text("tiny one", exact=True).wait_for()
        assert app.base == base_family(pipe)
        desk.row("ink").get_by_role("note").wait_for()  # made for another base now
        other.tab("Library")
        other.page.locator(".lm-card[aria-label=ink]").get_by_role("note").wait_for()
        desk.page.wait_for_function(
            "size => document.querySelector('#width input').value === size", arg=str(app.size[0])
        )
        desk.page.get_by_label("Remove ink").click()
        assert read_picture(desk.make()).model == "tiny one"
        with pytest.raises(LoraMixerError, match="The model was changed to tiny one while this waited"):
            app.models.same(number)

        for _ in range(2):  # the row that was removed, and the model before
            desk.page.get_by_label("Undo", exact=True).first.click()
        desk.page.locator("#top").get_by_text("demo", exact=True).wait_for()
        desk.row("ink").get_by_role("note").wait_for(state="detached")
        desk.page.wait_for_function(
            "size => document.querySelector('#width input').value === size", arg=str(app.size[0])
        )
        assert pixels(desk.make()) == pixels(before)
    context.close()


def test_a_picture_is_followed_where_the_model_has_an_ip_adapter(desks, tmp_path):
    pipe = tiny_sd()
    pipe.save_pretrained(tmp_path / "model")
    loading = ModelOptions(
        str(tmp_path / "model"), ip_adapter=str(write_adapter(pipe, tmp_path / "ip")), device="cpu"
    )
    Image.new("RGB", (40, 40), (200, 30, 30)).save(tmp_path / "red.png")
    served = serving(tmp_path / "out", tmp_path / "cache", model=loading.model, loading=loading)
    with served as (url, _):
        desk = Desk(desks, url)
        for label in ("Width", "Height"):
            desk.page.get_by_label(label, exact=True).fill("64")
        desk.fill(PROMPT)
        free = desk.make()  # follows none, and is made all the same
        assert read_picture(free).ip_adapter_scale == 0
        desk.give("#guide", tmp_path / "red.png")
        desk.page.locator("#guide .lm-startpic").wait_for()
        desk.page.get_by_label("How closely").fill("0.9")
        led = desk.make()
        assert pixels(led) != pixels(free)
        assert read_picture(led).ip_adapter_scale == 0.9
        desk.page.get_by_role("button", name="Follow none").click()
        assert pixels(desk.make()) == pixels(free)
        (tmp_path / "led.png").write_bytes(led)
        desk.tab("Gallery")
        desk.upload("#picture-drop", tmp_path / "led.png")
        desk.page.wait_for_function("lm.more.value.guide_scale === 0.9 && lm.more.value.guide")
        assert desk.page.locator("#shot .lm-problem").count() == 0
        desk.tab("Make")
        assert pixels(desk.make()) == pixels(led)
        desk.page.close()


@pytest.mark.parametrize(
    "make", [tiny_sd, tiny_sdxl, lambda: load_pipeline("demo")], ids=["sd", "sdxl", "demo"]
)
def test_a_model_that_is_being_loaded_is_known_by_its_configuration(make, tmp_path, monkeypatch):
    import threading

    from lora_mixer.mixes import block_layouts
    from lora_mixer.ui import models

    pipe = make()
    pipe.save_pretrained(tmp_path / "model")
    free = threading.Event()
    load = models.load_pipeline
    monkeypatch.setattr(models, "START_WAIT", 0.01)
    monkeypatch.setattr(models, "load_pipeline", lambda options: free.wait(60) and load(options))
    told = []
    waiting = Models(ModelOptions(str(tmp_path / "model")), (), 4, lambda: None)
    assert waiting.loading == "model"
    assert waiting.facts.base == base_family(pipe)
    assert waiting.facts.layout == block_layouts({"unet": pipe.unet})["unet"]
    with pytest.raises(LoraMixerError, match="stopped"):
        waiting.wait(told.append, lambda: True)
    assert told == [{"state": "queued", "ahead": 0, "loading": "model"}]
    free.set()
    waiting.wait(told.append, lambda: False)
    assert not waiting.loading
    assert waiting.facts.samplers == fitting_samplers(pipe.scheduler)


def test_a_model_that_cannot_be_loaded_is_told_to_whoever_wants_a_picture(tmp_path):
    from lora_mixer.pictures import ModelOptions

    with pytest.raises(LoraMixerError, match="could not be loaded"):
        Models(ModelOptions(str(tmp_path / "none")), (), 4, lambda: None)
    tiny_sd().save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"\x08" * 64)
    broken = Models(ModelOptions(str(tmp_path / "model")), (), 4, lambda: None)
    with pytest.raises(LoraMixerError, match="could not be loaded"):
        broken.wait(lambda _: None, lambda: False)
    assert "could not be loaded" in broken.problem
    assert str(tmp_path) not in broken.problem


def test_a_first_visitor_clicks_a_subject_or_a_mix(chromium, site, app):
    for name, names, prompt in (
        ("castle", (), "castle"),
        ("Neon pixels", ("neon", "pixel"), "owl, neon glow, pixel art"),
    ):
        context = chromium.new_context()
        desk = Desk(context, site[0])
        first = desk.page.locator(".lm-first")
        first.wait_for()
        desk.page.get_by_label("Steps", exact=True).fill(str(STEPS))
        first.get_by_role("button", name=name, exact=True).click()
        desk.page.locator("#stage .lm-final").wait_for()
        made = read_picture(desk.fetch(desk.shown()))
        assert (made.prompt, made.mix.names) == (prompt, names)
        context.close()


def test_every_ready_mix_is_one_of_the_demos(app):
    from lora_mixer import Mix, demo_adapters
    from lora_mixer.ui.handlers.model import READY, first_screen

    found = first_screen(app)
    assert [each["title"] for each in found["mixes"]] == [title for title, _, _ in READY]
    assert len(READY) == 3
    for each in found["mixes"]:
        assert set(Mix.of(each["mix"]).names) <= set(demo_adapters())
