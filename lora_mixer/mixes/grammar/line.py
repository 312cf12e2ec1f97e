"""
A mix as one line of text.

    mix      := adapter ("," adapter)* ["|" method]
    adapter  := name [":" part ("," part)*]
    part     := number | keyframes | key "=" value

``watercolor:0.7, 3d:unet=0.8,te=0.2`` is two adapters: a part with ``=`` and without ``name:`` goes on with the adapter
before it. Keys are components, ``blocks`` (or ``lbw``), ``schedule`` (or ``start``, ``stop``, ``step``), ``mask`` and
``feather``. Names and values with characters of the grammar stand in JSON quotes; lists and dicts are JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from lora_mixer.mixes.grammar.schedules import looks_like_schedule, read_span, read_window
from lora_mixer.mixes.grammar.tokens import is_number, read_value, split_outside
from lora_mixer.parsing.data import load
from lora_mixer.wording import number_text, shown

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lora_mixer.mixes.reading import Reading

_PLAIN_NAME = re.compile(r"[^\s,:|\"'()\[\]{}=@~](?:[^\n\r\t,:|\"'()\[\]{}=@~]*[^\s,:|\"'()\[\]{}=@~])?")
_PLAIN_VALUE = re.compile(r"[A-Za-z_][\w.:-]*(?:\([\w.,+ -]*\))?|(?=[^@]*@)[\d.e+@,s-]*")

_PARTS = ("blocks", "schedule", "mask")
_SUGAR = ("lbw", "start", "stop", "step", "feather")


def read_line(text: str, reading: Reading) -> tuple[list[tuple[object, object]], object]:
    """
    Read one line.

    Example:
        >>> from lora_mixer.mixes.reading import Reading
        >>> read_line("a:0.7, b:unet=0.8,te=0.2, c", Reading())
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
        elif adapters and adapters[-1][1] and _goes_on(adapters[-1][1][-1], segment):
            adapters[-1][1][-1] += f",{segment}"
        elif adapters and adapters[-1][1] and not {"=", "@", "~"}.isdisjoint(_unquoted(segment)):
            adapters[-1][1].append(segment)
        elif not segment:
            reading.problem("", f"expected an adapter between the commas of {shown(text)}.")
        elif is_number(segment):
            reading.problem(
                "", f"expected a name, got the number {segment}; a name like this stands in quotes."
            )
        else:
            adapters.append((_read_name(segment, reading), []))
    entries: list[tuple[object, object]] = [
        (name, _read_parts(name, parts, reading)) for name, parts in adapters
    ]
    return entries, methods[0] if methods else None


def write_line(specs: Mapping[str, object], method: str = "") -> str:
    """
    Write one line.

    Example:
        >>> write_line({"a": 0.7, "b, c": {"weight": 1.0, "components": {"te": 0.2}}})
        'a:0.7, "b, c":1,te=0.2'
    """
    line = ", ".join(f"{_write_name(name)}:{','.join(_write_parts(spec))}" for name, spec in specs.items())
    return f"{line} | {method}" if method else line


def _write_name(name: str) -> str:
    return (
        name if _PLAIN_NAME.fullmatch(name) and not is_number(name) else json.dumps(name, ensure_ascii=False)
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
    if isinstance(value, float):
        return number_text(value)
    plain = isinstance(value, str) and _PLAIN_VALUE.fullmatch(value) and not is_number(value)
    return str(value) if plain else json.dumps(value, ensure_ascii=False)


def _read_name(text: str, reading: Reading) -> str:
    if text.startswith('"'):
        name = load("json", text, reading)
        return name if isinstance(name, str) else text
    if not _PLAIN_NAME.fullmatch(text):
        reading.problem(
            "", f"expected a name, got {shown(text)}; names with such characters stand in quotes."
        )
    return text


def _read_parts(name: str, parts: list[str], reading: Reading) -> object:
    spec: dict[str, object] = {}
    components: dict[str, object] = {}
    sugar: dict[str, str] = {}
    for part in parts:
        key, *rest = split_outside(part, "=", reading, limit=1)
        if not rest:
            key = "weight" if is_number(part) else "schedule"
            if key in spec or not (is_number(part) or looks_like_schedule(part)):
                reading.problem(name, f'expected one number or "key=value", got {shown(part)}.')
            else:
                spec[key] = float(part) if key == "weight" else part
        elif key in components or key in spec or key in sugar:
            reading.problem(f"{name}.{key}", "is given twice; give it one value.")
        elif key in _SUGAR:
            sugar[key] = rest[0]
        else:
            place = spec if key in _PARTS else components
            place[key] = read_value(rest[0], f"{name}.{key}", reading)
    if components:
        spec["components"] = components
    _spread(name, sugar, spec, reading)
    return spec.get("weight", 1.0) if set(spec) <= {"weight"} else spec


def _spread(name: str, sugar: Mapping[str, str], spec: dict[str, object], reading: Reading) -> None:
    """Turn the short keys into the parts that they stand for."""
    if "lbw" in sugar:
        if "blocks" in spec:
            reading.problem(name, '"lbw" and "blocks" both say block weights; give one of them.')
        spec["blocks"] = read_value(sugar["lbw"], f"{name}.lbw", reading)
    if timed := [key for key in ("start", "stop", "step") if key in sugar]:
        if "schedule" in spec or ("step" in sugar and len(timed) > 1):
            reading.problem(name, f"{' and '.join(timed)} and another schedule; give one.")
        elif "step" in sugar:
            spec["schedule"] = read_span(sugar["step"], f"{name}.step", reading)
        else:
            spec["schedule"] = read_window(sugar.get("start"), sugar.get("stop"), name, reading)
    if "feather" in sugar:
        if not isinstance(mask := spec.get("mask"), str):
            reading.problem(f"{name}.feather", 'expected a path under "mask" beside it.')
        spec["mask"] = {"path": mask, "feather": read_value(sugar["feather"], f"{name}.feather", reading)}


def _unquoted(text: str) -> str:
    return "" if text.startswith('"') else text


def _goes_on(before: str, segment: str) -> bool:
    """Tell whether a comma belongs to the keyframes or the LBW list before it."""
    if "=" in _unquoted(segment):
        return False
    key, _, value = before.rpartition("=")
    keyframes = any(mark in value for mark in "@~") and any(mark in segment for mark in "@~")
    return keyframes or (key in {"lbw", "blocks"} and is_number(segment))
