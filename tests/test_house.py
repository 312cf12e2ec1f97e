"""What CONTRIBUTING asks of the code and no linter looks for."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("lora_mixer", "ui", "comfyui")
SAY_NOTHING = frozenset(("found", "own", "msg"))


def bound_names(source: str) -> set[str]:
    """Return the names that a text of Python gives to values: assigned, looped over, arguments, caught errors."""
    nodes = list(ast.walk(ast.parse(source)))
    return (
        {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
        | {node.arg for node in nodes if isinstance(node, ast.arg)}
        | {node.name for node in nodes if isinstance(node, ast.ExceptHandler) and node.name}
    )


@pytest.mark.parametrize(
    "source",
    [
        "def f():\n    found = 1\n",
        "def f(own): ...",
        "[found for found in ()]",
        "try:\n    f()\nexcept E as own:\n    ...",
        "if (msg := 1): ...",
    ],
)
def test_a_name_that_says_nothing_is_seen(source: str):
    assert bound_names(source) & SAY_NOTHING


def test_names_of_values_say_what_they_are():
    paths = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    # what a method of a library calls its argument is the library's to say
    libraries = {("sites.py", "msg")}
    odd = {
        (path.name, name)
        for path in paths
        for name in bound_names(path.read_text(encoding="utf-8")) & SAY_NOTHING
        if (path.name, name) not in libraries
    }

    assert len(paths) > 300
    assert odd == set()
