"""What the code's own text tells of its errors: what each names in its message, and which fields it is given."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

GIVES = {
    **{field: field for field in ("file", "key", "component", "adapter", "argument")},
    "field": "key",  # of a picture, and the option of a model: both stand at the key's place
    "option": "key",
}
"""The field of the error that a keyword gives."""
BETWEEN_SENTENCES = ("; ", "\n", "; nor ", "; and ")
LISTS = frozenset(("join", "first_of", "list_of", "listing"))
MORE_THAN_A_FILE = frozenset(("problems", "key", "component", "adapter", "argument"))
NO_NAME = frozenset(("type", "len", "getattr", "next", "min", "max"))
"""Functions whose value is another thing than what they are given."""
PATHS = frozenset(("Path", "PurePath", "PurePosixPath", "PathLike"))


class Odd(NamedTuple):
    """A place whose message names what no field has."""

    path: str
    line: int
    said: str
    lacks: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Made:
    """One place that makes an error, and the function that it is in."""

    path: str
    function: ast.AST
    call: ast.Call

    @property
    def given(self) -> frozenset[str]:
        """The fields that it is given, and "problems"."""
        more = {"key"} if len(self.call.args) > 1 else set()  # a field of the page
        return frozenset(GIVES.get(str(k.arg), str(k.arg)) for k in self.call.keywords) | more

    @cached_property
    def texts(self) -> list[ast.expr]:
        """What the message is made of: the argument, and what the names in it stand for."""
        texts = list(self.call.args[:1])
        names = {node.id for text in texts for node in ast.walk(text) if isinstance(node, ast.Name)}
        for node in ast.walk(self.function):
            targets = node.targets if isinstance(node, ast.Assign) else []
            if names & {target.id for target in targets if isinstance(target, ast.Name)}:
                texts.append(node.value)
        return texts

    def shown(self) -> Iterator[ast.expr]:
        """Yield each value that stands in the text."""
        for text in self.texts:
            for node in ast.walk(text):
                if isinstance(node, ast.FormattedValue):
                    yield node.value

    def lists(self) -> Iterator[tuple[str, ast.expr]]:
        """Yield each list that stands in the text: what is between two of it, and what is listed."""
        for text in self.texts:
            for node in ast.walk(text):
                called = node.func if isinstance(node, ast.Call) else None
                if isinstance(called, ast.Attribute) and called.attr == "join" and node.args:
                    yield str(getattr(called.value, "value", ", ")), node.args[0]
                elif isinstance(called, ast.Name) and called.id in LISTS and node.args:
                    between = [k.value for k in node.keywords if k.arg == "between"]
                    yield str(getattr(between[0], "value", ", ")) if between else ", ", node.args[0]


def errors_of(trees: Mapping[str, ast.AST]) -> frozenset[str]:
    """Return the names of all classes below ``LoraMixerError``, those of rooms as well."""
    bases = {
        node.name: {ast.unparse(base).split(".")[-1] for base in node.bases}
        for tree in trees.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }
    errors = {"LoraMixerError"}
    while more := {name for name, above in bases.items() if above & errors} - errors:
        errors |= more
    return frozenset(errors)


def made_in(path: str, tree: ast.AST, errors: Iterable[str]) -> Iterator[Made]:
    """Yield every place that makes an error, whether it raises it or not."""
    stack: list[tuple[ast.AST, ast.AST]] = [(tree, tree)]
    known = frozenset(errors)
    while stack:
        node, function = stack.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            function = node
        if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) in known:
            yield Made(path, function, node)
        stack += [(child, function) for child in ast.iter_child_nodes(node)]


def last_name(node: ast.expr) -> str:
    """Return the name of what an expression shows: of ``str(self._path)``, ``path[:60]`` and ``path or None`` it is path."""
    while True:
        if isinstance(node, ast.Attribute):
            return "" if node.attr.startswith("__") else node.attr.strip("_")
        if isinstance(node, ast.Name):
            return node.id.strip("_")
        if isinstance(node, ast.Subscript) and not isinstance(node.slice, ast.Slice):
            return ""  # one of several, whose name is no name of it
        if isinstance(node, ast.Subscript | ast.Starred | ast.FormattedValue):
            node = node.value
        elif isinstance(node, ast.BoolOp):
            node = node.values[0]
        elif isinstance(node, ast.BinOp):
            node = node.left
        elif isinstance(node, ast.Call) and node.args and last_name(node.func) not in NO_NAME:
            node = node.args[-1]
        elif isinstance(node, ast.ListComp | ast.GeneratorExp | ast.SetComp):
            node = node.generators[0].iter
        else:
            return ""


def whole(node: ast.expr) -> str:
    """Return what an expression is of, where it is only cut or made a text."""
    while True:
        if isinstance(node, ast.Call) and node.args and getattr(node.func, "id", "") in ("str", "shown"):
            node = node.args[0]
        elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Slice):
            node = node.value
        else:
            return ast.unparse(node)


def said_twice(one: Made) -> list[str]:
    """Return what stands before a message, as its file or its key, and in it once more."""
    before = {whole(k.value) for k in one.call.keywords if GIVES.get(str(k.arg)) in ("file", "key")}
    return [name for value in one.shown() if (name := whole(value)) in before]


class Words:
    """
    Which names stand for what in the code: whatever some place gives as a field stands for that field wherever it is shown.

    Nobody keeps a list of them; each new error with a field teaches its word.
    """

    def __init__(self, made: Iterable[Made]) -> None:
        self.fields: dict[str, set[str]] = {}
        self.listed: set[str] = set()
        for one in made:
            for keyword in one.call.keywords:
                if keyword.arg in GIVES:
                    parts = (
                        keyword.value.values if isinstance(keyword.value, ast.JoinedStr) else [keyword.value]
                    )
                    for part in parts:
                        if name := last_name(part):
                            self.fields.setdefault(name, set()).add(GIVES[keyword.arg])
                elif keyword.arg == "problems":
                    self.listed |= {
                        last_name(node.generators[0].iter)
                        for node in ast.walk(keyword.value)
                        if isinstance(node, ast.ListComp | ast.GeneratorExp)
                    } - {""}

    def odd(self, one: Made) -> Iterator[Odd]:
        """Yield what a place says in its text alone."""
        given = one.given
        first = one.call.args[0] if one.call.args else None
        first = first.values[0] if isinstance(first, ast.JoinedStr) and first.values else first
        argument = re.match(r"([a-z]\w*) must ", str(getattr(first, "value", "")))
        if argument and not given & (MORE_THAN_A_FILE - {"adapter"}):
            names = {node.arg for node in ast.walk(one.function) if isinstance(node, ast.arg)}
            if "_" in argument[1] or argument[1] in names:
                yield Odd(one.path, one.call.lineno, argument[1], ("argument",))
        for between, listed in one.lists():
            is_sentences = between.rstrip(" ") in {mark.rstrip(" ") for mark in BETWEEN_SENTENCES}
            if (is_sentences and "problems" not in given) or (
                last_name(listed) in self.listed and not given & MORE_THAN_A_FILE
            ):
                yield Odd(one.path, one.call.lineno, ast.unparse(listed), ("problems",))
        paths = {
            arg.arg
            for arg in ast.walk(one.function)
            if isinstance(arg, ast.arg)
            and arg.annotation is not None
            and PATHS & {last_name(node) for node in ast.walk(arg.annotation) if isinstance(node, ast.expr)}
        }
        for value in one.shown():
            name = last_name(value)
            wants = self.fields.get(name, set()) | ({"file"} if name in paths else set())
            if wants and not wants & given and "problems" not in given:
                yield Odd(one.path, one.call.lineno, ast.unparse(value), tuple(sorted(wants)))
