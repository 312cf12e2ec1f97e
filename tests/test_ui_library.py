"""The Library page in a real browser: adapters in by upload, from the Hub, found again, shown as what they are."""

from __future__ import annotations

import struct
import threading

from lora_mixer import demo_adapters
from lora_mixer.library import layer_norms
from tests.browser import PROMPT, Desk, alone, pixels, serving
from tests.hub_standin import Repo
from tests.loras import write_lora


def test_uploaded_kohya_and_peft_files_are_mixed(desk, app, tmp_path):
    kohya, peft = tmp_path / "my kohya.safetensors", tmp_path / "my-peft.safetensors"
    kohya.write_bytes(demo_adapters()["watercolor"].path.read_bytes())
    app.ready(["neon"])
    app.mixer.save_lora_weights(peft, weights={"neon": 1.0}, format="diffusers")
    desk.tab("Library")
    desk.page.get_by_text("Add adapters").click()
    desk.upload("#library-upload", kohya, peft)
    desk.page.get_by_text("Added my").wait_for()

    names = [entry.name for entry in app.library.search("my").entries]
    desk.add(*names)
    desk.weight(names[0], 0.5)
    desk.fill(PROMPT)
    assert pixels(desk.make()) == alone(app, {names[0]: 0.5, names[1]: 1})


def test_a_wrong_base_is_greyed_with_its_reason_and_a_bad_file_is_refused(desk, app, tmp_path):
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
    assert not app.library.search("onerror").total

    card = desk.page.locator(".lm-card[aria-label='for-sdxl']")
    assert "made for SDXL" in card.get_by_role("note").inner_text()
    assert card.get_by_label("Add for-sdxl to the mix").is_disabled()


def test_html_in_metadata_is_text(desk, app, tmp_path):
    import torch
    from safetensors.torch import save_file

    evil = "<img src=x onerror='window.hacked=1'>${window.hacked=1}{{hacked}}"
    pair = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
    width = app.mixer.pipe.unet.config.cross_attention_dim
    rows = app.mixer.pipe.unet.down_blocks[1].attentions[0].transformer_blocks[0].attn2.to_k.weight.shape[0]
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
    entry = app.library.find("evil")
    desk.page.locator(".lm-cards").get_by_text("onerror").first.wait_for()
    (entry,) = app.library.find("evil")
    desk.page.locator(f".lm-card[data-id='{entry.id}']").get_by_text("Details").click()
    desk.page.locator(".lm-details").get_by_text("Metadata").click()
    desk.page.locator(".lm-details").get_by_text("ss_training_comment").wait_for()
    assert evil in desk.page.locator(".lm-details").inner_text()
    desk.page.locator(".lm-details").get_by_text("Add to mix").click()
    desk.row("evil").wait_for()
    assert desk.page.evaluate("window.hacked") is None
    assert desk.page.locator(".lm-root img[src=x]").count() == 0


def test_details_show_hashes_and_strength_by_block(desk, app):
    desk.tab("Library")
    desk.page.get_by_role("button", name="Show details of ink").click()
    shown = desk.page.locator(".lm-details")
    shown.get_by_text("Strength by layer").wait_for()
    shown.get_by_text("Hashes").click()
    (entry,) = app.library.find("ink")
    assert app.library.hashes(entry.id)["sha256"] in shown.inner_text()
    known = layer_norms(entry.path)
    assert shown.locator(".lm-barline").count() == len(known.blocks)
    bars = shown.locator(".lm-layers rect title").all_text_contents()
    assert [text.partition(":")[0] for text in bars] == list(known.layers)


def test_the_two_files_of_a_peft_folder_are_one_adapter(desk, app):
    folder = demo_adapters()["neon"].path
    weights, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    desk.tab("Library")
    desk.page.get_by_text("Add adapters").click()
    desk.upload("#library-upload", config)
    refused = desk.page.locator("#library-refused")
    refused.get_by_text("by dropping its two files").wait_for()
    desk.upload("#library-upload", weights, config)
    desk.page.get_by_text("Added PEFT adapter (the same file as neon)").wait_for()

    desk.add("PEFT adapter")
    desk.fill(PROMPT)
    assert pixels(desk.make()) == alone(app, {"neon": 1})


def test_an_adapter_comes_from_the_hub_into_the_mix(desk, app, hub):
    hub.repos["someone/inks"] = Repo(
        {
            "from hub.safetensors": demo_adapters()["ink"].path.read_bytes(),
            "other.safetensors": demo_adapters()["pixel"].path.read_bytes(),
        }
    )
    desk.tab("Library")
    desk.page.get_by_text("Add adapters").click()
    repo, file = (desk.page.locator(f"{at} input, {at} textarea") for at in ("#hub-repo", "#hub-file"))
    repo.fill("/etc/passwd")
    desk.page.locator("#hub-get").click()
    desk.page.locator("#hub-repo .lm-fielderror").get_by_text("owner/name").wait_for()
    repo.fill("someone/inks")
    file.fill("from hub.safetensors")
    desk.page.locator("#hub-get").click()
    desk.page.get_by_text("Added from hub").wait_for()

    desk.add("from hub")
    desk.fill(PROMPT)
    assert pixels(desk.make()) == alone(app, {"ink": 1})


def titles(desk):
    return desk.page.locator("#cards .lm-card").evaluate_all("all => all.map(one => one.ariaLabel)")


def test_cards_are_searched_sorted_filtered_and_paged(desks, tmp_path):
    for number in range(30):
        write_lora(tmp_path / "loras" / f"style {number:02}.safetensors", rank=1 + number % 7, seed=number)
    write_lora(tmp_path / "loras" / "big.safetensors", base="SDXL", rank=9)
    with serving(tmp_path / "out", tmp_path / "cache", loras=(tmp_path / "loras",)) as (url, _):
        desk = Desk(desks, url)
        desk.tab("Library")
        cards = desk.page.locator("#cards")
        cards.get_by_text("31 adapters").wait_for()
        assert titles(desk) == ["big", *(f"style {n:02}" for n in range(23))]
        cards.get_by_role("button", name="Next").click()
        cards.get_by_text("2 / 2").wait_for()
        desk.page.set_viewport_size({"width": 390, "height": 844})
        tops = "all => all.map(one => Math.round(one.getBoundingClientRect().top))"
        assert (
            len(set(cards.locator(".lm-panel-head button").evaluate_all(tops))) == 1
        )  # in one line on a phone
        desk.page.set_viewport_size({"width": 1440, "height": 900})
        assert titles(desk) == [f"style {n:02}" for n in range(23, 30)]
        desk.page.get_by_role("searchbox", name="Search").fill("style 07")  # as pasted: no key is pressed
        cards.get_by_text("1 adapter", exact=True).wait_for()
        assert titles(desk) == ["style 07"]
        desk.page.get_by_role("searchbox", name="Search").fill("nothing like it")
        cards.get_by_text("Nothing found").wait_for()
        desk.page.get_by_role("searchbox", name="Search").fill("")
        desk.page.get_by_role("combobox", name="Base").select_option(label="SDXL")
        cards.get_by_text("1 adapter", exact=True).wait_for()
        assert titles(desk) == ["big"]
        desk.page.get_by_role("combobox", name="Base").select_option(label="Any base")
        desk.page.get_by_role("combobox", name="Sort").select_option("Rank")
        desk.page.get_by_role("button", name="Sorted upwards").click()
        desk.page.locator("#cards .lm-card").nth(1).get_by_text("rank 7").wait_for()
        assert titles(desk)[:2] == ["big", "style 06"]

        desk.page.get_by_text("Add adapters").click()
        card = desk.page.locator(".lm-card[aria-label='style 06']")
        (tmp_path / "loras").rename(tmp_path / "away")  # as a disk that is unplugged
        desk.page.locator("#library-refresh").click()
        card.get_by_text("its disk or folder is away").wait_for()
        cards.get_by_text("31 adapters").wait_for()
        (tmp_path / "away").rename(tmp_path / "loras")
        desk.page.locator("#library-refresh").click()
        card.get_by_text("its disk or folder is away").wait_for(state="detached")
        desk.page.close()


def test_a_long_look_through_the_folders_shows_how_far_it_is(desk, app, monkeypatch):
    refresh, found_all = app.library.refresh, threading.Event()

    def slow(progress):
        progress(3, 2000, "x")
        found_all.wait(60)
        return refresh(progress)

    monkeypatch.setattr(app.library, "refresh", slow)
    desk.tab("Library")
    desk.page.locator("#cards .lm-card").first.wait_for()
    app.scan(wait=0)
    desk.page.locator("#cards").get_by_text("Looking through the folders: 3 of 2000").wait_for()
    found_all.set()
    desk.page.locator("#cards .lm-count").get_by_text(f"{app.library.search().total} adapters").wait_for()


def folders(desk):
    return desk.page.locator(".lm-folder").evaluate_all(
        "all => all.map(one => one.innerText.replace(/\\s+/g, ' '))"
    )


def test_a_library_is_seen_by_folders_marks_and_what_fits_and_remembers_how(chromium, tmp_path):  # noqa: PLR0915 -- one visit
    top = tmp_path / "loras"
    for name in ("ink", "styles/oil", "styles/old/etching", "people/fox"):
        write_lora(top / f"{name}.safetensors", seed=len(name))
    write_lora(top / "large.safetensors", base="SDXL")
    context = chromium.new_context(viewport={"width": 1440, "height": 900})
    with serving(tmp_path / "out", tmp_path / "cache", loras=(top,)) as (url, app):
        desk = Desk(context, url)
        desk.tab("Library")
        desk.page.get_by_text("5 adapters").wait_for()
        assert folders(desk) == ["All folders", "loras 5", "people 1", "styles 2", "old 1"]
        desk.page.get_by_role("button", name="styles 2").click()
        desk.page.get_by_text("2 adapters").wait_for()
        assert titles(desk) == ["etching", "oil"]
        desk.page.get_by_label("Folders in styles").click()
        assert folders(desk) == ["All folders", "loras 5", "people 1", "styles 2"]
        desk.page.set_viewport_size({"width": 390, "height": 844})
        heights = desk.page.locator(".lm-folder").evaluate_all("all => all.map(one => one.offsetHeight)")
        assert set(heights) == {44}  # for fingers, and all alike
        desk.page.set_viewport_size({"width": 1440, "height": 900})
        desk.page.get_by_role("button", name="All folders").click()
        desk.page.get_by_text("5 adapters").wait_for()

        desk.page.get_by_label("Favourite fox").click()
        desk.page.locator("[aria-label='Favourite fox'][aria-pressed=true]").wait_for()
        assert app.library.find("fox")[0].favourite
        desk.page.get_by_role("button", name="★ Favourites").click()
        desk.page.get_by_text("1 adapter", exact=True).wait_for()
        assert titles(desk) == ["fox"]
        desk.page.get_by_role("button", name="★ Favourites").click()

        desk.page.get_by_label("Show details of oil").click()
        shown = desk.page.locator(".lm-details")
        shown.get_by_label("Labels").fill("warm, thick")
        shown.get_by_label("Notes").fill("needs a low weight")
        shown.get_by_label("Blur its preview").check()
        shown.get_by_role("button", name="Keep defaults").click()
        desk.page.locator("[aria-label=oil] .lm-labels").get_by_text("warm").wait_for()
        desk.page.keyboard.press("Escape")
        desk.page.get_by_role("combobox", name="Label").select_option("warm")
        desk.page.get_by_text("1 adapter", exact=True).wait_for()
        desk.page.get_by_role("combobox", name="Label").select_option("")

        desk.page.get_by_role("searchbox", name="Search").fill("weigth low")
        desk.page.get_by_text("this is what has “weight low”").wait_for()
        assert titles(desk) == ["oil"]
        desk.page.get_by_role("searchbox", name="Search").fill("")

        desk.page.get_by_role("button", name="Only what fits").click()
        desk.page.get_by_text("Not shown: 4 made for SD 1.x, 1 made for SDXL.").wait_for()
        desk.page.get_by_role("button", name="Show them").click()
        desk.page.get_by_role("button", name="As a list").click()
        desk.page.get_by_role("combobox", name="Sort").select_option("Size")
        desk.page.get_by_role("button", name="Sorted upwards").click()
        desk.page.locator(".lm-cardline").first.get_by_text("large", exact=True).wait_for()
        kept = titles(desk)
        assert len(kept) == 5
        assert kept[0] == "large"
        desk.page.reload()
        desk.page.locator(".lm-cardline").nth(4).wait_for()
        assert titles(desk) == kept
        assert desk.page.get_by_role("combobox", name="Sort").input_value() == "Size"
    context.close()


def test_what_is_in_the_mix_comes_first(desk, tmp_path):
    desk.add("watercolor", "neon")
    desk.tab("Library")  # once one is back: nothing moves under one's hand
    desk.page.wait_for_function(
        "[...document.querySelectorAll('#cards .lm-card')].slice(0, 2).map(one => one.ariaLabel).join() === 'neon,watercolor'"
    )
    assert desk.page.locator("#cards .lm-inmix").count() == 2


def test_files_are_renamed_moved_and_deleted_and_all_is_taken_back(desk, app, tidy, tmp_path):
    app.ready(["ink"])
    app.mixer.save_lora_weights(tmp_path / "my own.safetensors", weights={"ink": 0.5}, format="kohya")
    ink = (tmp_path / "my own.safetensors").read_bytes()
    desk.tab("Library")
    desk.page.get_by_text("Add adapters").click()
    desk.upload("#library-upload", tmp_path / "my own.safetensors")
    desk.page.get_by_text("Added my own").wait_for()
    desk.page.get_by_role("button", name="Add my own to the mix").click()
    desk.row("my own").wait_for()

    desk.page.get_by_label("Show details of my own").click()
    shown = desk.page.locator(".lm-details")
    shown.get_by_text("File", exact=True).click()
    shown.get_by_label("New name").fill("ink")
    shown.get_by_role("button", name="Rename").click()
    desk.page.locator("#adapter-name .lm-fielderror").get_by_text("another ink already").wait_for()
    shown.get_by_label("New name").fill("dark ink")
    shown.get_by_role("button", name="Rename").click()
    desk.row("dark ink").wait_for()  # the row of the mix follows
    shown.get_by_role("heading", name="dark ink").wait_for()  # drawn anew: what is typed before that goes
    assert app.entry_named("my own").name == "dark ink"  # and what was saved before still means it
    shown.get_by_label("Folder", exact=True).fill("../outside")
    shown.get_by_role("button", name="Move").click()
    desk.page.locator(".lm-fielderror, .lm-bad").get_by_text("names of folders").first.wait_for()
    shown.get_by_label("Folder", exact=True).fill("inks/dark")
    shown.get_by_role("button", name="Move").click()
    desk.page.get_by_text("dark ink is in inks/dark now").wait_for()
    assert app.library.find("dark ink")[0].folder == "inks/dark"
    shown.get_by_role("button", name="Put into the trash").click()
    desk.row("dark ink").get_by_role("note").wait_for()
    assert app.library.find("dark ink") == ()
    desk.page.get_by_test_id("lm-said").get_by_role("button", name="Undo").click()
    desk.page.locator(".lm-card[aria-label='dark ink']").wait_for()
    assert app.library.find("dark ink")[0].path.read_bytes() == ink
    for _ in range(2):  # the folder, then the name
        desk.page.keyboard.press("Control+z")
    desk.row("my own").wait_for()
    assert app.library.find("my own")[0].path == app.uploads / "my own.safetensors"


def test_the_demos_own_files_stay(desk, app):
    from lora_mixer.errors import LoraMixerError
    from lora_mixer.ui.handlers import library as handlers

    (entry,) = (each for each in app.library.find("ink") if each.root != app.uploads)
    import pytest

    for call in (
        lambda: handlers.rename(app, {"id": entry.id, "name": "x"}),
        lambda: handlers.move(app, {"id": entry.id, "folder": "x"}),
        lambda: handlers.to_trash(app, entry.id),
    ):
        with pytest.raises(LoraMixerError, match="belongs to the demo"):
            call()
    desk.tab("Library")
    desk.page.get_by_label("Show details of ink").click()
    desk.page.locator(".lm-details").get_by_text("Hashes").wait_for()
    assert desk.page.locator(".lm-details").get_by_role("button", name="Put into the trash").count() == 0


def test_a_picture_just_made_is_a_preview_and_explicit_ones_are_blurred(desk, app):
    desk.add("ink")
    desk.fill(PROMPT)
    desk.make()
    desk.page.get_by_label("More for ink").click()
    before = desk.row("ink").locator("img.lm-thumb").get_attribute("src")
    desk.page.get_by_label("Picture as preview of ink").click()
    desk.page.wait_for_function(
        "before => document.querySelector('#board [data-name=ink] img.lm-thumb').src !== before", arg=before
    )
    (entry,) = app.library.find("ink")
    assert not entry.preview.is_relative_to(entry.root)
    desk.tab("Library")
    desk.page.get_by_label("Show details of ink").click()
    shown = desk.page.locator(".lm-details")
    shown.get_by_label("Blur its preview").check()
    shown.get_by_role("button", name="Keep defaults").click()
    cover = desk.page.locator(".lm-card[aria-label=ink] img.lm-blurred")
    cover.wait_for()
    desk.page.keyboard.press("Escape")
    desk.page.get_by_role("button", name="Show all previews").click()
    cover.wait_for(state="detached")
    desk.page.get_by_role("button", name="Show all previews").click()
    app.library.set_default(entry.id, explicit=None, notes=None, weight=None)
    desk.page.get_by_label("Show details of ink").click()
    shown.get_by_role("button", name="The file's own preview").click()
    desk.page.wait_for_function(
        "() => !document.querySelector('.lm-details')?.innerText.includes('own preview')"
    )
    assert app.library.find("ink")[0].preview.is_relative_to(entry.root)


def test_doubles_are_shown_and_a_file_without_a_name_is_asked_for_one(desk, app, tidy, tmp_path):
    desk.tab("Library")
    desk.page.get_by_text("Add adapters").click()
    (tmp_path / "pytorch_lora_weights.safetensors").write_bytes(demo_adapters()["pixel"].path.read_bytes())
    desk.upload("#library-upload", tmp_path / "pytorch_lora_weights.safetensors")
    field = desk.page.get_by_label("New name")
    field.wait_for()
    assert field.evaluate("node => node === document.activeElement")
    field.fill("of my own")
    desk.page.get_by_role("button", name="Rename").click()
    desk.page.locator(".lm-card[aria-label='of my own']").wait_for()
    desk.page.keyboard.press("Escape")
    desk.page.get_by_role("button", name="Doubles").click()
    desk.page.get_by_text("2 files are the same").first.wait_for()
    assert {"of my own", "pixel"} <= set(titles(desk))
    desk.page.get_by_role("button", name="Doubles").click()
