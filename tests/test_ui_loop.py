"""One gesture after the other: fields that go back, weights that hold a sum, half of two pictures, and nothing typed is lost."""

from __future__ import annotations

import shutil

import pytest

from lora_mixer.errors import MixError
from lora_mixer.ui.handlers.mix import halfway_of
from lora_mixer.ui.mix_rows import halfway, read_text
from tests.browser import PROMPT, STEPS
from tests.test_ui_kept import reload


def weights(desk, *names):
    return [float(desk.page.get_by_label(f"{name}: UNet", exact=True).input_value()) for name in names]


def value(desk, label):
    return desk.page.get_by_label(label, exact=True).input_value()


# --- two pictures into one -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "half"),
    [
        ("ink:1", "pixel:0.6", "ink:0.5, pixel:0.3"),
        ("ink:1, neon:0.4", "ink:0.2", "ink:0.6, neon:0.2"),
        ("ink:1", "ink:-1", "ink:0"),
        ("ink:0.8,te=0.2", "ink:0.4", "ink:0.6,te=0.3"),
        ("ink:0.8,te=0.2", "", "ink:0.4,te=0.1"),
        ("ink:1,schedule=linear(0, 1)", "pixel:1", "ink:0.5,schedule=linear(0, 1), pixel:0.5"),
        ("ink:0.2,start=0.5", "ink:1,schedule=linear(0, 1)", "ink:0.6,schedule=linear(0, 1)"),
    ],
)
def test_half_of_two_mixes_is_the_mean_of_their_weights(app, first, second, half):
    rows, only = halfway(read_text(first, app), read_text(second, app))
    assert rows.mix(app) == read_text(half, app).mix(app)
    assert only == (("ink",) if "start" in first else ())


def test_the_method_of_two_pictures_can_be_only_ones(app):
    rows, only = halfway(read_text("ink:1", app), read_text("ink:1 | switch(tau=5)", app))
    assert (rows.method, only) == ("", ("the method",))


def test_what_a_browser_sends_as_two_pictures_is_checked(app):
    with pytest.raises(MixError):
        halfway_of(app, {"first": "ink:(", "second": ""})


def test_two_pictures_of_the_session_are_mixed_and_it_is_taken_back(desk):
    desk.add("ink")
    desk.fill(PROMPT)
    desk.make()
    desk.page.get_by_label("Remove ink").click()
    desk.add("pixel")
    desk.weight("pixel", 0.6)
    desk.make()
    desk.page.get_by_role("button", name="Compare", exact=True).click()
    desk.page.locator("#stage .lm-pick").first.click()
    desk.page.get_by_role("button", name="Mix the two").click()
    desk.row("ink").wait_for()
    assert weights(desk, "ink", "pixel") == [0.5, 0.3]
    assert "half of each" in desk.toast()
    desk.page.get_by_test_id("lm-said").get_by_role("button", name="Undo").click()
    desk.row("ink").wait_for(state="detached")
    assert weights(desk, "pixel") == [0.6]


# --- weights ---------------------------------------------------------------------------------------------------------


def test_weights_are_held_at_a_sum_while_one_is_moved(desk):
    desk.add("ink", "pixel", "neon")
    desk.weight("ink", 0.5)
    desk.page.get_by_role("button", name="Hold the sum").click()
    assert weights(desk, "ink", "pixel", "neon") == [0.2, 0.4, 0.4]
    desk.weight("ink", 0.8)
    assert weights(desk, "ink", "pixel", "neon") == [0.8, 0.1, 0.1]
    desk.weight("ink", 3)
    desk.page.get_by_label("ink: UNet", exact=True).blur()
    assert weights(desk, "ink", "pixel", "neon") == [1, 0, 0]
    desk.weight("pixel", -0.5)
    assert weights(desk, "ink", "pixel", "neon") == [0.5, -0.5, 0]
    desk.page.get_by_label("Remove ink").click()
    assert weights(desk, "pixel", "neon") == [-1, 0]
    desk.page.get_by_role("button", name="Hold the sum").click()
    desk.weight("neon", 0.7)
    assert weights(desk, "pixel", "neon") == [-1, 0.7]


def test_random_weights_lie_in_their_range_and_are_one_step_back(desk):
    desk.add("ink", "pixel", "neon", "lumo")
    desk.page.get_by_label("Random from").fill("-0.5")
    desk.page.get_by_label("Random to").fill("0.25")
    desk.page.get_by_role("button", name="Random", exact=True).first.click()
    drawn = weights(desk, "ink", "pixel", "neon", "lumo")
    assert all(-0.5 <= weight <= 0.25 for weight in drawn)
    assert len(set(drawn)) > 1
    desk.page.get_by_label("Undo", exact=True).first.click()
    assert weights(desk, "ink", "pixel", "neon", "lumo") == [1, 1, 1, 1]


def test_trigger_words_come_and_go_with_their_adapter_where_one_likes_that(desk):
    desk.add("ink")
    desk.page.get_by_label("Prompt", exact=True).fill("a boat, at night")
    assert value(desk, "Prompt") == "a boat, at night"
    desk.page.get_by_role("button", name="Words come along").click()
    desk.add("pixel")
    word = desk.row("pixel").locator(".lm-chip").first.inner_text().removeprefix("+ ")
    assert value(desk, "Prompt") == f"a boat, at night, {word}"
    desk.page.get_by_label("Remove pixel").click()
    assert value(desk, "Prompt") == "a boat, at night"
    for _ in range(2):
        desk.page.get_by_label("Undo", exact=True).first.click()
    desk.row("pixel").wait_for()
    assert value(desk, "Prompt") == f"a boat, at night, {word}"
    desk.page.get_by_role("button", name="Words come along").click()
    desk.page.get_by_label("Remove pixel").click()
    assert value(desk, "Prompt") == f"a boat, at night, {word}"


def test_eight_rows_and_the_picture_are_seen_at_once(desk, app, tidy):
    shutil.copy(app.entry_named("ink").path, app.uploads / "the eighth.safetensors")
    app.scan(wait=60)
    desk.fill(PROMPT)
    desk.make()
    desk.add("ink", "pixel", "neon", "lumo", "halftone", "blueprint", "watercolor", "the eighth")
    desk.page.evaluate("scrollTo(0, 0)")
    places = desk.page.locator("#board .lm-row, #stage .lm-canvas img").evaluate_all(
        "all => all.map(one => one.getBoundingClientRect().toJSON())"
    )
    assert len(places) == 9
    assert all(place["top"] >= 0 and place["bottom"] <= 900 for place in places)
    assert desk.page.get_by_label("ink: Text", exact=True).count() == 0  # folded while it is the UNet's
    desk.page.get_by_label("More for ink").click()
    desk.page.get_by_label("ink: Text", exact=True).fill("0.3")
    desk.page.get_by_label("More for ink").click()
    assert value(desk, "ink: Text") == "0.3"


# --- fields ----------------------------------------------------------------------------------------------------------


def test_all_fields_go_back_step_by_step(desk):
    keys = desk.page.keyboard
    desk.page.get_by_label("Prompt", exact=True).click()
    keys.type("a boat")
    desk.page.get_by_label("Steps", exact=True).fill("9")
    desk.page.get_by_label("Guidance", exact=True).fill("4.5")
    seed = value(desk, "Seed")
    desk.page.locator("#seed-random").click()
    desk.page.wait_for_function("seed => lm.fields.get('seed') !== seed", arg=seed)
    desk.page.get_by_label("Keep this seed").click()
    desk.tab("Compare")
    desk.page.get_by_label("Left to right").select_option("seed")
    desk.page.locator("#columns-values textarea").fill("1-3")
    desk.tab("Export")
    desk.page.get_by_label("Rank (0: exact)").fill("7")
    desk.page.get_by_label("Rank (0: exact)").press("Tab")

    def state():
        return desk.page.evaluate(
            """() => ({ ...lm.fields.all(), rank: document.querySelector("#export-rank input").value,
                kind: document.querySelector("#columns-kind select").value, values: document.querySelector("#columns-values textarea").value })"""
        )

    before = {**state()}
    desk.page.locator("#export-button").focus()
    told = [
        ("rank", "0"), ("values", "0-1 (+0.5)"), ("kind", "adapter's weight"), ("seed-lock", True), ("seed", seed),
        ("guidance", "3"), ("steps", "20"), ("prompt", ""),
    ]  # fmt: skip
    for name, old in told:
        keys.press("Control+z")
        before[name] = old
        desk.page.wait_for_function(
            "([name, old]) => String({ ...lm.fields.all(), rank: document.querySelector('#export-rank input').value, "
            "kind: document.querySelector('#columns-kind select').value, "
            "values: document.querySelector('#columns-values textarea').value }[name]) === old",
            arg=[name, {True: "true"}.get(old, old)],
        )
        assert state() == before


def test_ctrl_z_in_a_number_takes_its_last_change_back(desk):
    field = desk.page.get_by_label("Steps", exact=True)
    field.fill("9")
    desk.page.keyboard.press("Control+z")
    assert field.input_value() == "20"


def test_fields_of_compare_and_export_are_there_after_a_reload(desk):
    desk.add("ink", "pixel")
    desk.tab("Compare")
    desk.page.get_by_label("Top to bottom").select_option("adapter's weight")
    desk.page.locator("#rows-adapter select").select_option("pixel")
    desk.page.locator("#rows-values textarea").fill("0.25, 0.75")
    desk.tab("Export")
    desk.page.locator("#export-name input").fill("of mine")
    reload(desk)
    desk.tab("Compare")
    desk.page.locator("#rows-adapter select").wait_for()
    assert desk.page.locator("#rows-kind select").input_value() == "adapter's weight"
    assert desk.page.locator("#rows-adapter select").input_value() == "pixel"
    assert desk.page.locator("#rows-values textarea").input_value() == "0.25, 0.75"
    desk.tab("Export")
    assert desk.page.locator("#export-name input").input_value() == "of mine"


def test_settings_of_a_picture_are_one_step_back(desk):
    desk.add("ink")
    desk.fill("a lighthouse", seed=7)
    desk.make()
    desk.page.get_by_label("Remove ink").click()
    desk.add("neon")
    desk.fill("a rose", seed=8, steps=STEPS + 1)
    desk.tab("Gallery")
    desk.page.locator(".lm-shot").first.click()
    desk.page.get_by_role("button", name="Use these settings").click()
    desk.row("ink").wait_for()
    desk.page.wait_for_function("lm.fields.get('prompt') === 'a lighthouse' && lm.fields.get('seed') === '7'")
    assert "those of the picture now" in desk.toast()
    desk.page.get_by_label("Undo", exact=True).first.click()
    desk.row("neon").wait_for()
    assert desk.row("ink").count() == 0
    desk.page.wait_for_function(
        "steps => lm.fields.get('prompt') === 'a rose' && lm.fields.get('seed') === '8' && lm.fields.get('steps') === steps",
        arg=str(STEPS + 1),
    )


@pytest.mark.slowed
def test_what_is_wrong_with_a_field_of_export_or_compare_stands_at_it(desk):
    desk.add("ink")
    desk.tab("Export")
    desk.page.locator("#export-name input").fill("../elsewhere")
    desk.page.locator("#export-button").click()
    desk.page.locator("#export-name .lm-fielderror").wait_for()
    assert desk.page.locator("#export-name input").get_attribute("aria-invalid") == "true"
    assert desk.page.get_by_test_id("toast-body").count() == 0
    desk.tab("Compare")
    desk.page.locator("#columns-values textarea").fill("heavy")
    desk.page.locator("#grid-button").click()
    desk.page.locator("#columns-values .lm-fielderror").get_by_text("heavy").wait_for()


# --- pictures and details --------------------------------------------------------------------------------------------


def test_the_picture_stays_until_the_next_one_can_be_seen(desk):
    desk.fill(PROMPT)
    desk.make()
    first = desk.shown()
    held = []
    desk.page.route("**/pictures/*.png", lambda route: held.append(route))  # noqa: PLW0108 -- it keeps something on it
    desk.fill(PROMPT, seed=2)
    desk.page.locator("#make-button").click()
    desk.page.wait_for_function("lm.store.get('strip').length === 2")
    desk.state("done").wait_for()
    # what was seen last, the picture before or the last preview, is seen still
    seen = desk.page.locator("#stage .lm-canvas img")
    assert seen.count() == 1
    assert seen.evaluate("image => image.naturalWidth > 0")
    for route in held:
        route.continue_()
    desk.page.wait_for_function(
        "first => { const now = document.querySelector('#stage .lm-final'); return now && !now.src.endsWith(first) && now.complete; }",
        arg=first,
    )
    assert desk.page.locator("#stage .lm-dim").count() == 0


def test_notes_that_are_typed_outlive_a_rename_and_a_reload(desk, app, tidy):
    shutil.copy(app.entry_named("ink").path, app.uploads / "first name.safetensors")
    app.scan(wait=60)
    desk.tab("Library")
    desk.page.evaluate("lm.cardsFresh()")
    desk.page.get_by_role("button", name="Details of first name", exact=True).click()
    desk.page.get_by_label("Notes").fill("half a thou")
    desk.page.get_by_label("Labels", exact=True).fill("new, dark")
    desk.page.locator("summary").get_by_text("File", exact=True).click()
    desk.page.get_by_label("New name").fill("second name")
    desk.page.get_by_role("button", name="Rename").click()
    desk.page.get_by_role("heading", name="second name").wait_for()
    assert value(desk, "Notes") == "half a thou"
    assert value(desk, "Labels") == "new, dark"
    reload(desk)
    desk.tab("Library")
    desk.page.get_by_role("button", name="Details of second name", exact=True).click()
    assert value(desk, "Notes") == "half a thou"
    desk.page.get_by_role("button", name="Keep defaults").click()
    assert "Kept" in desk.toast()
    assert app.entry_named("second name").notes == "half a thou"
    assert desk.page.evaluate("JSON.stringify(lm.store.get('typed'))") == "{}"


def test_of_sliders_let_go_one_after_the_other_the_last_draft_is_seen(desk, app):
    desk.add("ink")
    desk.fill(PROMPT)
    desk.make()
    desk.page.evaluate(
        "() => { window.drafts = []; const show = lm.showDraft; lm.showDraft = each => { drafts.push(each.mix); show(each); }; }"
    )
    slider = desk.page.get_by_label("ink: UNet slider")
    area = slider.bounding_box()
    for share in (0.9, 0.6, 0.45):
        desk.page.mouse.move(area["x"] + area["width"] * 0.66, area["y"] + area["height"] / 2)
        desk.page.mouse.down()
        desk.page.mouse.move(area["x"] + area["width"] * share, area["y"] + area["height"] / 2, steps=3)
        desk.page.mouse.up()
        assert (
            desk.page.locator("#stage .lm-canvas img").count() == 1
        )  # the old one stays until the new one is there
    last = f"ink:{weights(desk, 'ink')[0]:g}"
    desk.page.wait_for_function("last => drafts.at(-1) === last", arg=last)
    desk.page.locator("#stage .lm-draftpic").wait_for()
    assert len(set(desk.page.evaluate("drafts"))) <= 3
    assert last != "ink:1"
