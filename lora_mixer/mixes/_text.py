"""
A mix as one line of text.

    mix      := adapter ("," adapter)* ["|" method]
    adapter  := name [":" part ("," part)*]
    part     := number | keyframes | key "=" value

``watercolor:0.7, 3d:unet=0.8,te=0.2`` is two adapters: a part with ``=`` and without ``name:`` goes on with the adapter
before it. Names and values with characters of the grammar stand in JSON quotes; lists and dicts are JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from lora_mixer.mixes._plain import load_json
from lora_mixer.mixes._reading import number_text, shown

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lora_mixer.mixes._reading import Reading

_PLAIN_NAME = re.compile(r"[^\s,:|\"'()\[\]{}=@~](?:[^\n\r\t,:|\"'()\[\]{}=@~]*[^\s,:|\"'()\[\]{}=@~])?")
_OPENING = {"(": ")", "[": "]", "{": "}"}


def split_outside(text: str, separator: str, reading: Reading, limit: int = -1) -> list[str]:
    """
    Split a text at a separator, but not within brackets or JSON strings.

    Args:
        text: The text.
        separator: One character.
        reading: Where a bracket or quote without its partner is noted.
        limit: How many times to split at most; -1 for as often as it is there.

    Returns:
        The stripped parts.

    Example:
        >>> from lora_mixer.mixes._reading import Reading
        >>> split_outside('a:[1,2], "b,c":1', ",", Reading())
        ['a:[1,2]', '"b,c":1']
    """
    parts: list[str] = []
    start = 0
    expected: list[str] = []
    quoted = escaped = False
    for index, character in enumerate(text):
        if quoted:
            quoted = escaped or character != '"'
            escaped = character == "\\" and not escaped
        elif character == '"':
            quoted = True
        elif character in _OPENING:
            expected.append(_OPENING[character])
        elif expected and character == expected[-1]:
            expected.pop()
        elif character == separator and not expected and len(parts) != limit:
            parts.append(text[start:index].strip())
            start = index + 1
    if quoted or expected:
        missing = '"' if quoted else expected[-1]
        reading.problem("", f"expected a closing {missing} in {shown(text)}.")
    parts.append(text[start:].strip())
    return parts


def read(text: str, reading: Reading) -> tuple[list[tuple[object, object]], object]:
    """
    Read one line.

    Args:
        text: The line.
        reading: Where problems are noted.

    Returns:
        Names with what was said about them, and what was said about the method or None.

    Example:
        >>> from lora_mixer.mixes._reading import Reading
        >>> read("a:0.7, b:unet=0.8,te=0.2, c", Reading())
        ([('a', 0.7), ('b', {'components': {'unet': 0.8, 'te': 0.2}}), ('c', 1.0)], None)
    """
    line, *methods = split_outside(text, "|", reading)
    if len(methods) > 1:
        reading.problem("", f'expected one "|" before the method, got {shown(text)}.')
    if reading.problems:
        return [], None
    adapters: list[tuple[str, list[str]]] = []
    for segment in split_outside(line, ",", reading):
        head, *rest = split_outside(segment, ":", reading, limit=1)
        if rest and "=" not in _unquoted(head):
            adapters.append((_read_name(head, reading), [rest[0]]))
        elif adapters and adapters[-1][1] and _continues(segment):
            adapters[-1][1].append(segment)
        elif not segment:
            reading.problem("", f"expected an adapter between the commas of {shown(text)}.")
        elif _is_number(segment):
            reading.problem(
                "", f"expected a name, got the number {segment}; a name like this stands in quotes."
            )
        else:
            adapters.append((_read_name(segment, reading), []))
    entries: list[tuple[object, object]] = [
        (name, _read_parts(name, parts, reading)) for name, parts in adapters
    ]
    return entries, methods[0] if methods else None


def write(specs: Mapping[str, object], method: str = "") -> str:
    """
    Write one line.

    Args:
        specs: What is said about each adapter, as ``AdapterMix.to_spec`` gives it.
        method: The method, or nothing for the plain sum.

    Returns:
        The line.

    Example:
        >>> write({"a": 0.7, "b, c": {"weight": 1.0, "components": {"te": 0.2}}})
        'a:0.7, "b, c":1,te=0.2'
    """
    line = ", ".join(f"{_write_name(name)}:{','.join(_write_parts(spec))}" for name, spec in specs.items())
    return f"{line} | {method}" if method else line


def _write_name(name: str) -> str:
    return (
        name if _PLAIN_NAME.fullmatch(name) and not _is_number(name) else json.dumps(name, ensure_ascii=False)
    )


def _write_parts(spec: object) -> Iterable[str]:
    if not isinstance(spec, Mapping):
        yield number_text(spec)  # type: ignore[arg-type]
        return
    for key, value in spec.items():
        if key == "weight":
            yield number_text(value)
        elif key == "components":
            yield from (f"{name}={_write_value(weight)}" for name, weight in value.items())
        else:
            yield f"{key}={_write_value(value)}"


def _write_value(value: object) -> str:
    return number_text(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False)


def _read_name(text: str, reading: Reading) -> str:
    if text.startswith('"'):
        name = load_json(text, reading)
        return name if isinstance(name, str) else text
    if not _PLAIN_NAME.fullmatch(text):
        reading.problem(
            "", f"expected a name, got {shown(text)}; names with such characters stand in quotes."
        )
    return text


def _read_parts(name: str, parts: list[str], reading: Reading) -> object:
    spec: dict[str, object] = {}
    components: dict[str, object] = {}
    for part in parts:
        key, *rest = split_outside(part, "=", reading, limit=1)
        if not rest:
            if "weight" in spec or not _is_number(part):
                reading.problem(name, f'expected one number or "key=value", got {shown(part)}.')
            else:
                spec["weight"] = float(part)
        elif key in components or key in spec:
            reading.problem(f"{name}.{key}", "is given twice; give it one value.")
        else:
            components[key] = _read_value(rest[0], f"{name}.{key}", reading)
    if components:
        spec["components"] = components
    return spec.get("weight", 1.0) if set(spec) <= {"weight"} else spec


def _read_value(text: str, where: str, reading: Reading) -> object:
    if _is_number(text):
        return float(text)
    if text[:1] in {'"', "[", "{"}:
        return load_json(text, reading, where)
    return text


def _unquoted(text: str) -> str:
    return "" if text.startswith('"') else text


def _continues(segment: str) -> bool:
    return not segment.startswith('"') and "=" in segment


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
