"""Values from browsers, read as hostile: every handler reads its arguments through these, page or API alike."""

from __future__ import annotations

import math
import re
from typing import Any

from lora_mixer.errors import PictureError

MAX_TEXT = 20_000
MAX_NAME = 120
_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")


def text(value: Any, what: str, limit: int = MAX_TEXT) -> str:
    """
    Read a text of limited length.

    Args:
        value: What came.
        what: What it is called in the message.
        limit: The most characters.

    Raises:
        PictureError: When it is none.
    """
    if value is None:
        return ""
    if not isinstance(value, str) or len(value) > limit:
        raise PictureError(f"{what}: expected a text of at most {limit} characters")
    return value


def number(value: Any, what: str, low: float, high: float) -> float:
    """
    Read a finite number within limits.

    Args:
        value: What came; a text that is a number will do.
        what: What it is called in the message.
        low: The least.
        high: The greatest.

    Raises:
        PictureError: When it is none.
    """
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if isinstance(value, bool) or not math.isfinite(found) or not low <= found <= high:
        raise PictureError(f"{what}: expected a number from {low:g} to {high:g}, got {str(value)[:40]!r}")
    return found


def whole(value: Any, what: str, low: int, high: int) -> int:
    """
    Read a whole number within limits; large ones keep all digits.

    Args:
        value: What came.
        what: What it is called in the message.
        low: The least.
        high: The greatest.

    Raises:
        PictureError: When it is none.
    """
    try:
        found = int(value) if isinstance(value, str) else value
    except ValueError:
        found = None
    if isinstance(found, float) and found.is_integer():
        found = int(found)
    if isinstance(found, bool) or not isinstance(found, int) or not low <= found <= high:
        raise PictureError(f"{what}: expected a whole number from {low} to {high}, got {str(value)[:40]!r}")
    return found


def opaque(value: Any, what: str) -> str:
    """
    Read an id that this server gave out: letters, digits, ``-`` and ``_`` only, so that no path is one.

    Args:
        value: What came.
        what: What it is the id of.

    Raises:
        PictureError: When it is none.
    """
    if not isinstance(value, str) or not _ID.fullmatch(value):
        raise PictureError(f"{what}: expected an id that the page gave, got {str(value)[:40]!r}")
    return value


def table(value: Any, what: str) -> dict[str, Any]:
    """
    Read a JSON object.

    Raises:
        PictureError: When it is none.
    """
    if not isinstance(value, dict):
        raise PictureError(f"{what}: expected an object, got {type(value).__name__}")
    return value


def choice(value: Any, what: str, known: tuple[str, ...]) -> str:
    """
    Read one of several words.

    Raises:
        PictureError: When it is none of them.
    """
    if value not in known:
        raise PictureError(f"{what}: expected one of {', '.join(known)}, got {str(value)[:40]!r}")
    return str(value)
