"""
Regular expressions of strangers, matched in time that follows their length and the text's.

Python's ``re`` goes back and tries again, which takes exponential time for some expressions, with the interpreter held. Here all
places of an expression that a letter may lead to are followed at once (a finite automaton), so that nothing is tried twice.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LONGEST = 2048
"""Letters of an expression."""
_PLACES, _DEPTH, _KEPT = 4000, 40, 1 << 13
_MISS = 4  # what it costs to follow a place that was not followed before, in letters that were
_FLAGS = re.compile(r"\(\?([aimsu]+)\)")
_GROUP = re.compile(r"\((?!\?)|\(\?:|\(\?P<\w+>")
_COUNT = re.compile(r"([*+?])|\{(\d{0,6})(?:(,)(\d{0,6}))?\}")
_ATOM = re.compile(
    r"\\(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|[abfnrtvdDwWsSAZB]|[^0-9A-Za-z])|\[\^?\]?(?:[^\]\\]|\\.)*\]|[^\\]",
    re.DOTALL,
)

_Places: TypeAlias = "frozenset[int]"


@dataclass(frozen=True)
class _Letter:
    test: Callable[[str], bool]


@dataclass(frozen=True)
class _Edge:
    kind: str


@dataclass(frozen=True)
class _Either:
    parts: tuple[_Tree, ...]


@dataclass(frozen=True)
class _All:
    parts: tuple[_Tree, ...]


@dataclass(frozen=True)
class _Count:
    part: _Tree
    least: int
    most: int | None


_Tree: TypeAlias = "_Letter | _Edge | _Either | _All | _Count"


class ExpressionError(ValueError):
    """It is no regular expression, or one that is not read here."""


class Expression:
    """
    A regular expression that has to match a whole text.

    All of Python's are read that need no memory of what was matched: no look at what comes before or after, no references back,
    no possessive counts.

    Args:
        text: The expression.

    Raises:
        ExpressionError: When it is none, or too large, or needs such a memory.

    Example:
        >>> Expression("(a|a)*b").matches("a" * 1000 + "b"), Expression("(a|a)*b").matches("a" * 1000)
        (True, False)
    """

    def __init__(self, text: str) -> None:
        """Lay out its places."""
        if len(text) > LONGEST:
            raise ExpressionError(f"it has {len(text)} letters, at most {LONGEST} are read")
        try:
            re.compile(text)
        except (re.error, RecursionError, OverflowError) as error:
            raise ExpressionError(str(error)[:200]) from None
        self._places: list[tuple[Callable[[str], bool] | str | None, list[int]]] = [(None, [])]
        self._text, self._parts = text, 0
        tree = _Parser(text).either()
        self._start: _Places = frozenset((self._laid(tree, 0),))
        self._moves: dict[tuple[_Places, str, str], _Places] = {}
        self._kept = 0

    def __reduce__(self) -> tuple[type[Expression], tuple[str]]:
        return Expression, (self._text,)

    def matches(self, text: str, spend: Callable[[int], None] = lambda _: None) -> bool:
        """
        Say whether it matches the whole text.

        Args:
            text: The text.
            spend: Is told how much work it was, in letters; what it raises ends it.
        """
        now, before = self._start, ""
        spend(1 + len(text))
        for letter in text:
            if not now:
                return False
            known = self._moves.get((now, before, letter))
            if known is None:
                open_ = self._reached(now, before, letter)
                spend(_MISS * len(open_))
                known = frozenset(
                    to[0]
                    for test, to in (self._places[place] for place in open_)
                    if callable(test) and test(letter)
                )
                if self._kept < _KEPT:
                    self._moves[now, before, letter] = known
                    self._kept += 1 + len(now) + len(known)
            now, before = known, letter
        open_ = self._reached(now, before, "")
        spend(_MISS * len(open_))
        return 0 in open_

    def _reached(self, places: _Places, before: str, after: str) -> set[int]:
        """Return the places that some lead to without a letter between two, or at an end, where the letter is empty."""
        found, waiting = set(places), list(places)
        while waiting:
            test, to = self._places[waiting.pop()]
            if test is None or (isinstance(test, str) and _holds(test, before, after)):
                fresh = [place for place in to if place not in found]
                found.update(fresh)
                waiting += fresh
        return found

    def _laid(self, tree: _Tree, after: int) -> int:
        """Lay out a part of the expression before a place; return where it begins."""
        self._parts += 1
        if self._parts > _PLACES:  # counts of nothing have no places
            raise ExpressionError(f"its counts come to more than {_PLACES} parts")
        match tree:
            case _Letter():
                return self._place(tree.test, [after])
            case _Edge():
                return self._place(tree.kind, [after])
            case _Either():
                return self._place(None, [self._laid(each, after) for each in tree.parts])
            case _All():
                for each in reversed(tree.parts):
                    after = self._laid(each, after)
                return after
            case _Count():
                return self._repeated(tree, after)

    def _repeated(self, count: _Count, after: int) -> int:
        if count.most is None:
            again = self._place(None, [after])
            self._places[again][1].append(self._laid(count.part, again))
            after = again
        else:
            out = after
            for _ in range(count.most - count.least):
                after = self._place(None, [self._laid(count.part, after), out])
        for _ in range(count.least):
            after = self._laid(count.part, after)
        return after

    def _place(self, test: Callable[[str], bool] | str | None, to: list[int]) -> int:
        if len(self._places) >= _PLACES:
            raise ExpressionError(f"its counts come to more than {_PLACES} places")
        self._places.append((test, to))
        return len(self._places) - 1


def _holds(test: str, before: str, after: str) -> bool:
    if test in ("^", r"\A"):
        return not before
    if test in ("$", r"\Z"):
        return not after
    is_edge = _is_word(before) != _is_word(after)
    return is_edge if test == r"\b" else not is_edge


def _is_word(letter: str) -> bool:
    return letter == "_" or letter.isalnum()


class _Parser:
    """What an expression is made of."""

    def __init__(self, text: str) -> None:
        flags = _FLAGS.match(text)
        if flags and "m" in flags[1]:
            raise ExpressionError("(?m) is not read")
        self._flags = flags[0] if flags else ""
        self._text, self._at, self._depth = text, len(self._flags), 0

    def either(self) -> _Tree:
        """Return what stands up to the end of a group, or of all."""
        self._depth += 1
        if self._depth > _DEPTH:
            raise ExpressionError(f"its brackets are deeper than {_DEPTH}")
        parts: list[_Tree] = [_All(tuple(self._all()))]
        while self._rest(1) == "|":
            self._at += 1
            parts.append(_All(tuple(self._all())))
        self._depth -= 1
        return _Either(tuple(parts)) if len(parts) > 1 else parts[0]

    def _all(self) -> Iterator[_Tree]:
        while self._rest(1) not in ("", "|", ")"):
            yield self._counted(self._one())

    def _rest(self, letters: int) -> str:
        return self._text[self._at : self._at + letters]

    def _one(self) -> _Tree:
        if self._rest(1) == "(":
            group = _GROUP.match(self._text, self._at)
            if group is None:
                raise ExpressionError(f"{self._rest(4)!r} is not read: only plain groups are")
            self._at = group.end()
            inner = self.either()
            self._at += 1
            return inner
        atom = _ATOM.match(self._text, self._at)
        if atom is None:
            raise ExpressionError(f"{self._rest(4)!r} is not read")
        self._at = atom.end()
        if atom[0] in ("^", "$", r"\A", r"\Z", r"\b", r"\B"):
            return _Edge(atom[0])
        return _Letter(_test(self._flags, atom[0]))

    def _counted(self, part: _Tree) -> _Tree:
        while count := _COUNT.match(self._text, self._at):
            if count[0] == "{}":  # two letters
                break
            self._at = count.end()
            least, most = int(count[1] == "+"), 1 if count[1] == "?" else None
            if not count[1]:
                least = int(count[2] or 0)
                most = (int(count[4]) if count[4] else None) if count[3] else least
            if self._rest(1) == "+":
                raise ExpressionError("possessive counts are not read")
            self._at += self._rest(1) == "?"
            part = _Count(part, least, most)
        return part


@lru_cache(maxsize=1024)
def _test(flags: str, atom: str) -> Callable[[str], bool]:
    """Return what says whether a letter is meant by one."""
    if len(atom) == 1 and atom != "." and not flags:
        return atom.__eq__
    try:
        expression = re.compile(flags + (re.escape(atom) if len(atom) == 1 and atom != "." else atom))
    except re.error as error:
        raise ExpressionError(f"{atom[:60]!r}: {error}") from None
    return lambda letter: expression.fullmatch(letter) is not None
