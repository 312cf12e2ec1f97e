"""One strict reader and one collector: mixes and plans hear of the same mistakes, with place and line."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save, save_file

from lora_mixer import (
    CorruptFileError,
    Library,
    LoraConfig,
    LoraMixer,
    LoraMixerError,
    Mix,
    MixError,
    PictureRequest,
    PlanError,
    SavedMixes,
    SourceError,
    SourceNotFoundError,
    read_adapter,
)
from lora_mixer.batches import check_plan, parse_plan
from lora_mixer.engines.denoiser.scaled import scale_of
from lora_mixer.merging import MergeMethod
from lora_mixer.parsing.data import dump_yaml, load, locate
from lora_mixer.parsing.json_text import NotJsonError, json_or_none, loose_json, read_json, strict_json
from lora_mixer.parsing.problems import Problems
from lora_mixer.pictures import load_outline
from lora_mixer.writing import convert, merge, resize

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("form", ["json", "yaml"])
@pytest.mark.parametrize(
    ("text", "line", "word"),
    [
        ('{"a": 1,\n "b": 2,\n "a": 3}', 3, "'a' is named twice"),
        ('{"a": {"x": 1,\n "x": 1}}', 2, "'x' is named twice"),
        ('{"a": 1,\n "b": [1, 2}', 2, "expected {form}"),
        ("[" * 100_000, 1, "nested too deeply"),
    ],
)
def test_what_is_wrong_with_a_text_is_told_at_its_line(form, text, line, word):
    problems = Problems()

    locate(form, text, problems)

    assert [problem.line for problem in problems.problems] == [line]
    assert word.format(form=form.upper()) in problems.problems[0].text


@pytest.mark.parametrize("form", ["json", "yaml"])
def test_a_mix_of_several_lines_carries_the_line_of_what_is_wrong(form):
    read = Mix.from_json if form == "json" else Mix.from_yaml

    with pytest.raises(MixError, match="line 2: 'ink' is named twice") as caught:
        read('{"ink": 1,\n"ink": 2}')

    assert [problem.line for problem in caught.value.problems] == [2]


def test_json_has_no_numbers_that_json_does_not_have():
    for text in ("NaN", "[Infinity]", '{"a": -Infinity}'):
        with pytest.raises(MixError, match="is not a number there"):
            Mix.from_json(text)


def test_yaml_says_what_it_says_in_plans_and_in_mixes():
    text = "no: 1e-1\non: 0.5\n1: {unet: 1}\n"

    mix = Mix.of(text)

    assert {name: mix[name].gain("unet", "") for name in mix.names} == {"no": 0.1, "on": 0.5, "1": 1.0}
    plan = parse_plan(
        f"jobs:\n- prompt: x\n  mix:\n    {text.replace(chr(10), chr(10) + '    ')}".encode(), "yaml"
    )
    assert Mix.of(plan.jobs[0].mix) == mix


@pytest.mark.parametrize(
    "value", ["1e-3", "0x10", "1:30", "no", "~", "2026-11-30", "\u2028", "a: b", "\x85", ".5"]
)
def test_texts_are_written_so_that_they_are_texts_again(value):
    table = {"a": value, value: [1.0, 1e-7, 3]}

    assert load("yaml", dump_yaml(table), Problems()) == table


def test_lines_of_json_are_those_of_its_values():
    located = locate("json", json.dumps({"a": {"b": [1, {"c": 2}]}}, indent=1), Problems())

    assert [located.line(path) for path in ((), ("a",), ("a", "b", 1, "c"), ("a", "gone"))] == [1, 2, 6, 2]


def test_the_same_problem_at_the_same_place_counts_once_and_all_are_sorted_by_line():
    problems = Problems({("a",): 7, ("b",): 3}.get, lambda found: PlanError(problems=found, file="x.yaml"))
    for path in (("a",), ("b",), ("a",)):
        problems.problem(path, "is odd")

    with pytest.raises(PlanError) as caught:
        problems.finish()

    assert [(each.line, each.place) for each in caught.value.problems] == [(3, "b"), (7, "a")]
    assert str(caught.value) == "x.yaml: this plan cannot be made:\n  line 3: b: is odd\n  line 7: a: is odd"
    assert caught.value.file == "x.yaml"


@pytest.mark.parametrize(
    ("job", "place", "line"),
    [
        ("{prompt: 'a __gone__'}", "jobs[0].prompt", 3),
        ("{prompt: x, negative_prompt: 'a {b'}", "jobs[0].negative_prompt", 3),
        ("{prompt: '<lora:nobody:1>'}", "jobs[0].prompt.<lora:nobody:1>", 3),
        ("{prompt: x, negative_prompt: '<lora:nobody:1>'}", "jobs[0].negative_prompt.<lora:nobody:1>", 3),
        # words of one field in the value of another: the field is known, not guessed from the sentence
        ("{prompt: a wildcard prompt, mix: 'nobody:1'}", "jobs[0].mix", 3),
        ("{prompt: x, negative_mix: 'prompt:1'}", "jobs[0].negative_mix", 3),
        ("{prompt: x, mix: 'a:nan'}", "jobs[0].mix.a", 3),
        ("{prompt: x, seed: 9223372036854775807, repeat: 2}", "jobs[0].seed", 3),
        ("{prompt: x, image: prompt.png}", "jobs[0].image", 3),
        ("{steps: 3}", "jobs[0]", 3),
        ("{prompt: x, sampler: wildcard}", "jobs[0].sampler", 3),
    ],
)  # fmt: skip
def test_a_problem_of_a_job_knows_its_field(job, place, line):
    with pytest.raises(PlanError) as caught:
        check_plan(parse_plan(f"adapters: {{a: 'demo:ink'}}\njobs:\n- {job}\n".encode(), "yaml"))

    assert {(problem.place, problem.line) for problem in caught.value.problems} == {(place, line)}


YAML_OF_ALL = """\
adapters:
  v1.5 ink:
    weight: 0.7
    components:
      unet: 0.8
      te: high
    schedule: 1@0, 2@
  wash:
    unet:
      down: 0.5
      up:
        block_0: [0.1, x, 0.9]
  soft:
    weihgt: 0.4
    mask: nowhere.png
method: swich
"""
EXPECTED = {
    "v1.5 ink.components.te": 6,
    "v1.5 ink.schedule": 7,
    "wash.unet.up.block_0[1]": 12,
    "soft": 14,
    "soft.mask": 15,
    "method": 16,
}


def problems_of(read, text):
    with pytest.raises(MixError) as caught:
        read(text)
    return {problem.place: problem.line for problem in caught.value.problems}


@pytest.mark.parametrize("read", [Mix.of, Mix.from_yaml])
def test_what_a_mix_of_several_lines_says_is_told_at_its_line(read):
    assert problems_of(read, YAML_OF_ALL) == EXPECTED


@pytest.mark.parametrize("read", [Mix.of, Mix.from_json])
@pytest.mark.parametrize("indent", [1, 2, "\t"])
def test_json_of_several_lines_is_told_at_its_lines(read, indent):
    text = json.dumps({"a": {"unet": 0.5, "te": "x"}, "b": {"weight": [1]}, "c": 0.4}, indent=indent)

    assert problems_of(read, f"\n\n{text}") == {"a.te": 6, "b.weight": 9}


def test_a_list_and_a_table_of_names_have_lines_too():
    assert problems_of(Mix.of, '["a",\n ["b", {"unet":\n "x"}],\n ["c", 1, 2]]') == {"b.unet": 2, "[2]": 4}
    assert problems_of(Mix.of, "a: 1\nb:\n  unet: .nan\n") == {"b.unet": 3}


def test_one_line_and_values_have_none():
    assert problems_of(Mix.of, '{"a": "x"}') == {"a": None}
    assert problems_of(Mix.of, {"a": {"te": "x"}}) == {"a.te": None}
    assert problems_of(Mix.from_yaml, "a: x\n") == {"a": None}


def test_a_line_stands_before_its_problem():
    with pytest.raises(MixError, match=r"line 3: a\.te: expected a finite number, got 'x'"):
        Mix.of("a:\n  unet: 1\n  te: x\n")


def test_json_is_read_in_one_place():
    """Headers, configurations, strangers' texts, the page's files, nodes' fields: nesting without end is nobody's traceback."""
    odd = []
    paths = [
        path for front in ("lora_mixer", "ui", "comfyui") for path in sorted((ROOT / front).rglob("*.py"))
    ]
    for path in paths:
        name = path.relative_to(ROOT).as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                called = f"{node.value.id}.{node.attr}"
                if called in {"json.load", "json.loads", "json.JSONDecoder", "yaml.safe_load", "yaml.load"}:
                    odd.append((name, called))

    assert {name for name, _ in odd} == {"lora_mixer/parsing/json_text.py"}


DEEP = "[" * 100_000
DEEP_BYTES = len(DEEP).to_bytes(8, "little") + DEEP.encode()


@pytest.mark.parametrize(
    "text",
    [DEEP, '{"a": ' + "9" * 5000 + "}", '{"a"', "\x00", '{"a": 1}{', "[1, 2]]", ""],
    ids=lambda text: text[:8],
)
@pytest.mark.parametrize("read", [strict_json, loose_json, read_json])
def test_what_is_not_json_is_one_kind_of_error(read, text):
    with pytest.raises(NotJsonError) as caught:
        read(text)

    assert caught.value.text
    assert json_or_none(text) is None


def test_bytes_that_are_no_text_are_not_json():
    with pytest.raises(NotJsonError):
        loose_json(b"\xff\xfe\xfa{")


@pytest.mark.parametrize("name", ["model_index.json", "adapter_config.json", "safetensors"])
def test_json_that_is_too_deep_is_the_files_fault(name, tmp_path):
    if name == "safetensors":
        with pytest.raises(CorruptFileError, match="not valid JSON"):
            read_adapter(DEEP_BYTES)
        return
    (tmp_path / name).write_text(DEEP)
    if name == "model_index.json":
        with pytest.raises(SourceNotFoundError, match="too deeply"):
            load_outline(str(tmp_path))
    else:
        (tmp_path / "adapter_model.safetensors").write_bytes(save({"x.lora_A.weight": torch.ones(1, 2)}))
        with pytest.raises(CorruptFileError, match="too deeply"):
            read_adapter(tmp_path)


# --- numbers that no float can hold, or that Python does not even write ------------------------------------------------

PAIR = {"0.lora_A.weight": torch.ones(2, 4), "0.lora_B.weight": torch.ones(4, 2)}


def mixed():
    mixer = LoraMixer(torch.nn.Sequential(torch.nn.Linear(4, 4)))
    mixer.load_lora_weights(PAIR, "a")
    return mixer


def resized(folder, **cut):
    save_file(PAIR, folder / "a.safetensors")
    return resize(folder / "a.safetensors", folder / "b.safetensors", **cut)


ENTRIES = {
    "set_adapters": lambda n, _: mixed().set_adapters("a", n),
    "a list of weights": lambda n, _: mixed().set_adapters(["a"], [n]),
    "set_mix": lambda n, _: mixed().set_mix({"a": n}),
    "applied": lambda n, _: mixed().applied({"a": n}).__enter__(),
    "a schedule": lambda n, _: mixed().set_mix({"a": {"weight": 1.0, "schedule": [[0, n], [1, 1]]}}),
    "a block": lambda n, _: mixed().set_mix({"a": {"weight": 1.0, "blocks": {"0": n}}}),
    "a call's scale": lambda n, _: scale_of(n, "scale"),
    "reserve": lambda n, _: mixed().reserve(n),
    "rows": lambda n, _: mixed().reserve(2, rows=n),
    "max_rank": lambda n, _: mixed().load_lora_weights(PAIR, "b", max_rank=min(n, 0)),
    "dora_strength": lambda n, _: mixed().load_lora_weights(PAIR, "b", dora_strength=n),
    "a method's setting": lambda n, _: MergeMethod.of("ties", density=n),
    "energy": lambda n, folder: resized(folder, energy=n),
    "sv_ratio": lambda n, folder: resized(folder, sv_ratio=n),
    "rank": lambda n, folder: resized(folder, rank=n),
    "conv_rank": lambda n, folder: resized(folder, rank=1, conv_rank=n),
    "a merged file's weight": lambda n, folder: merge([(PAIR, n)], folder / "b.safetensors"),
    "r": lambda n, _: mixed().add_adapter(LoraConfig(r=n, target_modules=["0"])),
    "lora_alpha": lambda n, _: mixed().add_adapter(LoraConfig(lora_alpha=n, target_modules=["0"])),
    "lora_dropout": lambda n, _: mixed().add_adapter(LoraConfig(lora_dropout=n, target_modules=["0"])),
    "rank_pattern": lambda n, _: mixed().add_adapter(LoraConfig(rank_pattern={"0": n}, target_modules=["0"])),
    "alpha_pattern": lambda n, _: mixed().add_adapter(
        LoraConfig(alpha_pattern={"0": n}, target_modules=["0"])
    ),
    "a dict of PEFT's": lambda n, _: mixed().add_adapter(
        {"peft_type": "LORA", "lora_alpha": n, "target_modules": ["0"]}
    ),
    "steps": lambda n, _: PictureRequest("a", steps=n),
    "seed": lambda n, _: PictureRequest("a", seed=n),
    "width": lambda n, _: PictureRequest("a", width=n),
    "guidance": lambda n, _: PictureRequest("a", guidance_scale=n),
    "a plan": lambda n, folder: check_plan(
        {"model": "demo", "jobs": [{"prompt": "a", "steps": n}], "output": {"folder": str(folder)}}
    ),
    "page": lambda n, folder: Library(folder).search("", page=-abs(n)),
    "page_size": lambda n, folder: Library(folder).search("", page_size=n),
    "a saved mix": lambda n, folder: SavedMixes(folder / "mixes.json").save("x", {"a": n}),
}


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_number_that_no_float_holds_is_refused_in_own_words(entry, tmp_path):
    for number in (10**400, -(10**400), 10**5000, -(10**5000)):
        with pytest.raises(LoraMixerError) as error:
            ENTRIES[entry](number, tmp_path)
        assert len(str(error.value)) < 1000


def test_a_plan_of_an_unknown_kind_is_refused_with_those_that_are():
    with pytest.raises(PlanError, match="yaml, json, jsonl, csv, got 'toml'"):
        parse_plan(b"a = 1", "toml")


# --- what no file can be called, and what are no names -----------------------------------------------------------------

WRITTEN = {
    "an adapter": lambda path: mixed().save_lora_weights(path),
    "a converted file": lambda path: convert(PAIR, path, format="diffusers"),
    "a merged file": lambda path: merge([(PAIR, 1.0)], path),
    "saved mixes": lambda path: SavedMixes(path).save("x", {"a": 1}),
}


@pytest.mark.parametrize("what", WRITTEN)
def test_a_path_with_a_zero_byte_is_refused_in_own_words(what, tmp_path):
    for name in ("\0", "a\0b.safetensors"):
        with pytest.raises(LoraMixerError, match="zero byte") as error:
            WRITTEN[what](str(tmp_path / name))
        assert (error.value.file or "").startswith(str(tmp_path / name))


@pytest.mark.parametrize("odd", [None, 3, 0.5, {"a": 1.0}])
def test_what_are_no_names_are_refused_with_the_argument(odd):
    for call in (mixed().set_adapters, mixed().delete_adapters):
        with pytest.raises(MixError, match="name") as error:
            call(odd)
        assert error.value.argument == "adapter_names"


def test_a_library_of_nothing_is_refused():
    for nothing in (None, [], ()):
        with pytest.raises(SourceError, match="at least one folder"):
            Library(nothing)
