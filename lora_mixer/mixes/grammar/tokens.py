"""The small notation ``name(1, key=2)`` in which schedules and methods are written."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lora_mixer.parsing.data import load
from lora_mixer.wording import shown

if TYPE_CHECKING:
    from lora_mixer.mixes.reading import Reading

_CALL = re.compile(r"([A-Za-z_]\w*)\s*(?:\((.*)\))?", re.DOTALL)


@dataclass
class WrittenCall:
    """
    A name with arguments.

    Attributes:
        name: What stands before the bracket.
        positional: Numbers, JSON values, or other texts as they are.
        named: The same, by key.
    """

    name: str
    positional: list[object] = field(default_factory=list)
    named: dict[str, object] = field(default_factory=dict)


def read_call(text: str, where: str, reading: Reading) -> WrittenCall | None:
    """
    Read a call.

    Example:
        >>> from lora_mixer.mixes.reading import Reading
        >>> read_call("window(5s, stop=0.8)", "", Reading())
        WrittenCall(name='window', positional=['5s'], named={'stop': 0.8})
    """
    if not (match := _CALL.fullmatch(text.strip())):
        return None
    call = WrittenCall(match[1])
    for argument in split_outside(match[2], ",", reading) if match[2] and match[2].strip() else []:
        key, *rest = split_outside(argument, "=", reading, limit=1)
        if not rest:
            call.positional.append(read_value(argument, where, reading))
        elif key in call.named:
            reading.problem(where, f"{key} is given twice; give it one value.")
        else:
            call.named[key] = read_value(rest[0], where, reading)
    return call


def read_value(text: str, where: str, reading: Reading) -> object:
    """
    Read a value: a number, JSON, or the text itself.

    Example:
        >>> from lora_mixer.mixes.reading import Reading
        >>> read_value("0.5", "", Reading()), read_value("[1, 2]", "", Reading()), read_value("OUTALL", "", Reading())
        (0.5, [1, 2], 'OUTALL')
    """
    if is_number(text):
        return float(text)
    if text[:1] in {'"', "[", "{"}:
        return load("json", text, reading, where)
    return text


_CLOSING_OF = {"(": ")", "[": "]", "{": "}"}


def split_outside(text: str, separator: str, reading: Reading, limit: int = -1) -> list[str]:
    """
    Split a text at a separator, but not within brackets or JSON strings.

    Example:
        >>> from lora_mixer.mixes.reading import Reading
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
        elif character in _CLOSING_OF:
            expected.append(_CLOSING_OF[character])
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


def is_number(text: str) -> bool:
    """
    Tell whether a text is a number, finite or not.

    Example:
        >>> is_number("1e3"), is_number("nan"), is_number("x")
        (True, True, False)
    """
    try:
        float(text)
    except ValueError:
        return False
    return True
