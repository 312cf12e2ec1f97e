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


_TYPE = re.compile(r" \((?:an?) (?:int|str|float|bool|list|dict|tuple|set|bytes|NoneType)\)")
_CODE = re.compile(r"\b[a-z][a-z0-9_]*=(?:(?:True|False|None)\b|(?=[\s.,;:)]|$))")
_ASIDE = re.compile(rf"\s*\([^()]*(?:{_CODE.pattern})[^()]*\)")
_BEGINS, _ENDS = re.compile(r"[.;:,]\s|^"), re.compile(r"[.;,](?=\s|$)|$")


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
    Return an error's text for people: no Python, paths cut to their last name, and it has an end.

    Args:
        error: Any error of the package.

    Example:
        >>> words_of(PictureError("/srv/loras/ink.safetensors: cut short"))
        'ink.safetensors: cut short'
    """
    return without_paths(without_python(str(error)))[:LONGEST]


def without_python(text: str) -> str:
    """
    Return a message without what only a program can do: types of values, and advice to pass an argument.

    Example:
        >>> without_python("steps: expected 1 to 9, got 0 (an int)")
        'steps: expected 1 to 9, got 0'
        >>> without_python("Nobody answers. Check the network, or use what is cached with local_files_only=True.")
        'Nobody answers. Check the network.'
    """
    return "\n".join(map(_line_without_python, text.split("\n")))


def _line_without_python(line: str) -> str:
    line = _ASIDE.sub("", _TYPE.sub("", line))
    while (code := _CODE.search(line)) is not None:
        start = max((begin.start() for begin in _BEGINS.finditer(line, 0, code.start())), default=0)
        ends = _ENDS.search(line, code.end())
        end = ends.start() if ends else len(line)
        keeps = line[start : start + 1] in (".", ";") and line[end : end + 1] == line[start : start + 1]
        rest = line[:start] + line[end + (1 if keeps and line[start] == ";" else 0) :]
        if rest[:1] in (".", ",", ";"):
            rest = rest[1:].lstrip()
        if ".." in rest and ".." not in line:
            rest = rest.replace("..", ".")
        line = rest if rest.strip(" .,;:") else (line[: code.start()] + line[code.end() :])
    return line


def without_paths(text: str) -> str:
    """
    Return a text with each absolute path cut to its last name.

    Example:
        >>> without_paths("in /home/ann/loras/ink.safetensors, key 7"), without_paths("1/2 and a/b")
        ('in ink.safetensors, key 7', '1/2 and a/b')
    """
    return _PATH.sub(lambda match: match[1] or "a folder", text)


def unexpected(error: Exception) -> str:
    """
    Say for people what is no error of the package: that memory ran out, or that the log has more.

    Example:
        >>> unexpected(KeyError("x"))
        "This should not have happened (KeyError); the server's log has more."
    """
    import torch  # the port is looked at before it is there

    # on a CPU torch raises a plain RuntimeError, of which its allocator's name is all that can be told
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error):
        return (
            "There is not enough memory for this. Ask for a smaller picture or fewer adapters at once, or start with "
            "--offload model; nothing here has changed."
        )
    return f"This should not have happened ({type(error).__name__}); the server's log has more."


def told(error: LoraMixerError) -> dict[str, Any]:
    """Return an error as the page shows it: its words, its field, and a number, so that the same twice is seen twice."""
    return {
        "message": words_of(error),
        "field": getattr(error, "field", ""),
        "problem_number": next(_numbers),
    }
