"""Plans: what they say, how they are written out, and that a mistake is told with its line, never as a traceback."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import jsonschema
import pytest
import yaml
from PIL import Image

from benchmarks.bad_plans import bad_plan, good_plan, make_files, verdict
from lora_mixer.batches import check_plan, dry_run, load_plan, parse_plan, plan_schema
from lora_mixer.errors import PlanError, SourceNotFoundError
from lora_mixer.pictures import load_outline


@pytest.fixture(scope="module")
def outline():
    return load_outline("demo")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("plans")
    make_files(place)
    return place


def checked(jobs, folder, outline, **more):
    plan = {
        "adapters": {"a": str(folder / "a.safetensors"), "b": str(folder / "b.safetensors")},
        "jobs": jobs,
    }
    return check_plan({**plan, **more}, outline=outline)


def problems(raw, kind="yaml", folder=None, outline=None):
    with pytest.raises(PlanError) as caught:
        check_plan(parse_plan(raw.encode(), kind, folder=folder), outline=outline)
    return caught.value.problems


# --- writing out -------------------------------------------------------------------------------------------------------


def test_a_grid_is_every_combination_with_the_last_axis_fastest(folder, outline):
    job = {"prompt": "x", "grid": {"weight a": [0, 1], "seed": "3..4"}, "repeat": 2}

    found = [(x.request.mix.to_text(), x.request.seed) for x in checked([job], folder, outline).pictures]

    assert found == [
        ("a:0", 3), ("a:0", 4), ("a:0", 4), ("a:0", 5), ("a:1", 3), ("a:1", 4), ("a:1", 4), ("a:1", 5),
    ]  # fmt: skip


def test_lists_in_zip_go_side_by_side(folder, outline):
    job = {"prompt": "x", "zip": {"seed": [5, 6], "mix": ["a:1", {"b": 0.5}]}}

    found = [(x.request.seed, x.request.mix.to_text()) for x in checked([job], folder, outline).pictures]

    assert found == [(5, "a:1"), (6, "b:0.5")]


def test_a_job_wins_over_defaults_and_a_tag_over_the_mix(folder, outline):
    plan = {"defaults": {"steps": 9, "size": "64x32", "mix": "a:1"}}
    jobs = [{"prompt": "x"}, {"prompt": "y <lora:a:0.5>", "steps": 3, "width": 128}]

    first, second = (x.request for x in checked(jobs, folder, outline, **plan).pictures)

    assert (first.steps, first.width, first.height, first.mix.to_text()) == (9, 64, 32, "a:1")
    assert (second.steps, second.width, second.height, second.mix.to_text()) == (3, 128, 32, "a:0.5")
    assert second.prompt == "y"


def test_the_demos_own_steps_and_guidance_are_filled_in(folder, outline):
    (picture,) = checked([{"prompt": "x"}], folder, outline).pictures

    assert (picture.request.steps, picture.request.guidance_scale) == (20, 3.0)


def test_a_wildcard_is_drawn_by_the_seed_alone_whatever_else_the_plan_has(folder, outline):
    (folder / "animals.txt").write_text("# animals\ncat\n\nowl\nfox\n", encoding="utf-8")
    wildcards = {"animal": str(folder / "animals.txt"), "time": ["dusk", "dawn"]}
    job = {"prompt": "a __animal__ at __time__", "grid": {"seed": "0..19"}}

    alone = [x.request.prompt for x in checked([job], folder, outline, wildcards=wildcards).pictures]
    later = checked([{"prompt": "x"}, job], folder, outline, wildcards=wildcards).pictures[1:]

    assert [x.request.prompt for x in later] == alone
    assert {prompt.split()[1] for prompt in alone} == {"cat", "owl", "fox"}
    assert alone[:3] == ["a cat at dusk", "a cat at dusk", "a fox at dusk"]


def test_a_grid_over_a_wildcard_takes_each_of_its_values(folder, outline):
    job = {"prompt": "a __w__ and a __w__", "grid": {"__w__": "all"}}

    found = [x.request.prompt for x in checked([job], folder, outline, wildcards={"w": ["b", "c"]}).pictures]

    assert found == ["a b and a b", "a c and a c"]


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("yaml", "adapters: {a: a.safetensors}\njobs:\n- {prompt: x, seed: 7, mix: 'a:0.5'}\n- {prompt: 'no', seed: 8}\n"),
        ("json", json.dumps({"adapters": {"a": "a.safetensors"}, "jobs": [{"prompt": "x", "seed": 7, "mix": "a:0.5"}, {"prompt": "no", "seed": 8}]}, indent="\t")),
        ("jsonl", '{"plan": {"adapters": {"a": "a.safetensors"}}}\n{"prompt": "x", "seed": 7, "mix": "a:0.5"}\n\n{"prompt": "no", "seed": 8}\n'),
        ("csv", "# adapters: {a: a.safetensors}\nprompt,seed,mix\nx,7,a:0.5\nno,8,\n"),
    ],
)  # fmt: skip
def test_all_forms_say_the_same(folder, outline, kind, text):
    plan = check_plan(parse_plan(text.encode(), kind, folder=folder), outline=outline)

    found = [(x.request.prompt, x.request.seed, x.request.mix.to_text(), x.file) for x in plan.pictures]

    assert found == [("x", 7, "a:0.5", "00000-7.png"), ("no", 8, "", "00001-8.png")]


def test_merge_keys_and_anchors_of_yaml_are_understood():
    plan = parse_plan(b"jobs:\n- &one {prompt: x, seed: 1}\n- {<<: *one, seed: 2}\n", "yaml")

    assert [(job.prompt, job.seed) for job in plan.jobs] == [("x", 1), ("x", 2)]


def test_a_file_is_read_by_its_ending_and_its_paths_are_relative_to_it(folder, outline):
    (folder / "plan.yaml").write_text("adapters: {a: a.safetensors}\njobs: [{prompt: x, mix: 'a:1'}]\n")

    plan = check_plan(folder / "plan.yaml", outline=outline)

    assert plan.adapters["a"].source == str(folder / "a.safetensors")
    assert plan.folder == str(folder / "pictures")


def test_masks_are_relative_to_the_plans_file_too(folder, outline, tmp_path):
    Image.new("L", (8, 8), 255).save(tmp_path / "left.png")
    jobs = [
        {"mix": "a:1,mask=left.png"},
        {
            "grid": {"mix": ["a:1,mask=left.png,feather=2", {"a": {"weight": 1, "mask": "left.png"}}]},
            "sheet": True,
        },
    ]
    plan = {
        "adapters": {"a": str(folder / "a.safetensors")},
        "defaults": {"prompt": "x", "mix": "a:1,mask=left.png"},
        "jobs": [*jobs, {}],
    }
    (tmp_path / "plan.json").write_text(json.dumps(plan))

    masks = [x.request.mix["a"].mask for x in check_plan(tmp_path / "plan.json", outline=outline).pictures]

    assert [mask.path for mask in masks] == [str(tmp_path / "left.png")] * 4
    assert [mask.feather for mask in masks] == [0, 2, 0, 0]
    assert all(mask.load().min() == 1 for mask in masks)

    (tmp_path / "left.png").unlink()
    with pytest.raises(PlanError, match=r"line 1: jobs\[0\].*there is no picture .*left.png"):
        check_plan(tmp_path / "plan.json", outline=outline)


def test_every_file_of_an_adapter_folder_is_an_adapter(folder, outline, tmp_path):
    for name in ("one", "two"):
        (tmp_path / f"{name}.safetensors").write_bytes((folder / "a.safetensors").read_bytes())

    plan = check_plan(
        {"adapter_folders": [str(tmp_path)], "jobs": [{"prompt": "x", "mix": "one:1, two:1"}]},
        outline=outline,
    )

    assert sorted(plan.infos) == ["one", "two"]


def test_the_key_of_a_picture_follows_what_its_adapter_file_holds(folder, outline, tmp_path):
    file = tmp_path / "a.safetensors"
    file.write_bytes((folder / "a.safetensors").read_bytes())
    plan = {"adapters": {"a": str(file)}, "jobs": [{"prompt": "x", "mix": "a:1"}, {"prompt": "x"}]}
    before = check_plan(plan, outline=outline)

    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    after = check_plan(plan, outline=outline)

    assert after.key(after.pictures[0]) != before.key(before.pictures[0])
    assert after.key(after.pictures[1]) == before.key(before.pictures[1])


def test_the_plan_of_the_page_on_batches_is_one():
    page = (Path(__file__).parents[1] / "docs" / "batches.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)

    plan = parse_plan(text.encode(), "yaml")

    assert plan.jobs[0].grid == {"weight ink": [0, 0.5, 1], "seed": "1..4"}


# --- mistakes ----------------------------------------------------------------------------------------------------------


def test_all_mistakes_are_told_at_once_with_their_lines(folder, outline):
    raw = (
        "adapters:\n  a: a.safetensors\n  gone: gone.safetensors\n  wrong: wrong.safetensors\n"
        "jobs:\n- prompt: x\n  mix: a:1, nobody:1\n- prompt: a __nothing__\n- prompt: x\n  size: 12x64\n"
    )

    found = {problem.line: problem for problem in problems(raw, folder=folder, outline=outline)}

    assert {line: problem.place for line, problem in found.items()} == {
        3: "adapters.gone",
        4: "adapters.wrong.unet.conv_in",
        7: "jobs[0].mix",
        8: "jobs[1].prompt",
        9: "jobs[2].width",
    }
    assert "neither a file or folder" in found[3].text
    assert found[4].text == "made for a weight (3, 9), the module has (64, 4, 3, 3)"
    assert "nobody" in found[7].text
    assert "__nothing__" in found[8].text
    assert "multiple of 8" in found[9].text


@pytest.mark.parametrize(
    ("raw", "kind", "line", "word"),
    [
        ("jobs:\n- prompt: x\n  sede: 1\n", "yaml", 3, "no such setting"),
        ("jobs:\n- prompt: x\n  seed: 1\n  seed: 2\n", "yaml", 4, "named twice"),
        (
            '{"jobs": [\n{"prompt": "x"},\n{"prompt": "y", "steps": 0}]}',
            "json",
            3,
            "greater than or equal to 1",
        ),
        ('{"jobs": [\n{"prompt": "x",}]}', "json", 2, "JSON"),
        ('{"prompt": "x"}\n{"prompt": 5}\n', "jsonl", 2, "valid string"),
        ('prompt,seed\n"two\nlines",1\nx,minus\n', "csv", 4, "valid integer"),
        (
            "jobs:\n- prompt: x\n  grid:\n    seed: [1]\n    steps:\n    - 1\n    - 0\n",
            "yaml",
            7,
            "greater than",
        ),
        ("jobs:\n- prompt: x\n  grid: {seed: '9..1'}\n", "yaml", 3, "upwards"),
        ("output:\n  name: same\njobs:\n- {prompt: x, repeat: 2}\n", "yaml", 2, "{index}"),
        ("wildcards: {w: [__w__]}\njobs:\n- prompt: __w__\n", "yaml", 3, "name each other"),
    ],
)
def test_a_mistake_is_told_at_its_line(outline, raw, kind, line, word):
    found = problems(raw, kind, outline=outline)

    assert [problem.line for problem in found] == [line]
    assert word in found[0].text


def test_block_weights_are_checked_against_the_model(folder, outline):
    raw = "adapters: {a: a.safetensors}\njobs:\n- prompt: x\n  mix: {a: {unet: {down: [1, 2, 3, 4, 5, 6, 7]}}}\n"

    found = problems(raw, folder=folder, outline=outline)

    assert {(problem.line, problem.place) for problem in found} == {(4, "jobs[0].mix.a.blocks")}
    assert all(f"down.block_{i}: expected" in found[i].text for i in range(3))


def test_an_unknown_component_is_told_though_an_equal_mix_without_it_stands_before(folder, outline):
    raw = "adapters: {a: a.safetensors}\njobs:\n- {prompt: x, mix: 'a:1'}\n- {prompt: x, mix: {a: {nowhere: 1}}}\n"

    (problem,) = problems(raw, folder=folder, outline=outline)

    assert (problem.line, problem.place) == (4, "jobs[1].mix")
    assert "no component nowhere" in problem.text


def test_aliases_of_aliases_end_in_an_error_not_in_all_memory():
    raw = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
    )

    with pytest.raises(PlanError, match=r"more than .* values"):
        parse_plan(raw.encode(), "yaml")


def test_a_plan_that_is_not_there_or_of_another_kind_is_refused(tmp_path):
    with pytest.raises(SourceNotFoundError):
        load_plan(tmp_path / "gone.yaml")
    (tmp_path / "plan.txt").write_text("x")
    with pytest.raises(PlanError, match=r"\.yaml"):
        load_plan(tmp_path / "plan.txt")


def test_generated_bad_plans_give_an_error_with_a_line_each_time(folder, outline):
    wrong = {}
    for seed in range(100_000, 100_300):
        raw, kind, what = bad_plan(seed)
        result = verdict(raw, kind, folder, outline)
        if result != "line":
            wrong[seed] = (kind, what, result)

    assert wrong == {}


def test_what_bad_plans_are_made_of_is_right_before(folder, outline):
    for seed in range(30):
        raw = yaml.safe_dump(good_plan(random.Random(seed)), sort_keys=False).encode()

        assert verdict(raw, "yaml", folder, outline) == "accepted"


# --- schema and dry run ------------------------------------------------------------------------------------------------


def test_the_schema_takes_what_plans_take_and_refuses_what_they_refuse():
    validator = jsonschema.Draft202012Validator(plan_schema())

    assert all(validator.is_valid(good_plan(random.Random(seed))) for seed in range(30))
    assert not validator.is_valid({"jobs": [{"prompt": "x", "sede": 1}]})
    assert not validator.is_valid({"jobs": [{"prompt": "x", "steps": 0}]})
    assert not validator.is_valid({})


def test_a_dry_run_tells_pictures_adapters_order_and_reads(folder, outline):
    jobs = [
        {"name": "grid", "prompt": "x", "grid": {"seed": "0..2", "mix": ["b:1", "a:1", "a:1, b:1"]}},
        {"prompt": "y"},
    ]

    found = dry_run(checked(jobs, folder, outline, run={"cache_adapters": 1}), trial=False)

    assert (found.pictures, found.jobs) == (10, {"grid": 9, "1": 1})
    assert found.order == [((), 1), (("a",), 3), (("a", "b"), 3), (("b",), 3)]
    assert (found.rewrites, found.loads) == (3, 2)
    assert found.adapters["a"]["pictures"] == 6
    assert found.seconds is None
