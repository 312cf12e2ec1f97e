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
    assert "owner/name" in desk.toast()
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
        assert titles(desk) == [f"style {n:02}" for n in range(23, 30)]
        desk.page.get_by_label("Search").fill("style 07")  # as pasted: no key is pressed
        cards.get_by_text("1 adapter", exact=True).wait_for()
        assert titles(desk) == ["style 07"]
        desk.page.get_by_label("Search").fill("nothing like it")
        cards.get_by_text("Nothing found").wait_for()
        desk.page.get_by_label("Search").fill("")
        desk.page.get_by_role("combobox", name="Base").click()
        desk.page.get_by_role("option", name="SDXL").click()
        cards.get_by_text("1 adapter", exact=True).wait_for()
        assert titles(desk) == ["big"]
        desk.page.get_by_role("combobox", name="Base").click()
        desk.page.get_by_role("option", name="Any base").click()
        desk.page.get_by_role("combobox", name="Sort").click()
        desk.page.get_by_role("option", name="Rank").click()
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
    app.scan(wait=0)
    desk.page.locator("#cards").get_by_text("Looking through the folders: 3 of 2000").wait_for()
    found_all.set()
    desk.page.locator("#cards .lm-count").get_by_text(f"{app.library.search().total} adapters").wait_for()
