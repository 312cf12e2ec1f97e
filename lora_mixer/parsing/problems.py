"""What is wrong with what users wrote: every problem is noted with its place, and all of them are raised at once."""

from __future__ import annotations

import math
import numbers
from dataclasses import replace
from typing import TYPE_CHECKING, NoReturn

from lora_mixer.errors import LoraMixerError, MixError
from lora_mixer.problem import Problem, Surface
from lora_mixer.wording import did_you_mean, list_of, number_text, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

EntryPath = tuple[str | int, ...]
"""Keys and numbers that lead to an entry."""

_LONGEST_PLACE = 200


class Problems:
    """
    The problems of one reading, in the order in which they were met.

    Args:
        lines: Returns the line of what stands at a path, where what is read is a file or a text of several lines.
        refuse: Makes the error of all problems; a ``MixError`` where it is not said.
        surface: Where they are read, for what others' errors say can be done.

    Attributes:
        problems: What is wrong, each with its place and, where there are lines, its line.

    Example:
        >>> problems = Problems({("jobs", 0): 3}.get)
        >>> problems.problem(("jobs", 0), "expected a prompt")
        >>> print(problems.problems[0])
        line 3: jobs[0]: expected a prompt
    """

    def __init__(
        self,
        lines: Callable[[EntryPath], int | None] | None = None,
        refuse: Callable[[Sequence[Problem]], LoraMixerError] | None = None,
        surface: Surface = Surface.PYTHON,
    ) -> None:
        """Start without any."""
        self._surface = surface
        self.problems: list[Problem] = []
        self.lines = lines
        self._noted: set[Problem] = set()
        self._refuse = refuse

    def problem(self, where: str | EntryPath, text: str, *, line: int | None = None) -> None:
        """
        Note one problem; the same one counts once.

        Args:
            where: The path of the entry: keys and numbers, or their text, as ``3d.unet.down[1]``; may be empty.
            text: What was expected, what was there and how to put it right.
            line: Its line; that of the path where it is not said.
        """
        if not isinstance(where, str):
            line = self.lines(where) if line is None and self.lines is not None else line
            where = path_text(where)
        elif line is None:
            line = self.line_at(where)
        problem = Problem(where, text, line)
        if problem not in self._noted:  # a million pictures may have one and the same
            self._noted.add(problem)
            self.problems.append(problem)

    def line_at(self, where: str) -> int | None:
        """Return the line of an entry by its path as text; None where what is read has no lines that are known by it."""
        del where
        return None

    def take(self, where: str | EntryPath, error: Exception) -> None:
        """Note what an error says of a part that stands at a place: each of its problems, or all of it as one."""
        remedy = getattr(error, "remedy", None)
        problems = list(getattr(error, "problems", ()))
        if not problems:
            text = error.text_on(self._surface) if isinstance(error, LoraMixerError) else str(error)
            problems = [Problem("", text)]
        elif remedy is not None:
            problems[-1] = replace(problems[-1], text=remedy.after(problems[-1].text, self._surface))
        for each in problems:
            inner = each.within(where if isinstance(where, str) else path_text(where))
            line = None if isinstance(where, str) or self.lines is None else self.lines(where)
            self.problem(inner.place, inner.text, line=inner.line if line is None else line)

    def number(self, where: str, value: object, low: float = -math.inf, high: float = math.inf) -> float:
        """
        Read a finite number; True, texts, NaN and infinity are none.

        Args:
            where: The path of the entry.
            value: What is there.
            low: The least number allowed.
            high: The greatest number allowed.

        Returns:
            The number, or 0.0 where there was a problem.
        """
        if isinstance(value, numbers.Real) and not isinstance(value, bool):
            try:
                # "+ 0.0" turns -0.0 into 0.0, so that the two are one value everywhere.
                number = float(value) + 0.0
            except OverflowError:
                number = math.inf
            if math.isfinite(number) and low <= number <= high:
                return number
            if math.isfinite(number):
                limits = (
                    f"of at least {number_text(low)}"
                    if math.isinf(high)
                    else (f"from {number_text(low)} to {number_text(high)}")
                )
                self.problem(where, f"expected a number {limits}, got {number_text(number)}.")
                return 0.0
        self.problem(where, f"expected a finite number, got {shown(value)}.")
        return 0.0

    def unknown_key(self, where: str, key: object, known: Sequence[str], more: str = "") -> None:
        """
        Note a key that means nothing here.

        Args:
            where: The path of the mapping.
            key: The key.
            known: The keys that would mean something.
            more: A further sentence on how to put it right.
        """
        hint = did_you_mean(key, known) if isinstance(key, str) else ""
        extra = f" {more}" if more else ""
        text = f"unknown key {key!r}; known are {list_of(known)}.{hint}{extra}"
        self.problem(where, text, line=self.line_at(f"{where}.{key}".lstrip(".")))

    def finish(self, what: str = "mix") -> None:
        """
        Raise all problems at once, or do nothing.

        Args:
            what: What was read, as in "this mix".

        Raises:
            MixError: There were problems; another error where ``refuse`` was given.
        """
        if self.problems and self._refuse is not None:
            raise self._refuse(self.problems)
        if self.problems:
            fail(what, self.problems)


def fail(what: str, problems: Sequence[Problem]) -> NoReturn:
    """
    Raise one error for all problems.

    Args:
        what: What was read, as in "this mix".
        problems: At least one.

    Raises:
        MixError: Always.
    """
    raise MixError(problems=tuple(problems), what=what)


def path_text(path: EntryPath) -> str:
    """
    Write the path of an entry.

    Example:
        >>> path_text(("jobs", 0, "grid", "weight ink"))
        'jobs[0].grid.weight ink'
    """
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return "".join(parts).removeprefix(".")[:_LONGEST_PLACE]


def named_twice(key: str) -> str:
    """Return what is wrong where a key stands twice."""
    return f"{key[:60]!r} is named twice; give it one entry"
