"""Variants in the prompts of plans: drawn by each picture's own seed, adapters included."""

from __future__ import annotations

import sys

import pytest

from lora_mixer import MissingExtraError, PlanError
from lora_mixer.batches import check_plan
from lora_mixer.batches.wildcards import fill

WORDS = {
    "animal": ["cat", "owl", "{big|small} fox"],
    "colour": ["red", "blue", "green"],
    "loop": ["a __loop__"],
}


def drawn(text, count=40, fixed=None, place=""):
    return [fill(text, seed, WORDS, fixed or {}, place) for seed in range(count)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a {red|blue} castle", {"a red castle", "a blue castle"}),
        ("{a|{b|c}}", {"a", "b", "c"}),
        ("{2$$a|b}", {"a,b", "b,a"}),
        ("{2$$ and $$a|b}", {"a and b", "b and a"}),
        ("__animal__", {"cat", "owl", "big fox", "small fox"}),
        ("{1$$__colour__}", {"red", "blue", "green"}),
        ("{x|__colour__}", {"x", "red", "blue", "green"}),
        ("<lora:ink:{0.5|1}>", {"<lora:ink:0.5>", "<lora:ink:1>"}),
        (r"{a|b} \{c\}", {"a {c}", "b {c}"}),
        ("(a:1.2) [b] {c|d}", {"(a:1.2) [b] c", "(a:1.2) [b] d"}),
    ],
)
def test_variants_are_drawn(text, expected):
    assert set(drawn(text, 80)) == expected


def test_weights_say_how_often():
    found = drawn("{9::often|1::rarely}", 400)

    assert 320 < found.count("often") < 395


def test_a_picture_draws_the_same_wherever_it_is_made_and_two_texts_draw_apart():
    text = "{a|b|c|d|e|f|g|h} {__colour__|i|j|k}"

    assert drawn(text) == drawn(text)
    assert drawn(text) != drawn(text, place="negative")
    assert len(set(drawn(text, 200))) > 20


def test_axes_fix_wildcards_in_variants():
    assert set(drawn("{a|b} __colour__", fixed={"colour": "gold"})) == {"a gold", "b gold"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a {red|blue castle", "braces of variants are not closed"),
        ("a red|blue} castle", "not closed or not opened"),
        ("{__nope__|a}", "the wildcard __nope__ is unknown; known are: animal, colour, loop"),
        ("{a|" * 30 + "b" + "}" * 30, "20 levels deep; got"),
        ("{a|b}" * 200, "at most 20000 characters and 300 braces"),
        ("{__loop__|__loop__}", "without end"),
        ("${x} {a|b}", "not a dynamic prompt|without end"),
    ],
)
def test_what_cannot_be_drawn_is_one_sentence(text, message):
    with pytest.raises(PlanError, match=message) as caught:
        fill(text, 1, WORDS, {})
    assert len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)


def test_a_plan_gives_each_variant_its_own_mix():
    checked = check_plan(
        {
            "adapters": {"ink": "demo:ink", "neon": "demo:neon"},
            "jobs": [{"prompt": "a {cat|owl} <lora:{ink|neon}:{0.5|1}>", "repeat": 40}],
        }
    )

    mixes = {picture.request.mix.to_text() for picture in checked.pictures}
    assert mixes == {"ink:0.5", "ink:1", "neon:0.5", "neon:1"}
    assert {picture.request.prompt for picture in checked.pictures} == {"a cat", "a owl"}
    again = check_plan(checked.plan)
    assert [x.request for x in again.pictures] == [x.request for x in checked.pictures]


def test_without_the_extra_the_error_names_it(monkeypatch):
    for name in list(sys.modules):
        if name.startswith("dynamicprompts"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "dynamicprompts", None)

    with pytest.raises(MissingExtraError, match=r"prompts\]"):
        fill("{some|thing new}", 1, WORDS, {})
    assert fill("a __colour__ cat", 1, WORDS, {}) in {"a red cat", "a blue cat", "a green cat"}
