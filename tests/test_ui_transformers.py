"""The page on transformers: a Flux-like and a Wan-like pipeline, their blocks as sliders, and the base to the byte."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from lora_mixer.mixes import Mix
from lora_mixer.picture_metadata import read_picture
from tests.browser import Desk, pixels, serving
from tests.test_transformer_pipelines import PAIRS, adapter

BLOCKS = {"flux": ["D0", "S0"], "wan": ["D0", "D1"]}


def weights(pipe):
    return {key: tensor.clone() for key, tensor in pipe.transformer.state_dict().items()}


@pytest.mark.parametrize("kind", PAIRS)
def test_pictures_change_with_adapters_and_blocks_and_the_base_comes_back_to_the_byte(desks, kind, tmp_path):
    make, shapes = PAIRS[kind]
    make().save_pretrained(tmp_path / "model")
    (tmp_path / "loras").mkdir()
    save_file(adapter(shapes), tmp_path / "loras" / "mine.safetensors")
    with serving(
        tmp_path / "out", tmp_path / "cache", model=str(tmp_path / "model"), loras=(tmp_path / "loras",)
    ) as (url, app):
        desk = Desk(desks, url)
        for label in ("Width", "Height"):
            desk.page.get_by_label(label, exact=True).fill("64")
        desk.fill("a castle", steps=2)
        base = desk.make()
        clean = weights(app.mixer.pipe)
        desk.add("mine")
        mixed = desk.make()
        assert pixels(mixed) != pixels(base)
        assert desk.page.get_by_label("mine: Transformer", exact=True).input_value() == "1"
        said = ("aria-label", "title", "placeholder")
        assert desk.page.locator(", ".join(f"[{x}*=unet i]" for x in said)).count() == 0
        desk.page.get_by_label("More for mine").click()
        choice = desk.page.get_by_label("mine: blocks", exact=True)
        choice.select_option("tree")
        sliders = desk.page.locator(".lm-blocks .lm-block")
        assert sliders.locator("span").all_inner_texts() == BLOCKS[kind]
        desk.page.get_by_label(f"mine: {BLOCKS[kind][0]}", exact=True).fill("0")
        by_blocks = desk.make()
        blocks = (
            {"double": {"block_0": 0}} | {"single": {"block_0": 1}}
            if kind == "flux"
            else {"double": {"block_0": 0, "block_1": 1}}
        )
        assert read_picture(by_blocks).mix == Mix.of({"mine": {"blocks": blocks}})
        assert len({pixels(base), pixels(mixed), pixels(by_blocks)}) == 3
        desk.weight("mine", 0, "Transformer")
        again = desk.make()
        assert pixels(again) == pixels(base)
        assert not desk.errors
        with app.queue.turn("the tests"):
            app.mixer.disable_lora()
            assert all(torch.equal(tensor, clean[key]) for key, tensor in weights(app.mixer.pipe).items())
