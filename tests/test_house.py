"""What CONTRIBUTING and the CHANGELOG say of the code's names, and no linter looks for."""

from __future__ import annotations

import ast
import importlib.util
import re
import warnings
from collections import Counter
from pathlib import Path

import pytest

import lora_mixer
from lora_mixer import errors

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
    """One such name is no fault; they stood in 400 functions of 3,400, which is a habit."""
    paths = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    functions = [
        (path.name, node.name, bound_names(ast.unparse(node)) & SAY_NOTHING)
        for path in paths
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    odd = [each for each in functions if each[-1]]

    assert len(functions) > 3000
    assert len(odd) < len(functions) / 100, odd


def what_is(name: str) -> tuple[object, bool]:
    """Return what stands under a name below the package, and whether asking for it warned of a former one."""
    value: object = lora_mixer
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for part in name.split("."):
            inside = f"{getattr(value, '__name__', '')}.{part}"
            if part in getattr(value, "__annotations__", {}):
                value = value.__annotations__[part]
            elif hasattr(value, part):
                value = getattr(value, part)
            elif hasattr(value, "__path__") and importlib.util.find_spec(inside) is not None:
                # a kernel is imported where there is Triton only
                value = inside if part == "kernel" else importlib.import_module(inside)
            else:
                return None, False
    return value, any(issubclass(warning.category, DeprecationWarning) for warning in said)


def renamed() -> list[tuple[str, str]]:
    """Return the rows of CHANGELOG's tables of names, without those whose name stayed and whose meaning changed."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    section = text.partition("### Renamed")[2].partition("\n### ")[0]
    rows = [re.fullmatch(r"\| (.*) \| (.*) \|", line) for line in section.splitlines()]
    return [row.groups() for row in rows if row and row[1].startswith("`") and "`:" not in row[1]]


def named(cell: str) -> list[str]:
    return [name for name in re.findall(r"`([\w.]+)`", cell) if name[0] != "."]


def test_the_table_of_renames_is_true():
    rows = renamed()
    today = [name for _, now in rows for name in named(now)]
    before = [name for then, _ in rows for name in named(then) if "." in name or name[0].isupper()]

    assert (len(rows) > 40, len(today) > 80, len(before) > 80) == (True, True, True)
    assert [name for name in today if what_is(name)[0] is None] == []
    assert [name for name in before if what_is(name)[0] is not None and not what_is(name)[1]] == []


def test_long_lists_are_cut_in_one_place():
    cut = {
        str(path.relative_to(ROOT))
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*.py")
        if re.search(r"and \{[^{}]*\} more", path.read_text(encoding="utf-8"))
    }

    assert cut == {"lora_mixer/wording.py"}


def test_a_class_name_stands_for_one_thing():
    where: dict[str, list[str]] = {}
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ClassDef):
                    where.setdefault(node.name.lstrip("_"), []).append(str(path.relative_to(ROOT)))

    assert len(where) > 300
    assert {name: paths for name, paths in where.items() if len(paths) > 1} == {}


FOR_TESTS = {
    "forget_all",
    "forget_moulds",
}  # as a new process has it: what is remembered between calls is gone


def test_every_name_of_a_module_is_used():
    sources = [
        path.read_text(encoding="utf-8") for folder in FOLDERS for path in (ROOT / folder).rglob("*.py*")
    ]
    used = Counter(word for source in sources for word in re.findall(r"\w+", source))
    names = [
        name
        for source in sources
        for node in ast.parse(source).body
        for name in (
            [node.name] if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.decorator_list else
            [each.id for each in getattr(node, "targets", ()) if isinstance(each, ast.Name)]
        )
    ]  # fmt: skip

    assert len(names) > 2000
    assert {name for name in names if used[name] == 1 and not name.startswith("__")} == FOR_TESTS


ABOUT_A_FILE = {"path", "file", "source", "folder", "root", "label"}


def test_an_error_that_begins_with_a_file_has_it_as_a_field():
    """``--json`` and the page show the field; a name in the text alone is lost on them."""
    classes = {name for name, value in vars(errors).items() if isinstance(value, type)} - {"PictureError"}
    odd, seen = [], 0
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args):
                    continue
                seen += node.func.id in classes
                text = node.args[0]
                first = text.values[0] if isinstance(text, ast.JoinedStr) else None
                name = (
                    ast.unparse(first.value).split(".")[-1].strip("_")
                    if isinstance(first, ast.FormattedValue)
                    else ""
                )
                if (
                    node.func.id in classes
                    and name in ABOUT_A_FILE
                    and not any(k.arg == "file" for k in node.keywords)
                ):
                    odd.append((path.name, node.lineno))

    assert seen > 400
    assert odd == []
