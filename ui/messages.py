"""Errors as people read them: at their field, in the page's words, with nothing of this machine in them."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

from lora_mixer.errors import LoraMixerError, PictureError
from lora_mixer.problem import Surface

LONGEST = 2000
"""Characters of a message that is shown."""
PROBLEMS_SHOWN = 20
"""Problems of an error that the page is told."""
_numbers = itertools.count(1)
_PATH = re.compile(
    r"(?<![\w/.\\])(?!//)(?:[A-Za-z]:|\\(?=\\))?[\\/](?:[^\\/\s'\"<>|:*?]+[\\/])+([^\\/\s'\"<>|:*?]*)"
)
_QUOTED = re.compile(r"(['\"])(?:[A-Za-z]:)?[\\/](?:[^'\"\n\\/]*[\\/])+([^'\"\n\\/]*)\1")
"""A path between quotes, as the system says it: blanks are of it."""
_folders: dict[str, re.Pattern[str]] = {}


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
    Return an error's text for people: with what they can do on the page, and paths cut to their last name; it has an end.

    Args:
        error: Any error of the package.

    Example:
        >>> from lora_mixer import Remedy
        >>> words_of(PictureError("/srv/loras/ink.safetensors: no rank", remedy=Remedy("pass rank=", page="Give a rank.")))
        'ink.safetensors: no rank; Give a rank.'
    """
    text = error.text_on(Surface.PAGE) if isinstance(error, LoraMixerError) else str(error)
    return without_paths(text)[:LONGEST]


def hide(*folders: Path) -> None:
    """Let no message show where these folders of the server are: a path with blanks tells nobody where it ends."""
    for folder in folders:
        for place in {str(folder), str(folder.absolute()), str(folder.resolve())}:
            if len(Path(place).parts) > 1:
                _folders[place] = re.compile(re.escape(place) + r"(?:([\\/])|(?![\w.-]))")


def without_paths(text: str) -> str:
    """
    Return a text with each absolute path cut to its last name: also those in what other libraries and the system say.

    Example:
        >>> without_paths("in /home/ann/loras/ink.safetensors, key 7"), without_paths("1/2 and a/b")
        ('in ink.safetensors, key 7', '1/2 and a/b')
    """
    text = text.replace("file:///", "/")
    for place, pattern in sorted(_folders.items(), reverse=True):
        if place in text:
            name = Path(place).name
            text = pattern.sub(lambda match, name=name: "/_/" if match[1] else name, text)  # type: ignore[misc]
    text = _QUOTED.sub(lambda match: f"{match[1]}{match[2] or 'a folder'}{match[1]}", text)
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


def about(error: LoraMixerError) -> dict[str, Any]:
    """
    Return what an error is about as values, for the page's own code: without paths, and with an end.

    Example:
        >>> about(LoraMixerError("is odd", file="/srv/loras/ink.safetensors", key="unet.conv"))["file"]
        'ink.safetensors'
    """

    def shown(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: shown(each) for name, each in value.items()}
        return without_paths(value)[:LONGEST] if isinstance(value, str) else value

    facts = error.facts()
    return {**shown(facts), "problems": [shown(each) for each in facts["problems"][:PROBLEMS_SHOWN]]}


def told(error: LoraMixerError) -> dict[str, Any]:
    """Return an error as the page shows it: its words, its field, and a number, so that the same twice is seen twice."""
    return {
        "message": words_of(error),
        "about": about(error),
        "field": getattr(error, "field", ""),
        "problem_number": next(_numbers),
    }
