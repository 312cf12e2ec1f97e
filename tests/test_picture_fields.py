"""A field of a picture stands in one table: requests, plans, digests, metadata and commands all follow it."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from diffusers import StableDiffusionPipeline
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from typer.testing import CliRunner

from lora_mixer import LoraMixer, PictureError, PictureMaker, PictureRequest, PictureSettings, PlanError
from lora_mixer.batches import check_plan
from lora_mixer.batches.plan import load_plan, plan_schema
from lora_mixer.cli._app import app
from lora_mixer.demo import demo_adapters
from lora_mixer.mixes import Mix
from lora_mixer.picture_metadata import (
    infotext,
    read_picture,
    recalled_request,
    save_picture,
)
from lora_mixer.pictures import PICTURE_FIELDS, PictureFields
from lora_mixer.ui import limits
from lora_mixer.ui.handlers.make import read_more
from lora_mixer.ui.messages import FieldError

NUMBERS = [about for about in PICTURE_FIELDS.values() if about.kind != "text"]
BEYOND = [
    (about.name, value)
    for about in NUMBERS
    for value in (
        *([] if about.low is None else [about.low - 1]),
        *([] if about.high is None else [about.high + 1]),
        True,
        "x",
        *([float("nan"), float("inf")] if about.kind == "number" else [1.5]),
    )
]
SIZE = {"width": 64, "height": 64}


SOME = {"sampler": "DPM++ 2M Karras", "schedule": "trailing"}


def another(about):
    """Give a value that is not the default."""
    if about.name in SOME:
        return SOME[about.name]
    if about.choices:
        return about.choices[-1]
    if about.kind == "text":
        return "some text"
    low = 0 if about.low is None else about.low
    high = low + 16 if about.high is None else about.high
    return min(low + 8, high) if about.kind == "whole" else min(low + 0.5, high)


def test_the_table_has_each_field_of_a_request_but_its_mixes():
    names = {each.name for each in dataclasses.fields(PictureRequest)}

    assert names - set(PICTURE_FIELDS) == {"mix", "negative_mix"}
    assert set(PICTURE_FIELDS) <= {each.name for each in dataclasses.fields(PictureSettings)}
    assert all(about.help.endswith(".") and about.label for about in PICTURE_FIELDS.values())
    assert list(PICTURE_FIELDS) == [each.name for each in dataclasses.fields(PictureFields)]


def test_what_diffusers_is_told_are_arguments_that_it_has():
    takes = inspect.signature(StableDiffusionPipeline.__call__).parameters

    assert {PICTURE_FIELDS[name].argument for name in ("prompt", "negative_prompt", "steps", "width")} <= set(
        takes
    )


@pytest.mark.parametrize(("name", "value"), BEYOND, ids=repr)
def test_requests_plans_and_grids_refuse_the_same_values(name, value):
    job = {"prompt": "a castle", name: value}
    grid = {"prompt": "a castle", "grid": {name: [value]}}

    with pytest.raises(PictureError, match=name):
        PictureRequest(**{"prompt": "a castle", name: value})
    with pytest.raises(PlanError, match=rf"jobs\[0\]\.{name}"):
        load_plan({"jobs": [job]})
    with pytest.raises(PlanError, match=rf"jobs\[0\]\.grid\.{name}"):
        check_plan({"jobs": [grid]})


@pytest.mark.parametrize("name", PICTURE_FIELDS)
def test_a_plan_tells_each_field_to_its_pictures(name, tmp_path):
    about = PICTURE_FIELDS[name]
    value = another(about)
    if about.is_file:
        Image.new("L", (16, 16)).save(tmp_path / "some.png")
        value = "some.png"
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps({"jobs": [{"prompt": "a castle", name: value}]}))

    planned = check_plan(plan)

    expected = str(tmp_path / value) if about.is_file else value
    assert getattr(planned.pictures[0].request, name) == expected


@pytest.mark.parametrize("name", PICTURE_FIELDS)
def test_each_field_is_in_the_digest_and_splits_calls_unless_it_is_apart(name):
    plain = PictureRequest("a castle")
    other = dataclasses.replace(plain, **{name: another(PICTURE_FIELDS[name])})

    assert plain.digest() != other.digest()
    assert other.digest() == dataclasses.replace(other).digest()
    if not PICTURE_FIELDS[name].apart:
        assert plain.call_shape != other.call_shape


@pytest.mark.parametrize("name", PICTURE_FIELDS)
def test_a_picture_remembers_each_field(name, tmp_path):
    value = another(PICTURE_FIELDS[name])
    request = dataclasses.replace(PictureRequest("a castle", **SIZE), **{name: value})

    path = save_picture(Image.new("RGB", (64, 64)), tmp_path / "x.png", PictureSettings.of_request(request))

    assert getattr(read_picture(path), name) == value


@pytest.mark.parametrize("name", [name for name, about in PICTURE_FIELDS.items() if about.infotext])
def test_other_programs_are_told_each_field_that_they_have_a_name_for(name, tmp_path):
    about = PICTURE_FIELDS[name]
    value = another(about)
    settings = PictureSettings.of_request(PictureRequest("a castle", **{"steps": 9, name: value}))
    text = infotext(settings)
    info = PngInfo()
    info.add_text("parameters", text.replace("Version: lora-mixer", "Version: 1.10.1, Was"))
    Image.new("RGB", (64, 64)).save(tmp_path / "x.png", pnginfo=info)

    read = read_picture(tmp_path / "x.png")

    assert f"{about.infotext}: " in text
    assert read.dialect == "a1111"
    assert str(getattr(read, name)).casefold().replace(" karras", "") in (str(value).casefold(), "dpm++ 2m")
    assert about.infotext not in read.extra


def test_what_the_text_of_a_picture_says_and_cannot_be_is_reported(tmp_path):
    info = PngInfo()
    info.add_text("parameters", "a castle\nSteps: 20, Clip skip: 0, CFG scale: many, Seed: 7, Size: 64x64")
    Image.new("RGB", (64, 64)).save(tmp_path / "x.png", pnginfo=info)

    read = read_picture(tmp_path / "x.png")

    assert (read.steps, read.clip_skip, read.guidance_scale) == (20, None, None)
    assert dict(read.extra) == {"Clip skip": "0", "CFG scale": "many"}
    assert {problem.place for problem in recalled_request(read).unused} == {"Clip skip", "CFG scale"}


@pytest.mark.parametrize("strange", ["two words", "it's", 'a "b" \x1b[0m', "x" * 300])
def test_what_a_picture_says_and_is_not_used_is_quoted_as_people_do(strange):
    texts = {
        about.name: strange
        for about in PICTURE_FIELDS.values()
        if about.kind == "text" and "prompt" not in about.name
    }
    found = recalled_request(PictureSettings(**texts, extra={"Hires upscale": strange}))
    said = {problem.place: problem.text for problem in found.unused}
    assert {"Hires upscale", "image", "sampler", "emphasis"} <= set(said)
    for text in said.values():
        assert repr(strange)[:20] not in text.replace('"it\'s"', ""), text
        assert text.isprintable(), text
        assert len(text) < 600, text
    assert said["image"].startswith(f'"{strange[:5]}')


@pytest.mark.parametrize("name", PICTURE_FIELDS)
def test_generate_has_an_option_for_each_field_with_its_meaning(name):
    result = CliRunner().invoke(app, ["generate", "--help"], env={"COLUMNS": "300"}, terminal_width=300)

    assert f"--{name.replace('_', '-')}" in result.stdout
    assert PICTURE_FIELDS[name].help.split(".")[0] in result.stdout


@pytest.mark.parametrize("about", [about for about in NUMBERS if about.low is not None], ids=lambda x: x.name)
def test_generate_refuses_what_the_table_refuses(about):
    flag = f"--{about.name.replace('_', '-')}"

    result = CliRunner().invoke(
        app, ["generate", "--model", "demo", "--prompt", "x", flag, str(about.low - 1)]
    )

    assert result.exit_code == 2
    assert flag in result.stderr


def test_the_schema_describes_each_field():
    schema = plan_schema()["$defs"]["PictureEntry"]["properties"]

    assert all(schema[name]["description"] == about.help for name, about in PICTURE_FIELDS.items())


# --- the mix of the half without the prompt ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mixer():
    from lora_mixer import load_demo

    made = LoraMixer(load_demo())
    for name in ("ink", "neon"):
        made.load_lora_weights(demo_adapters()[name].path, adapter_name=name)
    made.set_mix({})
    return made


def by_hand(mixer, request, mix, negative):
    import torch

    with mixer.applied(mix, negative=negative):
        image = mixer.pipe(
            "a castle", negative_prompt="rain", num_inference_steps=2, guidance_scale=3.0,
            generator=torch.Generator().manual_seed(request.seed),
        ).images[0]  # fmt: skip
    return np.asarray(image)


def test_a_negative_mix_is_what_the_mixer_makes_of_it(mixer):
    request = PictureRequest(
        "a castle", "rain", seed=3, steps=2, guidance_scale=3.0, mix="ink:0.7", negative_mix="ink:0.7, neon:1"
    )
    tagged = PictureRequest(
        "a castle <lora:ink:0.7>", "rain <lora:neon:1>", seed=3, steps=2, guidance_scale=3.0
    )

    made, from_tags, without = (
        np.asarray(picture.image)
        for picture in PictureMaker(mixer).make(
            [request, tagged, dataclasses.replace(request, negative_mix=None)]
        )
    )

    expected = by_hand(mixer, request, {"ink": 0.7}, {"ink": 0.7, "neon": 1.0})
    assert np.array_equal(made, expected)
    assert np.array_equal(from_tags, expected)
    assert not np.array_equal(without, expected)


def test_pictures_with_negative_mixes_of_their_own_share_a_batch(mixer):
    asked = [
        PictureRequest("a castle", "rain", seed=1, steps=2, mix="ink:1", negative_mix="neon:1"),
        PictureRequest("an owl", "rain", seed=2, steps=2, mix="neon:0.5"),
    ]

    alone = [next(iter(PictureMaker(mixer).make([request]))) for request in asked]
    together = sorted(PictureMaker(mixer, batch_size=2).make(asked), key=lambda picture: picture.index)

    assert [picture.batch for picture in together] == [2, 2]
    for one, both in zip(alone, together, strict=True):
        difference = np.abs(np.asarray(one.image).astype(int) - np.asarray(both.image).astype(int))
        assert difference.max() <= 1


def test_a_negative_mix_is_in_the_digest_and_in_the_picture(tmp_path):
    plain = PictureRequest("a castle", mix="ink:1")
    other = dataclasses.replace(plain, negative_mix="ink:1, neon:0.5")

    path = save_picture(
        Image.new("RGB", (64, 64)), tmp_path / "x.png", PictureSettings.of_request(other),
        hashes={"neon": {"autov3": "0123456789ab"}},
    )  # fmt: skip

    assert plain.digest() != other.digest()
    assert dataclasses.replace(plain, negative_mix="ink:1") == plain
    back = read_picture(path)
    assert (back.mix, back.negative_mix) == (Mix.of("ink:1"), Mix.of("ink:1, neon:0.5"))
    assert back.adapters[1].hashes["autov3"] == "0123456789ab"


def test_plans_give_negative_mixes_and_check_their_names():
    adapters = {"ink": "demo:ink"}
    planned = check_plan(
        {"adapters": adapters, "jobs": [{"prompt": "a castle", "negative_prompt": "rain <lora:ink:2>"}]}
    )

    assert planned.pictures[0].request.negative_mix == Mix.of("ink:2")
    assert planned.pictures[0].request.negative_prompt == "rain"
    with pytest.raises(PlanError, match="neon"):
        check_plan({"adapters": adapters, "jobs": [{"prompt": "a castle", "negative_mix": "neon:1"}]})


def test_generate_makes_the_demo_as_the_demo_is_made_best(tmp_path):
    out = tmp_path / "x.png"

    result = CliRunner().invoke(
        app, ["generate", "--model", "demo", "--prompt", "a castle", "--seed", "1", "--out", str(out)]
    )

    assert result.exit_code == 0, result.stderr
    settings = read_picture(out)
    assert (settings.steps, settings.guidance_scale, settings.width) == (20, 3.0, 128)


def test_the_page_and_the_nodes_take_no_more_than_the_table():
    steps, width, height, seed = (PICTURE_FIELDS[name] for name in ("steps", "width", "height", "seed"))

    assert steps.high >= limits.MAX_STEPS
    assert width.low <= limits.MIN_SIDE < limits.MAX_SIDE <= min(width.high, height.high)
    assert seed.high == limits.MAX_SEED + limits.MAX_COUNT


class Starts:
    """What the page keeps to start from: anything."""

    def path(self, digest):
        return f"{digest}.png"


PAGE = SimpleNamespace(
    models=SimpleNamespace(facts=SimpleNamespace(samplers={}, guided=True, title="m")), starts=Starts()
)


@pytest.mark.parametrize(
    ("key", "name", "plus", "beside"),
    [
        ("clip_skip", "clip_skip", 1, {}),
        ("strength", "strength", 0, {"start": "a"}),
        ("guide_scale", "ip_adapter_scale", 0, {"guide": "a"}),
    ],
)
def test_the_page_takes_numbers_within_the_tables_limits(key, name, plus, beside):
    about = PICTURE_FIELDS[name]
    given = {**limits.NOTHING_MORE, "guide": "a", **beside}

    for value in (about.low, about.high):
        assert read_more(PAGE, {**given, key: value + plus}).get(name, about.low) == value
    for value in (about.low - 1, about.high + 1):
        with pytest.raises(FieldError):
            read_more(PAGE, {**given, key: value + plus})


@pytest.mark.parametrize("name", ["sampler", "schedule"])
def test_the_page_takes_names_as_long_as_the_tables(name):
    with pytest.raises(FieldError, match=f"{PICTURE_FIELDS[name].high:g}"):
        read_more(PAGE, {name: "x" * (int(PICTURE_FIELDS[name].high) + 1)})


def test_what_the_page_has_where_nothing_is_said_stands_in_one_place():
    root = Path(limits.__file__).parent

    said = {
        path.name
        for path in (*root.rglob("*.py"), *root.rglob("*.js"))
        if re.search(r"guide_scale[^\w\n]*:\s*0", path.read_text(encoding="utf-8"))
    }
    assert said == {"limits.py"}
