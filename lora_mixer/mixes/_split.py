"""Splitting a line at its separators, with brackets and quotes respected."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_mixer.mixes._reading import shown

if TYPE_CHECKING:
    from lora_mixer.mixes._reading import Reading

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


def is_number(text: str) -> bool:
    """
    Tell whether a text is a number, finite or not.

    Args:
        text: The text.

    Returns:
        Whether ``float`` reads it.

    Example:
        >>> is_number("1e3"), is_number("nan"), is_number("x")
        (True, True, False)
    """
    try:
        float(text)
    except ValueError:
        return False
    return True
