"""How messages say things: values, numbers, names, and long lists of which only the first are named."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["did_you_mean", "first_line", "first_of", "list_of", "number_text", "shown"]

_LONGEST_SHOWN = 60
_TOLD = (str, int, bool, list, dict, tuple, set, bytes, type(None))
"""Types that a value of theirs shows by its quotes and brackets, or by being a number or a word."""


def shown(value: object) -> str:
    """
    Show a value in a message, and its type where the value as it is written does not tell it.

    Args:
        value: Anything that a user passed.

    Returns:
        A short text.

    Example:
        >>> shown("x"), shown(float("nan")), shown(object)
        ("'x'", 'nan', "<class 'object'> (a type)")
    """
    try:
        text = repr(value)
    except ValueError:  # Python writes no number of more than 4,300 digits
        text = f"a number of {type(value).__name__} that is too long to write"
    if len(text) > _LONGEST_SHOWN:
        text = text[: _LONGEST_SHOWN - 3] + "..."
    if type(value) in _TOLD or isinstance(value, float):
        return text
    name = type(value).__name__
    return f"{text} ({'an' if name[0].lower() in 'aeiou' else 'a'} {name})"


def quoted(text: str, most: int = 60) -> str:
    r"""
    Quote what a stranger wrote, as people do: in one line, with what cannot be printed escaped.

    Args:
        text: Any text.
        most: How many characters of it are shown.

    Example:
        >>> print(quoted("it's"), quoted("a\n"), quoted("abc", 2))
        "it's" "a\n" "ab..."
    """
    plain = "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in text[:most])
    return f'"{plain}{"..." if len(text) > most else ""}"'


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


def list_of(names: Iterable[str], most: int = 40) -> str:
    """
    List names in a message.

    Args:
        names: The names.
        most: How many are named.

    Returns:
        The names in quotes and how many more there are, or "none".

    Example:
        >>> list_of(["a", "b"]), list_of("abc", 2)
        ('"a", "b"', '"a", "b" and 1 more')
    """
    return first_of([f'"{name}"' for name in names], most) or "none"


def first_of(texts: Sequence[str], most: int, *, between: str = ", ", last: str = " ", what: str = "") -> str:
    r"""
    List the first of many texts, and say how many more there are.

    Args:
        texts: All of them.
        most: How many are named.
        between: What stands between two.
        last: What stands before "and N more".
        what: What there are more of; nothing where it is plain.

    Returns:
        The text.

    Example:
        >>> first_of(["a", "b", "c"], 2), first_of(["a"], 2), first_of(["a", "b"], 1, last="; ", what="keys")
        ('a, b and 1 more', 'a', 'a; and 1 more keys')
    """
    named = between.join(texts[:most])
    rest = len(texts) - most
    return f"{named}{last}and {rest} more{f' {what}' if what else ''}" if rest > 0 else named


def first_line(error: BaseException, most: int = 200) -> str:
    r"""
    Return the first line of what somebody else's error says, cut; its class where it says nothing.

    Example:
        >>> first_line(OSError("\nno such thing\nat all")), first_line(KeyError())
        ('no such thing', 'KeyError')
    """
    return str(error).strip().split("\n", 1)[0].strip()[:most] or type(error).__name__
