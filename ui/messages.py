"""Errors as people read them: at their field, in words, with nothing of this machine or of Python in them."""

from __future__ import annotations

import itertools
import re
from typing import Any

from lora_mixer.errors import LoraMixerError, PictureError

LONGEST = 2000
"""Characters of a message that is shown."""
_numbers = itertools.count(1)
_PATH = re.compile(r"(?<![\w:/.\\])(?:[A-Za-z]:)?[\\/](?:[^\\/\s'\"<>|:*?]+[\\/])+([^\\/\s'\"<>|:*?]*)")


class FieldError(PictureError):
    """
    A field of the page holds what cannot be.

    Attributes:
        field: The field, as its ``elem_id`` has it.
    """

    def __init__(self, text: str, field: str = "") -> None:
        """Say what, and where."""
        super().__init__(text)
        self.field = field


def words_of(error: BaseException) -> str:
    """
    Return an error's text for people: paths are cut to their last name, and it has an end.

    Args:
        error: Any error of the package.

    Example:
        >>> words_of(PictureError("/srv/loras/ink.safetensors: cut short"))
        'ink.safetensors: cut short'
    """
    return without_paths(str(error))[:LONGEST]


def without_paths(text: str) -> str:
    """
    Return a text with each absolute path cut to its last name.

    Example:
        >>> without_paths("in /home/ann/loras/ink.safetensors, key 7"), without_paths("1/2 and a/b")
        ('in ink.safetensors, key 7', '1/2 and a/b')
    """
    return _PATH.sub(lambda found: found[1] or "a folder", text)


def told(error: LoraMixerError) -> dict[str, Any]:
    """Return an error as the page shows it: its words, its field, and a number, so that the same twice is seen twice."""
    return {
        "message": words_of(error),
        "field": getattr(error, "field", ""),
        "problem_number": next(_numbers),
    }
