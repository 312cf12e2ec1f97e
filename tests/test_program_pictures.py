"""A picture of each program is made again: what is used of it, what is told as not used, and the page that lists it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.models import write_kohya
from benchmarks.recall_table import table
from lora_mixer import LoraMixer, PictureMaker
from lora_mixer.picture_metadata import match_adapters, read_picture, recalled_request
from lora_mixer.pictures.samplers import read_sampler
from tests import program_pictures
from tests.models import tiny_sd

MULTI, ANCESTRAL = "DPMSolverMultistepScheduler", "EulerAncestralDiscreteScheduler"
# scheduler, words, clip skip as diffusers counts, emphasis, seed, steps, guidance, size, places of what is not used
EXPECTED = {
    "AUTOMATIC1111": (MULTI, ("karras",), 1, None, 20240517, 28, 6.5, (512, 640), ["ENSD"]),
    "ComfyUI": (MULTI, ("karras",), 1, None, 99, 22, 6.0, (640, 512), ["emphasis"]),
    "InvokeAI": (
        MULTI, ("karras",), 1, "compel", 4242, 26, 7.0, (512, 768),
        ["generation_mode", "rand_device", "cfg_rescale_multiplier"],
    ),
    "Fooocus": (
        MULTI, ("karras",), 1, None, 808, 30, 4.0, (896, 1152),
        ["styles", "performance", "sharpness", "adm_guidance", "refiner_model"],
    ),
    "SwarmUI": (ANCESTRAL, (), 1, None, 515, 18, 5.5, (1024, 1024), ["schedule", "aspectratio"]),
    "SD.Next": (ANCESTRAL, (), 1, None, 31, 24, 5.0, (768, 512), ["Backend", "Pipeline"]),
}  # fmt: skip


@pytest.mark.parametrize("program", EXPECTED)
def test_all_that_can_be_used_is_and_the_rest_is_told(program):
    settings = read_picture(program_pictures.PICTURES[program])

    found = recalled_request(settings)

    request, choice = found.request, read_sampler(found.request.sampler, found.request.schedule)
    size = (request.width, request.height)
    told = [problem.place for problem in found.unused]
    assert (
        choice.scheduler, choice.words, request.clip_skip, request.emphasis, request.seed, request.steps,
        request.guidance_scale, size, told,
    ) == EXPECTED[program]  # fmt: skip
    assert request.negative_prompt.strip("():.123-").startswith(("fog", "blurry"))
    assert request.mix["inkwash"].weight == 0.65


@pytest.mark.parametrize("program", EXPECTED)
def test_the_picture_is_made_with_the_adapters_that_are_here(program, tmp_path):
    mixer = LoraMixer(tiny_sd())
    file = tmp_path / "Ink Wash v2.safetensors"
    write_kohya(mixer.pipe, file, seed=1, rank=2)
    mixer.load_lora_weights(file, adapter_name="here")
    settings = read_picture(program_pictures.PICTURES[program])
    hashes = {
        kind: digits
        for each in settings.adapters
        for kind, digits in each.hashes.items()
        if each.name == "inkwash"
    }
    named = program in ("InvokeAI", "ComfyUI")  # whose hashes, if any, nobody else has
    known = {"inkwash": {}} if named else {"here": hashes}
    matched = match_adapters(settings, known)
    found = {slot.adapter.name: (slot.match, slot.found_by) for slot in matched.slots}
    request = replace(recalled_request(settings).request, width=32, height=32, steps=2,
                      mix={"here": matched.mix[next(iter(known))]})  # fmt: skip

    (picture,) = PictureMaker(mixer).make([request])

    assert found["inkwash"] == (("inkwash", "name") if named else ("here", "hash"))
    assert picture.image.size == (32, 32)
    assert picture.request.emphasis == EXPECTED[program][3]


def test_samplers_that_cannot_spread_noise_in_another_way_are_known():
    import inspect

    import diffusers

    from lora_mixer.pictures.samplers import SAMPLERS, WITHOUT_SIGMAS

    kinds = {
        row.scheduler: inspect.signature(getattr(diffusers, row.scheduler).__init__).parameters
        for row in SAMPLERS
    }

    assert {name for name, takes in kinds.items() if "use_karras_sigmas" not in takes} == WITHOUT_SIGMAS


def test_a_schedule_that_its_sampler_excludes_is_told():
    from lora_mixer import PictureSettings

    found = recalled_request(PictureSettings("x", sampler="DPM++ 2M Karras", schedule="exponential"))

    assert (found.request.sampler, found.request.schedule) == ("DPM++ 2M Karras", None)
    assert [problem.place for problem in found.unused] == ["schedule"]


@pytest.mark.parametrize(("node", "skip"), [(-1, 0), (-2, 1), (-5, 4), (0, None), ("x", None)])
def test_clip_skip_of_comfyui_counts_from_the_last_layer(node, skip):
    import copy
    import json

    graph = copy.deepcopy(program_pictures.COMFYUI)
    graph["3"]["inputs"]["stop_at_clip_layer"] = node

    assert read_picture(program_pictures.png(prompt=json.dumps(graph))).clip_skip == skip


@pytest.mark.parametrize(
    ("prompt", "emphasis"),
    [("a cat", None), ("a cat++ and a dog", "compel"), ("(a cat)1.3", "compel"), ("(a cat)-, dog", "compel"),
     ('("a", "b").blend(1, 2)', "compel"), ("a well-known cat - grey", None), ("C++", "compel"), ("1 - 2", None)],
)  # fmt: skip
def test_prompts_of_invokeai_are_compels_where_there_are_its_marks(prompt, emphasis):
    import json

    table = {**program_pictures.INVOKEAI, "positive_prompt": prompt, "negative_prompt": ""}

    assert read_picture(program_pictures.png(invokeai_metadata=json.dumps(table))).emphasis == emphasis


def test_the_page_is_what_the_command_writes():
    page = Path(__file__).parents[1] / "docs" / "recall.md"

    assert page.read_text(encoding="utf-8") == table()
