"""The embedded demo is found, loads offline without noise, and says what to do when it is missing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from typer.testing import CliRunner

import lora_mixer.demo
from lora_mixer import demo_adapters, load_demo
from lora_mixer.cli import _demo as command
from lora_mixer.cli._app import app
from lora_mixer.errors import PictureError, SourceNotFoundError
from lora_mixer.pictures import Band, contact_sheet

ROOT = Path(__file__).resolve().parent.parent


def test_it_loads_in_float32_on_the_cpu_without_a_word(capfd):
    pipe = load_demo()

    assert isinstance(pipe, StableDiffusionPipeline)
    assert {part.dtype for part in (pipe.unet, pipe.vae, pipe.text_encoder)} == {torch.float32}
    assert pipe.device == torch.device("cpu")
    assert capfd.readouterr() == ("", "")


def test_another_type_is_taken():
    assert load_demo(dtype=torch.bfloat16).unet.dtype == torch.bfloat16


def test_progress_bars_of_other_loads_stay_as_they_were():
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    before = (of_diffusers.is_progress_bar_enabled(), of_transformers.get_verbosity())
    load_demo()

    assert (of_diffusers.is_progress_bar_enabled(), of_transformers.get_verbosity()) == before


def test_adapters_are_what_their_list_says():
    listed = json.loads((ROOT / "assets" / "loras" / "styles.json").read_text())

    adapters = demo_adapters()

    assert list(adapters) == [entry["name"] for entry in listed["adapters"]]
    assert {name for name, adapter in adapters.items() if adapter.kind == "subject"} == {"lumo"}
    assert adapters["neon"].path == ROOT / "assets" / "loras" / "neon"
    assert adapters["neon"].format == "peft-folder"
    assert adapters["ink"].trigger == "ink sketch"
    assert len(adapters["ink"].held_out) == 24
    assert all(adapter.path.exists() for adapter in adapters.values())


@pytest.mark.parametrize("use", [load_demo, demo_adapters])
def test_without_its_files_one_line_says_where_to_get_them(use, monkeypatch, tmp_path):
    monkeypatch.setattr(lora_mixer.demo, "_PACKAGE", tmp_path / "lora_mixer")

    with pytest.raises(
        SourceNotFoundError, match=r"pip install lora-mixer-demo .in a checkout: pip install \./assets"
    ) as raised:
        use()

    assert "\n" not in str(raised.value)


def demo(*arguments):
    return CliRunner().invoke(app, ["demo", *(str(argument) for argument in arguments)])


def test_the_command_writes_a_sheet_and_proves_the_base(tmp_path):
    out = tmp_path / "new" / "sheet.png"

    result = demo("--out", out, "--steps", 1, "--subjects", "castle", "--seed", 3)

    assert (result.exit_code, result.stderr) == (0, "")
    *_, equality, last = result.stdout.splitlines()
    assert equality == "The last column equals the first to the byte: disable_lora gave the base back."
    assert last.startswith(f"{out}: 24 pictures of 1 steps in ")
    with Image.open(out) as sheet:
        first, again = (cell(sheet, 0), cell(sheet, 11))
        assert np.array_equal(first, again)
        assert not np.array_equal(first, cell(sheet, 5))


def cell(sheet, column):
    left = sheet.width - 12 * 132 + column * 132
    return np.asarray(sheet.crop((left, 60, left + 128, 188)))


def test_the_command_fails_when_the_base_does_not_come_back(tmp_path, monkeypatch):
    shades = iter(range(24))
    monkeypatch.setattr(
        command, "_column", lambda *_: np.full((1, 128, 128, 3), next(shades) / 24, dtype=np.float32)
    )

    result = demo("--out", tmp_path / "sheet.png", "--subjects", "castle")

    assert result.exit_code == 1
    assert "differs from the first" in result.stderr
    assert "equals" not in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "sheet.jpg"], "--out must be a .png path (got 'sheet.jpg')"),
        (["--subjects", " , "], "--subjects names none"),
    ],
)
def test_the_command_refuses_what_it_cannot_do_before_it_begins(arguments, message):
    result = demo(*arguments)

    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr


@pytest.mark.parametrize(
    "bands", [[], [Band([], [])], [Band(["a"], [("x", [])])], [Band(["a"], []), Band(["b"], [])]]
)
def test_a_sheet_of_nothing_is_refused(bands):
    with pytest.raises(PictureError) as caught:
        contact_sheet(bands)

    assert caught.value.argument == "bands"


def test_a_sheet_may_begin_with_a_band_that_has_no_pictures():
    cell = Image.new("RGB", (16, 16))

    assert contact_sheet([Band(["a"], []), Band(["b"], [("x", [cell])])]).height == 2 * 60 + 20


def test_a_sheet_has_every_picture_in_its_place():
    shades = [[10, 20, 30], [40, 50, 60], [70, 80, 90]]
    rows = [[Image.new("RGB", (128, 128), (shade,) * 3) for shade in row] for row in shades]
    bands = [Band("abc", [("x", rows[0]), ("longer label", rows[1])]), Band("ab", [("y", rows[2][:2])])]

    sheet = contact_sheet(bands)

    left = sheet.width - 3 * 132
    middles = [left + 64 + 132 * column for column in range(3)]
    assert sheet.height == 2 * 60 + 3 * 132
    assert [sheet.getpixel((x, 60 + 64))[0] for x in middles] == shades[0]
    assert [sheet.getpixel((x, 60 + 132 + 64))[0] for x in middles] == shades[1]
    assert [sheet.getpixel((x, 2 * 60 + 2 * 132 + 64))[0] for x in middles] == [70, 80, 255]
