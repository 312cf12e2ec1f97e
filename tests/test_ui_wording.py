"""No Python in what a person reads, whichever error of the package it is: all texts that its code can raise are looked at."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import lora_mixer
from lora_mixer.errors import LoraMixerError
from lora_mixer.ui.messages import words_of
from lora_mixer.wording import shown

PYTHON = re.compile(
    r"\b[a-z]\w*=(?:True|False|None)\b|\((?:an?) (?:int|str|float|bool|list|dict|tuple|NoneType)\)"
)


def texts():
    """Every text of the package's code that names an argument, with X where values go in."""
    for path in sorted(Path(lora_mixer.__file__).parent.rglob("*.py")):
        if "/cli/" in str(path) or "/ui/" in str(path):
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        docs = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if hasattr(node, "body")
            and isinstance(node.body, list)
            and node.body
            and isinstance(node.body[0], ast.Expr)
        }
        inner = {
            id(part)
            for node in ast.walk(tree)
            if isinstance(node, ast.JoinedStr)
            for part in ast.walk(node)
            if part is not node
        }
        for node in ast.walk(tree):
            if id(node) in docs or id(node) in inner:
                continue
            if isinstance(node, ast.JoinedStr):
                text = "".join(part.value if isinstance(part, ast.Constant) else "X" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                text = node.value
            else:
                continue
            if PYTHON.search(text) and " " in text.strip():
                yield text


ALL = sorted(set(texts()))


def test_there_are_such_texts():
    assert len(ALL) > 5


@pytest.mark.parametrize("text", ALL)
def test_no_text_of_the_package_tells_people_of_the_page_to_pass_arguments(text):
    found = words_of(LoraMixerError(text))
    assert not PYTHON.search(found), found
    assert found.strip(" .,;:")


@pytest.mark.parametrize("value", [0, "x", None, [1], {"a": 1}, True, (1,), 2.5])
def test_no_type_of_a_value_is_told(value):
    found = words_of(LoraMixerError(f"steps: expected a whole number, got {shown(value)}; give another"))
    assert found == f"steps: expected a whole number, got {value!r}; give another"


@pytest.mark.parametrize(
    "text",
    [
        "ink: te=0.2 is not a weight; write ink:unet=0.5,te=0.2",
        "the mix: expected one line such as ink:0.8,start=0.3, or JSON",
        "ink.safetensors: cut short.",
    ],
)
def test_the_pages_own_grammar_stays(text):
    assert words_of(LoraMixerError(text)) == text
