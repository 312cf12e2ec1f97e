"""The arrows between modules, imports for type checkers counted, lead one way."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def _modules() -> dict[str, Path]:
    table = {}
    for package in ("lora_mixer", "ui"):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            table[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return table


def _imports(name: str, path: Path, known: dict[str, Path]) -> set[str]:
    """Return the modules that a module imports anywhere in it: at the top, in functions, for types only."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    arrows = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            arrows |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            origin = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                origin = ".".join([*above, *([origin] if origin else [])])
            for alias in node.names:
                inner = f"{origin}.{alias.name}"
                arrows.add(inner if inner in known else origin)
    return {arrow for arrow in arrows if arrow in known and arrow != name}


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return the strongly connected parts of more than one module (Tarjan, 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    parts: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for after in sorted(graph[node]):
            if after not in index:
                visit(after)
                low[node] = min(low[node], low[after])
            elif after in stack:
                low[node] = min(low[node], index[after])
        if low[node] == index[node]:
            part = []
            while not part or part[-1] != node:
                part.append(stack.pop())
            if len(part) > 1:
                parts.append(sorted(part))

    for node in graph:
        if node not in index:
            visit(node)
    return parts


def test_no_module_imports_itself_by_way_of_others():
    known = _modules()
    # a lazy list of names is what the package's own front is: nothing is imported until somebody asks
    graph = {name: _imports(name, path, known) for name, path in known.items() if name != "lora_mixer"}
    graph = {name: arrows & graph.keys() for name, arrows in graph.items()}

    assert circles(graph) == []


@pytest.mark.parametrize(
    ("graph", "expected"),
    [
        ({"a": {"b"}, "b": {"c"}, "c": set()}, []),
        ({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}, [["a", "b", "c"]]),
    ],
)
def test_a_circle_is_seen(graph: dict[str, set[str]], expected: list[list[str]]):
    assert circles(graph) == expected


def _room(name: str) -> str:
    """Return the folder that a module is in; a module at the top is a room of its own."""
    parts = name.split(".")
    return parts[1] if parts[0] == "lora_mixer" and len(parts) > 1 else parts[0]


def test_no_two_rooms_import_each_other():
    known = _modules()
    folders = {path.parent.name for path in (ROOT / "lora_mixer").glob("*/__init__.py")}
    arrows = {
        (_room(name), _room(other))
        for name, path in known.items()
        for other in _imports(name, path, known)
        if _room(name) != _room(other) and {_room(name), _room(other)} <= folders
    }

    assert len(arrows) > 50
    assert sorted((a, b) for a, b in arrows if a < b and (b, a) in arrows) == []
