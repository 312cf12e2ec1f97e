"""Values from browsers, read as hostile: every handler reads its arguments through these, page or API alike."""

from __future__ import annotations

import math
import re
from typing import Any

from .messages import FieldError

MAX_TEXT = 20_000
MAX_NAME = 120
_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")


def text(value: Any, what: str, limit: int = MAX_TEXT, field: str = "") -> str:
    """
    Read a text of limited length.

    Args:
        value: What came.
        what: What it is called in the message.
        limit: The most characters.
        field: The page's field, which the message stands at.

    Raises:
        FieldError: When it is not such a text.
    """
    if value is None:
        return ""
    if not isinstance(value, str) or len(value) > limit:
        raise FieldError(f"{what}: at most {limit} characters fit", field)
    return value


def number(value: Any, what: str, low: float, high: float, field: str = "") -> float:
    """
    Read a finite number within limits.

    Args:
        value: What came; a text that is a number will do.
        what: What it is called in the message.
        low: The least.
        high: The greatest.
        field: The page's field, which the message stands at.

    Raises:
        FieldError: When it is not such a number.
    """
    try:
        number_read = float(value)
    except (TypeError, ValueError, OverflowError):
        number_read = math.nan
    if isinstance(value, bool) or not math.isfinite(number_read) or not low <= number_read <= high:
        raise FieldError(f"{what}: a number from {low:g} to {high:g} is needed{_instead(value)}", field)
    return number_read


def whole(value: Any, what: str, low: int, high: int, field: str = "") -> int:
    """
    Read a whole number within limits; large ones keep all digits.

    Args:
        value: What came.
        what: What it is called in the message.
        low: The least.
        high: The greatest.
        field: The page's field, which the message stands at.

    Raises:
        FieldError: When it is not such a number.
    """
    try:
        number_read = int(value) if isinstance(value, str) and len(value) <= MAX_NAME else value
    except ValueError:
        number_read = None
    if isinstance(number_read, float) and number_read.is_integer():
        number_read = int(number_read)
    if isinstance(number_read, bool) or not isinstance(number_read, int) or not low <= number_read <= high:
        raise FieldError(f"{what}: a whole number from {low} to {high} is needed{_instead(value)}", field)
    return number_read


def _instead(value: Any) -> str:
    if value is None or value == "":
        return "; it is empty"
    return f", not {str(value)[:40]}" if isinstance(value, str | int | float) else ""


def opaque(value: Any, what: str) -> str:
    """
    Read an id that this server gave out: letters, digits, ``-`` and ``_`` only, so that no path is one.

    Args:
        value: What came.
        what: What it is the id of.

    Raises:
        FieldError: When it is not one.
    """
    if not isinstance(value, str) or not _ID.fullmatch(value):
        raise FieldError(f"{what}: this is not an id that the page gave out")
    return value


def table(value: Any, what: str) -> dict[str, Any]:
    """
    Read a JSON object.

    Raises:
        FieldError: When it is something else.
    """
    if not isinstance(value, dict):
        raise FieldError(f"{what}: expected an object")
    return value


def choice(value: Any, what: str, known: tuple[str, ...], field: str = "") -> str:
    """
    Read one of several words.

    Raises:
        FieldError: When it is another.
    """
    if value not in known:
        raise FieldError(f"{what}: one of {', '.join(known)} is needed{_instead(value)}", field)
    return str(value)
