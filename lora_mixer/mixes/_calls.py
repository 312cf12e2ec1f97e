"""The small notation ``name(1, key=2)`` in which schedules and methods are written."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lora_mixer.mixes._plain import load_json
from lora_mixer.mixes._split import is_number, split_outside

if TYPE_CHECKING:
    from lora_mixer.mixes._reading import Reading

_CALL = re.compile(r"([A-Za-z_]\w*)\s*(?:\((.*)\))?", re.DOTALL)


@dataclass
class Call:
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


def read_call(text: str, where: str, reading: Reading) -> Call | None:
    """
    Read a call.

    Args:
        text: The text.
        where: The path of the text, for messages.
        reading: Where problems are noted.

    Returns:
        The call, or None where the text is none.

    Example:
        >>> from lora_mixer.mixes._reading import Reading
        >>> read_call("window(5s, stop=0.8)", "", Reading())
        Call(name='window', positional=['5s'], named={'stop': 0.8})
    """
    if not (match := _CALL.fullmatch(text.strip())):
        return None
    call = Call(match[1])
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

    Args:
        text: The text.
        where: The path of the text, for messages.
        reading: Where problems are noted.

    Returns:
        The value.

    Example:
        >>> from lora_mixer.mixes._reading import Reading
        >>> read_value("0.5", "", Reading()), read_value("[1, 2]", "", Reading()), read_value("OUTALL", "", Reading())
        (0.5, [1, 2], 'OUTALL')
    """
    if is_number(text):
        return float(text)
    if text[:1] in {'"', "[", "{"}:
        return load_json(text, reading, where)
    return text
