"""One strict reader and one collector: mixes and plans hear of the same mistakes, with place and line."""

from __future__ import annotations

import json

import pytest

from lora_mixer import Mix, MixError, PlanError
from lora_mixer.batches import check_plan, parse_plan
from lora_mixer.parsing.data import dump_yaml, load, locate, parsed
from lora_mixer.parsing.problems import Problems


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
            parsed("json", text)


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
