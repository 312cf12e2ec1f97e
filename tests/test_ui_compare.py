"""Comparisons, grids and exports in a real browser."""

from __future__ import annotations

import re

import numpy as np

from lora_mixer import LoraMixer, PictureMaker, PictureRequest, load_pipeline
from lora_mixer.picture_metadata import read_picture
from tests.browser import PROMPT, STEPS, alone, pixels


def test_a_grid_has_labels_and_a_cell_gives_its_mix(desk, app):
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


def test_base_and_mix_are_compared_with_one_seed(desk, app):
    desk.add("ink")
    desk.fill(PROMPT)
    desk.tab("Compare")
    desk.page.locator("#compare-button").click()
    desk.state("done", "#compare-state").wait_for()
    pair = desk.page.locator("#compare-slider img")
    pair.nth(1).wait_for()
    found = {pixels(desk.fetch(pair.nth(at).get_attribute("src"))) for at in range(2)}
    assert found == {alone(app, {}), alone(app, {"ink": 1})}


def test_the_mix_is_exported_as_one_file(desk, app):
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
    address = desk.page.locator("#export-file a").first.get_attribute("href")
    assert str(app.out) not in address
    assert re.fullmatch(r"exports/[0-9a-f]{32}/my-mix\.safetensors", address)
    from lora_mixer import read_adapter

    info = read_adapter(download.value.path().read_bytes() and app.exports / "my-mix.safetensors")
    assert info.ranks == (3,)
    desk.page.locator("#export-button").click()
    desk.page.locator("#export-name .lm-fielderror").get_by_text("already").wait_for()


def test_each_adapter_alone_stands_beside_the_base_and_all_together(desk, app):
    desk.add("ink", "pixel")
    desk.weight("pixel", 0.5)
    desk.fill(PROMPT)
    desk.tab("Compare")
    desk.page.locator("#alone-button").click()
    desk.state("done", "#grid").wait_for()
    assert desk.page.locator(".lm-grid th[scope=row]").all_inner_texts() == [
        "base",
        "ink",
        "pixel",
        "all together",
    ]
    shown = newest(app, 4)
    mixes = ({}, {"ink": 1}, {"pixel": 0.5}, {"ink": 1, "pixel": 0.5})
    for data, mix in zip(shown, mixes, strict=True):
        assert within_a_level(pixels(data), alone(app, mix))


def within_a_level(one, other):
    """Sums of a batch are rounded in another order: the last bit of a pixel may differ."""
    one, other = (np.frombuffer(data, np.uint8).astype(int) for data in (one, other))
    return np.abs(one - other).max() <= 1


def newest(app, count):
    """The files of the last pictures, sheets left out, in the order in which they were made."""
    names = sorted(path for path in app.pictures.glob("*.png") if not path.stem.endswith("-sheet"))
    return [path.read_bytes() for path in names[-count:]]


def test_a_grid_is_made_in_mixed_batches_and_its_cells_are_the_single_pictures(desk, app, monkeypatch):
    sizes = []

    class Maker(PictureMaker):
        def make(self, requests, **options):
            for picture in super().make(requests, **options):
                sizes.append(picture.batch)
                yield picture

    monkeypatch.setattr(
        app.models.loaded(), "grid_maker", Maker(app.mixer, batch_size=4, defaults=app.defaults)
    )
    desk.add("ink", "halftone")
    desk.fill(PROMPT)
    desk.tab("Compare")
    desk.page.locator("#columns-values input, #columns-values textarea").fill("0, 0.5, 1")
    desk.page.locator("#rows-values input, #rows-values textarea").fill("1-2")
    desk.page.locator("#grid-button").click()
    desk.state("done", "#grid").wait_for()

    assert sizes == [4, 4, 4, 4, 2, 2]  # a call for four mixes, and one for the rest
    cells = {
        (made.seed, made.mix["ink"].weight): data for data in newest(app, 6) for made in [read_picture(data)]
    }
    assert len(cells) == 6
    for (seed, weight), data in cells.items():
        assert within_a_level(pixels(data), alone(app, {"ink": weight, "halftone": 1}, seed))


def test_the_mix_is_baked_into_a_folder_that_makes_the_same_picture(desk, app):
    desk.add("ink")
    desk.weight("ink", 0.7)
    desk.tab("Export")
    desk.page.locator("#bake-name input, #bake-name textarea").fill("inked")
    desk.page.locator("#bake-button").click()
    desk.page.wait_for_function(
        "document.querySelector('#bake-report textarea').value.includes('exports/inked')"
    )

    baked = PictureMaker(LoraMixer(load_pipeline(str(app.exports / "inked"), device="cpu")))
    request = PictureRequest(PROMPT, seed=1, steps=STEPS, guidance_scale=app.defaults["guidance_scale"])
    (picture,) = baked.make([request])
    assert picture.image.tobytes() == alone(app, {"ink": 0.7})
