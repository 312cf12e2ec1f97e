"""Nothing that a person did is lost: by reloads, by slow connections, by a click on Delete, by an error, by another Make."""

from __future__ import annotations

import json

import pytest

from lora_mixer import Mix
from lora_mixer.picture_metadata import read_picture
from tests.browser import PROMPT, STEPS, Desk, held, pixels

MISSING = "gone with the wind"


def names(desk):
    return desk.page.locator("#board .lm-row").evaluate_all("rows => rows.map(row => row.dataset.name)")


def reload(desk):
    desk.page.on("dialog", lambda dialog: dialog.accept())  # a running job asks before one leaves
    with desk.waiting():
        desk.page.reload()
        desk.page.locator("#board h2").wait_for()
        desk.page.wait_for_function("document.querySelector('#prompt textarea')")


def take_text(desk, text):
    desk.open_share()
    desk.page.locator("#mix-text textarea").fill(text)
    desk.page.locator("#mix-apply").click()


def answered(desk):
    """Wait until the server has answered all that was asked before, and a little more could have come of it."""
    desk.page.evaluate("async () => { for (let turn = 0; turn < 3; turn++) await lm.ask('described', ''); }")


@pytest.mark.slowed
def test_a_reload_gives_everything_back(desk):
    desk.add("ink", "pixel")
    take_text(desk, f"ink:0.3, {MISSING}:0.7\noff: pixel:0.6")
    desk.row(MISSING).wait_for()
    desk.fill("a rose in the rain", seed=77, count=2)
    desk.make()
    desk.page.get_by_label("Negative prompt").fill("blurry")
    strip = desk.page.locator("#stage .lm-pick")
    assert strip.count() == 2
    desk.tab("Library")

    reload(desk)

    desk.row("pixel").wait_for(state="attached")
    assert names(desk) == ["ink", MISSING, "pixel"]
    assert desk.page.get_by_label("ink: UNet", exact=True).input_value() == "0.3"
    assert desk.page.get_by_label("pixel: UNet", exact=True).input_value() == "0.6"
    assert not desk.row("pixel").get_by_role("switch").is_checked()
    desk.row(MISSING).get_by_role("note").wait_for()
    desk.page.get_by_role("searchbox", name="Search").wait_for()  # the tab, too
    desk.tab("Make")
    desk.page.wait_for_function("document.querySelector('#prompt textarea').value === 'a rose in the rain'")
    assert desk.page.get_by_label("Negative prompt").input_value() == "blurry"
    for label, value in (("Seed", "77"), ("Steps", str(STEPS)), ("Pictures", "2")):
        assert desk.page.get_by_label(label, exact=True).input_value() == value, label
    assert strip.count() == 2


def test_a_job_goes_on_while_its_page_is_loaded_again(desk, app, monkeypatch):
    desk.fill(PROMPT, seed=5, steps=6)
    with held(app, monkeypatch) as gate:
        desk.page.locator("#make-button").click()
        desk.page.locator("#stage .lm-preview").wait_for()
        asked = []
        desk.page.on("dialog", lambda dialog: asked.append(dialog.type))
        reload(desk)
        assert asked == ["beforeunload"]  # leaving during a job asks
        desk.state("running").wait_for()
        gate.open()
        desk.state("done").wait_for()
        desk.page.locator("#stage .lm-final").wait_for()
    made = read_picture(desk.fetch(desk.shown()))
    assert (made.seed, made.steps) == (5, 6)


def test_each_visitor_begins_with_a_seed_of_its_own_and_sees_what_was_saved_meanwhile(
    desk, app, chromium, site
):
    app.mixes.save("of this morning", "ink:0.5")
    context = chromium.new_context()
    other = Desk(context, site[0])
    seeds = {each.page.get_by_label("Seed", exact=True).input_value() for each in (desk, other)}
    assert len(seeds) == 2
    other.open_share()
    other.page.get_by_label("Load the mix of this morning").wait_for()
    app.mixes.save("of noon", "ink:0.5")
    other.page.reload()
    other.open_share()
    other.page.get_by_label("Load the mix of noon").wait_for()
    context.close()


@pytest.mark.slowed
def test_a_saved_mix_has_its_rows_that_are_off_and_missing(desk, app):
    take_text(desk, f"{MISSING}:0.7,te=0.1\noff: pixel:0.6,schedule=0@0,1@0.5")
    desk.row("pixel").wait_for()
    desk.page.locator("#mix-name input").fill("with gaps")
    desk.page.locator("#mix-save").click()
    assert "Saved with gaps" in desk.toast()
    assert app.mixes.load("with gaps") == Mix.of(f"{MISSING}:0.7,te=0.1")

    take_text(desk, "ink:1")
    desk.row("pixel").wait_for(state="detached")
    desk.page.locator("#mix-save").click()
    desk.page.get_by_text("There is a mix with gaps already.").wait_for()
    desk.page.get_by_role("button", name="Keep it").click()
    assert app.mixes.load("with gaps") == Mix.of(f"{MISSING}:0.7,te=0.1")

    desk.page.get_by_label("Load the mix with gaps").click()
    desk.row("pixel").wait_for()
    assert names(desk) == [MISSING, "pixel"]
    assert not desk.row("pixel").get_by_role("switch").is_checked()
    assert desk.page.get_by_label(f"{MISSING}: Text", exact=True).input_value() == "0.1"
    desk.page.wait_for_function(
        "document.querySelector('#mix-text textarea').value.includes('off: pixel:0.6,schedule=')"
    )


@pytest.mark.slowed
def test_words_clicked_and_typed_fast_all_stay(desk):
    desk.add("ink", "pixel", "halftone")
    desk.page.get_by_label("Prompt", exact=True).fill("a boat")
    desk.page.evaluate(  # faster than an answer of the server; Playwright's own clicks wait for a slow page
        """() => ["ink", "pixel", "halftone"].forEach(name =>
            document.querySelector(`#board [data-name="${name}"] .lm-chip`).click())"""
    )
    desk.page.get_by_label("Prompt", exact=True).press("End")
    desk.page.keyboard.type(", at night")
    answered(desk)
    text = desk.page.get_by_label("Prompt", exact=True).input_value()
    assert text.startswith("a boat, ")
    assert text.endswith(", at night")
    assert len(text.split(", ")) == 5


@pytest.mark.slowed
def test_adding_touches_no_other_row(desk):
    desk.add("ink")
    desk.tab("Library")
    desk.page.evaluate(
        """() => {
            for (const name of ["pixel", "halftone", "neon", "lumo", "watercolor"])
                document.querySelector(`[aria-label="Add ${name} to the mix"]`).click();
            const weight = document.querySelector("[aria-label='ink: UNet']");
            weight.value = "0.35";
            weight.dispatchEvent(new Event("input", { bubbles: true }));
        }"""
    )
    answered(desk)
    assert desk.page.get_by_label("ink: UNet", exact=True).input_value() == "0.35"
    assert names(desk) == ["ink", "pixel", "halftone", "neon", "lumo", "watercolor"]


@pytest.mark.slowed
def test_a_deleted_picture_comes_back(desk, app):
    desk.fill(PROMPT, seed=31)
    made = desk.make()
    before = sorted(path.name for path in app.pictures.glob("*.png"))
    desk.tab("Gallery")
    desk.page.locator(".lm-shot").first.click()
    desk.page.locator("#shot").get_by_role("button", name="Delete").click()
    assert "trash" in desk.toast()
    assert len(list(app.pictures.glob("*.png"))) == len(before) - 1
    desk.page.get_by_test_id("lm-said").get_by_role("button", name="Undo").click()
    desk.page.locator("#shot .lm-final").wait_for()
    assert sorted(path.name for path in app.pictures.glob("*.png")) == before
    assert desk.fetch(desk.page.locator("#shot .lm-final").get_attribute("src")) == made


@pytest.mark.slowed
def test_ctrl_z_goes_back_from_wherever_the_focus_fell(desk):
    desk.add("ink", "pixel")
    desk.row("ink").get_by_role("switch").focus()
    desk.page.keyboard.press("Space")
    assert desk.page.evaluate("document.activeElement.ariaLabel") == "ink on"
    desk.page.keyboard.press("Control+z")
    assert desk.row("ink").get_by_role("switch").is_checked()
    desk.page.get_by_label("Remove ink").click()
    assert desk.page.evaluate("document.activeElement.ariaLabel") == "Remove pixel"
    desk.page.keyboard.press("Control+z")
    assert names(desk) == ["ink", "pixel"]


@pytest.mark.slowed
def test_ctrl_enter_presses_what_is_seen(desk, app):
    desk.add("ink")
    desk.fill(PROMPT)
    desk.tab("Compare")
    before = len(list(app.pictures.glob("*.png")))
    desk.page.keyboard.press("Control+Enter")
    with desk.waiting():
        desk.state("done", "#compare-state").wait_for()
    assert len(list(app.pictures.glob("*.png"))) == before + 2


@pytest.mark.slowed
def test_an_error_leaves_the_picture_names_its_field_and_is_seen_each_time(desk):
    desk.fill(PROMPT)
    desk.make()
    shown = desk.shown()
    desk.page.get_by_label("Steps", exact=True).fill("0")
    desk.page.get_by_label("Steps", exact=True).blur()
    seen = []
    for _ in range(2):
        desk.page.evaluate("document.querySelector('#stage .lm-error')?.classList.add('old')")
        desk.page.locator("#make-button").click()
        desk.page.locator("#stage .lm-error:not(.old)").wait_for()
        seen.append(desk.page.locator("#stage .lm-error").inner_text())
    assert seen == ["Steps: a whole number from 1 to 500 is needed, not 0"] * 2
    field = desk.page.locator("#steps input")
    assert field.get_attribute("aria-invalid") == "true"
    assert "from 1 to 500" in desk.page.locator("#steps").inner_text()
    assert desk.shown() == shown
    # the words are read in lines, and nothing makes room for them
    tops = """() => {
        const [words, ...others] = ["words", "seed", "steps", "more"].map((id) => document.getElementById(id).getBoundingClientRect().top);
        return others.map((top) => Math.round(top - words));
    }"""
    before = desk.page.evaluate(tops)
    words = desk.page.locator("#steps .lm-fielderror").bounding_box()
    assert words["width"] >= 200
    assert words["height"] <= 60
    desk.page.get_by_label("Steps", exact=True).fill("3")
    assert desk.page.evaluate(tops) == before
    assert field.get_attribute("aria-invalid") is None


def test_stop_leaves_the_picture(desk):
    desk.fill(PROMPT)
    desk.make()
    shown = desk.shown()
    desk.fill(PROMPT, seed=2, steps=200)
    desk.page.locator("#make-button").click()
    desk.state("running").wait_for()
    desk.page.locator("#stop-button").click()
    desk.state("stopped").wait_for()
    assert desk.shown() == shown


def waits(desk, *prompts):
    desk.page.wait_for_function(
        "prompts => JSON.stringify([...document.querySelectorAll('.lm-queue li span')].map(each => each.textContent)) === prompts",
        arg=json.dumps(prompts, separators=(",", ":")),
    )


def test_make_pressed_again_waits_and_what_waits_can_be_taken_out(desk, app, monkeypatch):
    desk.fill("first", seed=7, steps=6)
    with held(app, monkeypatch) as gate:
        desk.page.locator("#make-button").click()
        desk.state("running").wait_for()
        desk.page.evaluate(
            """() => {
                const stage = document.querySelector("#stage");
                window.states = new Set();
                new MutationObserver(() => states.add(stage.querySelector(".lm-stage").dataset.state)).observe(stage, { subtree: true, attributes: true });
            }"""
        )
        for prompt in ("second", "third", "fourth"):
            desk.page.get_by_label("Prompt", exact=True).fill(prompt)
            desk.page.locator("#make-button").click()
            desk.page.locator(".lm-queue").get_by_text(prompt).wait_for()
        assert desk.page.evaluate("[...states]") == ["running"]  # the picture that forms stays in sight
        assert desk.page.get_by_label("Seed", exact=True).input_value() == "7"  # and nobody loses his seed
        button = desk.page.get_by_label("Take out: third").element_handle()
        step = desk.page.locator("#stage .lm-status").inner_text()
        gate.step()
        desk.page.wait_for_function(
            "step => document.querySelector('#stage .lm-status').innerText !== step", arg=step
        )
        assert button.evaluate("node => node.isConnected")  # a step takes no button away under one's hand
        desk.page.get_by_label("Take out: third").click()
        desk.page.locator(".lm-queue").get_by_text("third").wait_for(state="detached")
        desk.page.get_by_label("Earlier: fourth").click()
        waits(desk, "fourth", "second")
        desk.page.locator("#make-button").focus()  # not in a text, where Ctrl+Z is the browser's own
        desk.page.keyboard.press("Control+z")
        waits(desk, "second", "fourth")
        desk.page.keyboard.press("Control+z")
        waits(desk, "second", "third", "fourth")
        desk.page.get_by_label("Take out: third").click()
        waits(desk, "second", "fourth")
        desk.page.get_by_label("Earlier: fourth").click()
    desk.page.wait_for_function("document.querySelectorAll('#stage .lm-pick').length === 3")
    desk.state("done").wait_for()
    made = [
        read_picture(desk.fetch(f"pictures/{each['id']}.png"))
        for each in desk.page.evaluate("lm.store.get('strip')")
    ]
    assert [(each.prompt, each.seed) for each in made] == [("first", 7), ("fourth", 7), ("second", 7)]
    desk.page.keyboard.press("Control+z")  # the last gesture, whose order is long made
    assert "being made or finished" in desk.toast()
    desk.page.keyboard.press("Control+z")  # nothing is under way any more: it begins with what was taken out
    desk.page.wait_for_function("document.querySelectorAll('#stage .lm-pick').length === 4")
    newest = desk.page.evaluate("lm.store.get('strip').at(-1).id")
    assert read_picture(desk.fetch(f"pictures/{newest}.png")).prompt == "third"


@pytest.mark.parametrize("value", ["nan", "1e999", "-1", "99999999999999999999999", "x" * 200])
def test_no_python_stands_in_what_a_person_reads(desk, value):
    desk.fill(PROMPT, seed=value)
    desk.page.locator("#make-button").click()
    desk.page.locator("#stage .lm-error").wait_for()
    text = desk.page.locator("#stage .lm-error").inner_text()
    assert text.startswith("Seed: a whole number from 0 to ")
    assert not any(word in text for word in ("str", "None", "=", "Error"))


def test_a_draft_lies_over_the_picture_when_a_slider_is_let_go(desk, app):
    desk.add("ink")
    desk.fill(PROMPT, steps=20)
    first = desk.make()
    count = len(list(app.pictures.glob("*.png")))
    desk.page.get_by_label("ink: UNet slider").fill("0.2")
    desk.page.get_by_label("ink: UNet slider").blur()
    desk.page.evaluate("lm.draft()")
    desk.page.locator("#stage .lm-draftpic").wait_for()
    assert len(list(app.pictures.glob("*.png"))) == count  # a draft is not kept
    button = desk.page.get_by_role("button", name="Before")
    button.dispatch_event("pointerdown")
    desk.page.locator("#stage .lm-final").wait_for()
    assert pixels(desk.fetch(desk.shown())) == pixels(first)
