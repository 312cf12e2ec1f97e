"""What is wrong with what users wrote: every problem is noted with its place, and all of them are raised at once."""

from __future__ import annotations

import difflib
import math
import numbers
from typing import TYPE_CHECKING, NoReturn

from lora_mixer.errors import MixError
from lora_mixer.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_LONGEST_SHOWN = 60


def shown(value: object) -> str:
    """
    Show a value and, where it says more, its type, in a message.

    Args:
        value: Anything that a user passed.

    Returns:
        A short text.

    Example:
        >>> shown("x"), shown(float("nan"))
        ("'x' (a str)", 'nan')
    """
    text = repr(value)
    if len(text) > _LONGEST_SHOWN:
        text = text[: _LONGEST_SHOWN - 3] + "..."
    return text if isinstance(value, float) else f"{text} (a {type(value).__name__})"


def did_you_mean(word: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """
    Suggest the known word that was probably meant.

    Args:
        word: What was written.
        known: What could have been meant.
        cutoff: How alike the two must be, from 0 to 1.

    Returns:
        A sentence that starts with a space, or nothing.

    Example:
        >>> did_you_mean("wieght", ["weight", "mask"])
        ' Did you mean "weight"?'
    """
    by_folded = {name.casefold(): name for name in known}
    close = difflib.get_close_matches(word.casefold(), by_folded, n=1, cutoff=cutoff)
    return f' Did you mean "{by_folded[close[0]]}"?' if close else ""


def number_text(value: float) -> str:
    """
    Write a number so that reading it gives the same bits.

    Args:
        value: A finite number.

    Returns:
        The shortest such text, whole numbers without a point.

    Example:
        >>> number_text(0.7), number_text(1.0), number_text(1e-07)
        ('0.7', '1', '1e-07')
    """
    return repr(float(value)).removesuffix(".0")


def list_of(names: Iterable[str]) -> str:
    """
    List names in a message.

    Args:
        names: The names.

    Returns:
        The names in quotes, or "none".

    Example:
        >>> list_of(["a", "b"])
        '"a", "b"'
    """
    return ", ".join(f'"{name}"' for name in names) or "none"


class Problems:
    """
    The problems of one reading, in the order in which they were met.

    Attributes:
        problems: What is wrong, each with its place.
    """

    def __init__(self) -> None:
        """Start without any."""
        self.problems: list[Problem] = []

    def problem(self, where: str, text: str) -> None:
        """
        Note one problem.

        Args:
            where: The path of the entry, as ``3d.unet.down[1]``; may be empty.
            text: What was expected, what was there and how to put it right.
        """
        self.problems.append(Problem(where, text))

    def take(self, where: str, error: MixError) -> None:
        """Note what an error says of a part that stands at a place."""
        for each in error.problems or (Problem("", str(error)),):
            self.problems.append(Problem(_joined(where, each.place), each.text, each.line))

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
        self.problem(where, f"unknown key {key!r}; known are {list_of(known)}.{hint}{extra}")

    def finish(self, what: str = "mix") -> None:
        """
        Raise all problems at once, or do nothing.

        Args:
            what: What was read, as in "this mix".

        Raises:
            MixError: There were problems.
        """
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


def _joined(outer: str, inner: str) -> str:
    return f"{outer}.{inner}" if outer and inner and not inner.startswith("[") else f"{outer}{inner}"
