"""Keys that end as the rows of ``algorithms/table.py`` say, made of their patterns: a new row has its examples at once."""

from __future__ import annotations

import warnings
from itertools import product

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # ``re._parser`` has this name from Python 3.11 on
    import sre_parse


def examples(pattern: str, inner: str = "") -> list[str]:
    """Return a text for each branch of a leaf's pattern, with ``inner`` for the name that PEFT leaves in."""
    return sorted(set(_texts(sre_parse.parse(pattern.replace("<name>", inner.replace(".", r"\."))))))


def _texts(parsed: object) -> list[str]:
    return ["".join(parts) for parts in product(*(_choices(str(op), value) for op, value in parsed))]


def _choices(op: str, value: object) -> list[str]:
    if op in ("LITERAL", "NOT_LITERAL"):
        return [chr(value) if op == "LITERAL" else "x"]
    if op in ("AT", "ASSERT", "ASSERT_NOT"):
        return [""]
    if op == "IN":
        return _of_a_set(value)
    if op == "SUBPATTERN":
        return _texts(value[-1])
    if op == "BRANCH":
        return [text for branch in value[1] for text in _texts(branch)]
    least, _, inside = value
    return [text * times for text in _texts(inside) for times in {least, max(least, 1)}]


def _of_a_set(members: list[tuple[object, object]]) -> list[str]:
    named = {"NEGATE": "x", "CATEGORY_DIGIT": "1", "CATEGORY_WORD": "w"}
    (op, value), *others = members
    if str(op) == "NEGATE":
        return ["x"]
    if str(op) == "RANGE":
        return [chr(value[0])]
    if str(op) == "CATEGORY":
        return [named[str(value)]]
    return [chr(value), *(chr(other) for _, other in others)]
