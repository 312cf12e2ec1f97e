"""Comparisons, grids and exports in a real browser."""

from __future__ import annotations

from tests.browser import PROMPT, alone, pixels


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
