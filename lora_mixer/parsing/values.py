"""Values out of strangers' metadata: what is there as the type that it should be, or None; nothing here raises."""

from __future__ import annotations

import hashlib
import math
import re
from typing import Any, TypeGuard

_LONGEST_NUMBER = 40
_DIGITS = re.compile(r"(?:0x)?([0-9a-fA-F]{8,64})")
_SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")


def clean_text(value: object) -> str:
    r"""
    Return text that can be encoded: halves of surrogate pairs and NUL become the replacement character.

    Example:
        >>> clean_text("a\ud800b\0")
        'a\ufffdb\ufffd'
    """
    return encodable(str(value)).replace("\0", "\ufffd")


def encodable(text: str) -> str:
    """Return text without halves of surrogate pairs."""
    return (
        text if text.isascii() else text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    )


def as_text(value: object) -> str | None:
    """Return text that is not empty, or None; numbers are texts, too."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    if isinstance(value, int) and abs(value) >= 1 << 128:  # printing a huge number takes long, or is refused
        return None
    return clean_text(value).strip() or None


def as_float(value: object) -> float | None:
    """
    Return a finite number, from a number or from text.

    Example:
        >>> as_float("0.5"), as_float("nan"), as_float(True)
        (0.5, None, None)
    """
    if isinstance(value, str) and len(value) <= _LONGEST_NUMBER:
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def is_number(value: object) -> TypeGuard[int | float]:
    """
    Say whether a value is a number that a float can hold: no flag, no text, not NaN or infinite.

    Example:
        >>> is_number(0.5), is_number(True), is_number("1"), is_number(10**400)
        (True, False, False, False)
    """
    return not isinstance(value, str) and as_float(value) is not None


def as_int(value: object, low: int = 0, high: int = 1 << 64) -> int | None:
    """
    Return a whole number within limits, from a number or from text.

    Example:
        >>> as_int("20"), as_int(20.0), as_int(20.5), as_int(-1)
        (20, 20, None, None)
    """
    if isinstance(value, str) and len(value) <= _LONGEST_NUMBER and re.fullmatch(r"\s*[+-]?\d+\s*", value):
        value = int(value)  # through a float, large seeds would change
    if isinstance(value, bool) or not isinstance(value, int):
        number = as_float(value)
        value = int(number) if number is not None and number == int(number) else None
    return value if isinstance(value, int) and low <= value <= high else None


def as_side(value: object) -> int | None:
    """Return a width or height in pixels, or None."""
    return as_int(value, 1, 1 << 20)


def sides(value: object) -> tuple[int | None, int | None]:
    """
    Read ``512x768`` or ``(512, 768)``.

    Example:
        >>> sides("512x768"), sides("(512, 768)"), sides("big")
        ((512, 768), (512, 768), (None, None))
    """
    match = re.fullmatch(r"\s*\(?\s*(\d{1,7})\s*[x×,]\s*(\d{1,7})\s*\)?\s*", str(value)[:64])
    return (as_side(match[1]), as_side(match[2])) if match else (None, None)


_OF_NOTHING = hashlib.sha256().hexdigest()


def as_hash(value: object) -> str | None:
    """
    Return 8 to 64 hexadecimal digits in lower case, without ``0x``; or None.

    None for the digest of nothing, too: programs write it for every file that is too short for their way of hashing.
    """
    match = _DIGITS.fullmatch(value.strip()) if isinstance(value, str) and len(value) <= 80 else None
    digits = match[1].lower() if match else None
    return None if digits is None or _OF_NOTHING.startswith(digits) else digits


def file_stem(value: object) -> str | None:
    r"""
    Return the name of a file without its folders and ending, or None.

    Example:
        >>> file_stem("styles\\ink v1.5.safetensors")
        'ink v1.5'
    """
    text = as_text(value)
    name = (text or "").replace("\\", "/").rstrip("/").rpartition("/")[2]
    for suffix in _SUFFIXES:
        if name.lower().endswith(suffix):
            name = name[: -len(suffix)]
            break
    return name.strip() or None


def as_table(value: object) -> dict[str, Any]:
    """Return the value if it is a JSON object, else an empty one."""
    return value if isinstance(value, dict) else {}


def as_list(value: object) -> list[Any]:
    """Return the value if it is a JSON list, else an empty one."""
    return value if isinstance(value, list) else []
