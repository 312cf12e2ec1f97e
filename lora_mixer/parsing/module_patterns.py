"""
PEFT's patterns of module names, matched with a bound on work.

They are regular expressions that must match a module's path, or its end behind a dot. Nearly all are plain names. Python's
``re`` may need exponential time, with the interpreter held, so what it gets is limited to what it does in polynomial time, and
all of it together has a budget.
"""

from __future__ import annotations

import re
from functools import cached_property
from typing import TYPE_CHECKING, Generic, TypeVar

from lora_mixer.errors import LoraMixerError

if TYPE_CHECKING:
    from collections.abc import Mapping

_PLAIN = re.compile(r"\^?(?:[\w\-.]|\\[.\-])*\$?")
_TOKEN = re.compile(r"\\[.\-dws]|\[[^\[\]\\]{1,64}\]|[\w\-. ^$|]|\(\?:|[()*+?]")
_LONGEST_NAME, _LONGEST_PATTERN = 4096, 2048
_QUANTIFIERS, _GROUPS = 2, 2
_STEPS = 100_000_000  # what all patterns of a file that are not names may need together
Value = TypeVar("Value")


class PatternTooHardError(LoraMixerError, ValueError):
    """A pattern could take longer than anybody waits; the message says what may be in one."""


def compiled(pattern: str) -> tuple[re.Pattern[str], int] | None:
    """
    Compile a pattern that must match a whole path, or its end behind a dot.

    Returns:
        The pattern, and the power of a name's length that matching it may cost; None for what is not a regular expression.

    Raises:
        PatternTooHardError: When matching it has no good bound.

    Example:
        >>> compiled("to_[qk]")[0].match("mid_block.attn1.to_q") is not None
        True
    """
    power = 1
    if len(pattern) > _LONGEST_PATTERN:
        raise PatternTooHardError(
            f"a pattern of {len(pattern)} characters, at most {_LONGEST_PATTERN} are read"
        )
    if not _PLAIN.fullmatch(pattern):
        power = _power(pattern)
    try:
        return re.compile(rf"(?:.*\.)?(?:{pattern})$"), power
    except re.error:
        return None


def _power(pattern: str) -> int:
    depth = quantifiers = groups = branches = place = 0
    before = ""
    while place < len(pattern):
        match = _TOKEN.match(pattern, place)
        mark = match[0] if match else ""
        place += len(mark)
        groups += mark.startswith("(")
        depth += mark.startswith("(") - (mark == ")")
        branches += mark == "|"
        is_quantifier = mark in ("*", "+", "?")
        quantifiers += is_quantifier
        hard = not mark or (is_quantifier and (depth or before == ")" or before in ("*", "+", "?")))
        if hard or quantifiers > _QUANTIFIERS or groups > _GROUPS or branches > 64:
            raise PatternTooHardError(
                f"the pattern {pattern[:200]!r} is neither a name nor simple enough to be matched in bounded time: at most "
                f"{_QUANTIFIERS} of *, + and ?, none of them behind or inside of brackets, and {_GROUPS} groups of alternatives"
            )
        before = mark
    return max(2, 1 + quantifiers + (1 if groups and branches else 0))


class ModulePatterns(Generic[Value]):
    """
    A table from patterns to values; the first pattern that matches counts.

    Args:
        table: The values by pattern.

    Raises:
        PatternTooHardError: When a pattern has no good bound.

    Example:
        >>> ModulePatterns({"attn1.to_q": 4.0, "to_.*": 8.0}).find("mid.attn1.to_q")
        4.0
    """

    def __init__(self, table: Mapping[str, Value]) -> None:
        """Sort names from what is none."""
        self._entries = [(pattern, compiled(pattern), value) for pattern, value in table.items()]
        self._spent = 0

    @cached_property
    def _names(self) -> dict[str, list[int]]:
        """Places of plain names by what they come to without dots, underscores and anchors."""
        names: dict[str, list[int]] = {}
        for place, (pattern, expression, _) in enumerate(self._entries):
            if expression is None or expression[1] == 1:
                names.setdefault(_squeezed(pattern), []).append(place)
        return names

    @cached_property
    def _others(self) -> list[int]:
        return [
            place
            for place, (_, expression, _) in enumerate(self._entries)
            if expression and expression[1] > 1
        ]

    def find(self, *spellings: str) -> Value | None:
        """
        Return the value of the first pattern that matches one of the spellings of a module, or None.

        Raises:
            PatternTooHardError: When the patterns of this table have used up what they may need together.
        """
        if not self._entries:
            return None
        places = sorted({place for name in spellings for place in self._candidates(name[:_LONGEST_NAME])})
        for place in places:
            if any(self._matches(place, name) for name in spellings if len(name) <= _LONGEST_NAME):
                return self._entries[place][2]
        return None

    def _candidates(self, name: str) -> list[int]:
        ends = (
            [name, *(name[dot + 1 :] for dot in range(len(name)) if name[dot] == ".")]
            if name.count(".") < 64
            else [name]
        )
        return [place for end in ends for place in self._names.get(_squeezed(end), ())] + self._others

    def _matches(self, place: int, name: str) -> bool:
        pattern, expression, _ = self._entries[place]
        if expression is None:
            return name == pattern or name.endswith("." + pattern)
        if expression[1] > 1:
            self._spent += len(name) ** min(expression[1], 8)
            if self._spent > _STEPS:
                raise PatternTooHardError("its patterns of module names need too much work; use plain names")
        return expression[0].match(name) is not None


def _squeezed(name: str) -> str:
    """Drop what a dot of a pattern may stand for, so that equal names have one key."""
    return re.sub(r"[._\-\\^$]", "", name)
