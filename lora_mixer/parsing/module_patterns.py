"""
PEFT's patterns of module names, matched with a bound on work.

They are regular expressions that must match a module's path, or its end behind a dot. Nearly all are plain names. Python's
``re`` may need exponential time, with the interpreter held, so what it gets is limited to what it does in polynomial time, and
all of it together has a budget.
"""

from __future__ import annotations

import heapq
import re
from functools import cached_property
from typing import TYPE_CHECKING, Generic, TypeVar

from lora_mixer.errors import LoraMixerError

if TYPE_CHECKING:
    from collections.abc import Mapping

_PLAIN = re.compile(r"\^?(?:[\w\-.]|\\[.\-])*\$?")
_TOKEN = re.compile(r"\\[.\-dws]|\[[^\[\]\\]{1,64}\]|[\w\-. ^$|]|\(\?:|[()*+?]")
_LONGEST_PATTERN = 2048
LONGEST_NAME = 4096
"""Letters of a module's path that are read; no model's come near."""
_QUANTIFIERS, _GROUPS = 2, 2
_STEPS = 100_000_000  # what all patterns of a file may need together
_A_MATCH, _A_COMPILATION, _A_LETTER = 100, 5000, 200
"""What it costs to begin a match, to compile a pattern, and each letter of it, in steps of a match."""
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
    power = power_of(pattern)
    expression = _expression(pattern)
    return None if expression is None else (expression, power)


def power_of(pattern: str) -> int:
    """
    Return the power of a name's length that matching a pattern may cost; 1 for a plain name.

    Raises:
        PatternTooHardError: When matching it has no good bound.

    Example:
        >>> power_of("mid_block.attn1.to_q"), power_of("attn.*")
        (1, 2)
    """
    if len(pattern) > _LONGEST_PATTERN:
        raise PatternTooHardError(
            f"a pattern of {len(pattern)} characters, at most {_LONGEST_PATTERN} are read"
        )
    return 1 if _PLAIN.fullmatch(pattern) else _power(pattern)


def _expression(pattern: str) -> re.Pattern[str] | None:
    try:
        return re.compile(rf"(?:.*\.)?(?:{pattern})$")
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
        """Sort names from what is none; none is compiled before a module comes that it may mean."""
        self._entries = [(pattern, power_of(pattern), value) for pattern, value in table.items()]
        self._compiled: dict[int, re.Pattern[str] | None] = {}
        self._spent = 0

    @cached_property
    def _names(self) -> dict[str, list[int]]:
        """Places of plain names by what they come to without dots, underscores and anchors."""
        names: dict[str, list[int]] = {}
        for place, (pattern, power, _) in enumerate(self._entries):
            if power == 1:
                names.setdefault(_squeezed(pattern), []).append(place)
        return names

    @cached_property
    def _others(self) -> list[int]:
        return [place for place, (_, power, _) in enumerate(self._entries) if power > 1]

    def find(self, *spellings: str) -> Value | None:
        """
        Return the value of the first pattern that matches one of the spellings of a module, or None.

        Raises:
            PatternTooHardError: When the patterns of this table have used up what they may need together.
        """
        if not self._entries:
            return None
        read = [name for name in spellings if len(name) <= LONGEST_NAME]
        named = sorted({place for name in read for place in self._candidates(name)})
        for place in heapq.merge(named, self._others):
            if any(self._is_named(place, name) for name in read) or any(
                self._matches(place, name) for name in read
            ):
                return self._entries[place][2]
        return None

    def _candidates(self, name: str) -> list[int]:
        ends = (
            [name, *(name[dot + 1 :] for dot in range(len(name)) if name[dot] == ".")]
            if name.count(".") < 64
            else [name]
        )
        return [place for end in ends for place in self._names.get(_squeezed(end), ())]

    def _is_named(self, place: int, name: str) -> bool:
        """Say whether a plain name is this one to the letter, as nearly all are: nothing has to be compiled for it."""
        pattern, power, _ = self._entries[place]
        if power > 1:
            return False
        self._spend(_A_MATCH + len(name))
        plain = pattern.removesuffix("$").replace("\\", "")
        if plain.startswith("^"):
            return name == plain[1:]
        return name == plain or name.endswith("." + plain)

    def _matches(self, place: int, name: str) -> bool:
        pattern, power, _ = self._entries[place]
        self._spend(_A_MATCH + len(name) ** min(power, 8))
        if place not in self._compiled:
            self._spend(_A_COMPILATION + _A_LETTER * len(pattern))
            self._compiled[place] = _expression(pattern)
        expression = self._compiled[place]
        if expression is None:
            return name == pattern or name.endswith("." + pattern)
        return expression.match(name) is not None

    def _spend(self, steps: int) -> None:
        self._spent += steps
        if self._spent > _STEPS:
            raise PatternTooHardError("its patterns of module names need too much work; use plain names")


def _squeezed(name: str) -> str:
    """Drop what a dot of a pattern may stand for, so that equal names have one key."""
    return re.sub(r"[._\-\\^$]", "", name)
