"""Comparisons, grids and exports in a real browser."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lora_mixer import LoraMixer, PictureMaker, PictureRequest, load_pipeline
from lora_mixer.merging import METHODS, MergeMethod
from lora_mixer.picture_metadata import read_picture
from lora_mixer.ui.handlers import export
from lora_mixer.ui.messages import FieldError
from tests.browser import PROMPT, STEPS, alone, pixels

ROWS = {"rows": [{"name": "ink"}, {"name": "pixel", "unet": -0.5}]}
FEW = {"few ink": 1, "few pixel": -0.5}


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
        "document.querySelector('#export-report textarea').value.includes('124 layers, rank 3\\nMost is lost in unet.')"
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


def seen_settings(desk):
    shown = desk.page.locator("#export-form .lm-setting:visible")
    return [one.removeprefix("export-") for one in shown.evaluate_all("all => all.map(each => each.id)")]


def test_a_merging_method_is_chosen_with_its_settings_and_what_is_wrong_stands_at_them(
    desk, app, few, tmp_path
):
    desk.add(*FEW)
    desk.tab("Export")
    always = ["name", "format", "rank", "dtype", "energy", "sv-ratio", "conv-rank", "method"]
    desk.page.locator("#export-name input").fill("by ties")
    finer = desk.page.locator("#export-form details")  # open once something in it is wrong
    assert finer.get_attribute("open") is None
    desk.page.get_by_label("Conv rank (0: rank)").evaluate(
        "node => { node.value = '2'; node.dispatchEvent(new Event('input')); }"
    )
    desk.page.locator("#export-button").click()
    desk.page.locator("#export-conv-rank .lm-fielderror").get_by_text("Conv rank: say a rank").wait_for()
    desk.page.get_by_label("Conv rank (0: rank)").fill("0")
    assert seen_settings(desk) == always
    for name, spec in METHODS.items():
        desk.page.locator("#export-method select").select_option(name)
        assert seen_settings(desk) == [*always, *(f"{name}-{each.name}" for each in spec.settings)]
        values = [
            desk.page.locator(f"#export-{name}-{each.name} .lm-input").input_value() for each in spec.settings
        ]
        assert values == [str(each.default) for each in spec.settings]
    desk.page.locator("#export-method select").select_option("ties")

    def press(field="", words=""):
        desk.page.locator("#export-button").click()
        if field:
            desk.page.locator(f"#{field} .lm-fielderror").get_by_text(words).wait_for()

    press("export-rank", "ties")
    desk.page.locator("#export-rank input").fill("3")
    desk.page.locator("#export-ties-density input").fill("1.5")
    press("export-ties-density", "at most 1")
    desk.page.locator("#export-ties-density input").fill("0.25")
    desk.page.locator("#export-ties-majority select").select_option("frequency")
    press()
    desk.page.locator("#export-file a").first.wait_for()

    wanted = tmp_path / "wanted.safetensors"
    app.mixer.save_lora_weights(
        wanted,
        weights=dict.fromkeys(FEW, 1),
        format="kohya",
        rank=3,
        method=MergeMethod("ties", density=0.25, majority="frequency"),
    )
    assert_same_tensors(app.exports / "by ties.safetensors", wanted)

    desk.page.reload()
    desk.page.locator("#export-form").wait_for(state="attached")
    desk.tab("Export")
    assert finer.get_attribute("open") is None  # nothing is asked for in it
    finer.locator("summary").click()
    assert seen_settings(desk)[len(always) :] == [f"ties-{each.name}" for each in METHODS["ties"].settings]
    assert desk.page.locator("#export-ties-density input").input_value() == "0.25"


_FEW = re.compile(r"layers\.0\.self_attn|down_blocks[._]0[._]|attentions_?\.?0.*attn2")


@pytest.fixture(scope="module")
def few(app):
    """Two adapters with a few of the demo's layers, linear ones, convolutions and a text encoder's: full matrices take time."""
    rows = []
    for name, weight in (("ink", 1), ("pixel", -0.5)):
        path = app.uploads / f"few {name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        with safe_open(app.entry_named(name).path, "pt") as file:
            kept = {key: file.get_tensor(key) for key in file.keys() if _FEW.search(key)}  # noqa: SIM118
            save_file(kept, path, file.metadata())
        rows.append({"name": path.stem, "unet": weight})
    app.scan(wait=60)
    yield {"rows": rows}
    for row in rows:
        entry = app.entry_named(row["name"])
        entry.path.unlink()
        app.library.forget(entry.id)


def assert_same_tensors(got, wanted):
    a, b = load_file(got), load_file(wanted)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("name", METHODS)
def test_each_method_exported_is_the_one_of_the_public_api(site, few, tmp_path, name):
    _, app = site
    settings = {each.name: _other(each) for each in METHODS[name].settings}
    fields = {
        "export-name": f"each method {name}",
        "export-format": "comfyui",
        "export-rank": "2",
        "export-dtype": "float16",
        "export-method": name,
        # what belongs to other methods is not read
        **{
            export.setting_field(spec.name, each): str(settings[each.name])
            if spec.name == name
            else "nonsense"
            for spec in METHODS.values()
            for each in spec.settings
        },
    }
    made = export.one_file(app, "me", few, fields)
    wanted = tmp_path / "wanted.safetensors"
    app.mixer.save_lora_weights(
        wanted,
        weights=FEW,
        format="comfyui",
        rank=2,
        dtype="float16",
        method=MergeMethod(name, **settings),
    )
    assert_same_tensors(made.files[0], wanted)
    assert made.report.startswith(
        f"each method {name}.safetensors: comfyui, 26 layers, rank 2\nMost is lost in unet."
    )
    plain = tmp_path / "plain.safetensors"
    app.mixer.save_lora_weights(plain, weights=FEW, format="comfyui", rank=2, dtype="float16")
    a, b = load_file(made.files[0]), load_file(plain)
    # cut to two ranks the pairs of a method on pairs may fall together with the sum's
    assert METHODS[name].works_on == "pairs" or any(not torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize(
    ("given", "options"),
    [
        ({"energy": "0.5"}, {"energy": 0.5}),
        ({"energy": "0.9", "rank": "2"}, {"energy": 0.9, "rank": 2}),
        ({"sv-ratio": 3, "method": "ties"}, {"sv_ratio": 3.0, "method": "ties"}),
        ({"conv-rank": "1", "rank": "3", "energy": "0", "sv-ratio": ""}, {"conv_rank": 1, "rank": 3}),
    ],
)
def test_how_far_an_export_is_cut_is_what_the_public_api_takes(site, few, tmp_path, given, options):
    _, app = site
    fields = {
        f"export-{name}": value
        for name, value in {"name": f"cut {given}"[:40], "format": "kohya", **given}.items()
    }
    fields["export-name"] = re.sub(r"[^a-z0-9 .]", "", fields["export-name"])
    made = export.one_file(app, "me", few, fields)
    wanted = tmp_path / "wanted.safetensors"
    app.mixer.save_lora_weights(wanted, weights=FEW, format="kohya", **options)
    assert_same_tensors(made.files[0], wanted)
    assert made.lost > 0


def _other(setting):
    if setting.choices:
        return setting.choices[-1]
    return 7 if isinstance(setting.default, int) else setting.default / 2


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"export-method": "mean of all"}, "Method"),
        ({"export-method": ["ties"]}, "Method"),
        ({"export-method": "ties", "export-ties-density": "0"}, "Density must be above 0"),
        ({"export-method": "ties", "export-ties-density": {"a": 1}}, "Density must be a number"),
        ({"export-method": "della", "export-della-epsilon": "nan"}, "Epsilon must be a number"),
        ({"export-method": "dare", "export-dare-seed": "1.5"}, "Seed must be a whole number"),
        ({"export-method": "ties", "export-ties-average": "median"}, "Average must be count or weights"),
        ({"export-method": "ties", "export-ties-scale": "1" * 500}, "Scale: at most 40"),
        ({"export-method": "ties", "export-rank": "0"}, "Rank: ties makes full matrices"),
        ({"export-energy": "1.5"}, "Energy"),
        ({"export-energy": {"a": 1}}, "Energy"),
        ({"export-sv-ratio": "0.5"}, "SV ratio"),
        ({"export-sv-ratio": "nan"}, "SV ratio"),
        ({"export-conv-rank": "2", "export-rank": "0"}, "Conv rank"),
        ({"export-conv-rank": "1.5"}, "Conv rank"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_at_its_field_and_nothing_is_written(site, given, words):
    _, app = site
    before = sorted(app.exports.iterdir()) if app.exports.is_dir() else []
    fields = {"export-name": "never", "export-format": "kohya", "export-rank": "2", **given}
    with pytest.raises(FieldError, match=words) as caught:
        export.one_file(app, "me", ROWS, fields)
    assert caught.value.field in fields
    assert (sorted(app.exports.iterdir()) if app.exports.is_dir() else []) == before


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
