"""File names from a template: nothing but its fields, nothing outside of the folder, no two alike."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from string import Formatter
from typing import TYPE_CHECKING

from lora_mixer.errors import PlanError

if TYPE_CHECKING:
    from collections.abc import Mapping

FIELDS = ("index", "seed", "job", "name", "cell", "prompt", "mix", "steps", "width", "height", "key")
PICTURE_SUFFIXES = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}
_FORMAT = re.compile(r"[<>^]?0?[0-9]{0,2}")
_SLUG = 40
_PART_BYTES_AT_MOST = 200


class NameTemplate:
    """
    A template for file names.

    Args:
        text: Fields in braces; a slash makes folders.
        suffix: What the names end with.

    Raises:
        PlanError: When it has other fields, or could name nothing.

    Example:
        >>> NameTemplate("{job}/{index:04}-{prompt}", ".png").name({"job": 1, "index": 7, "prompt": "A castle!"})
        '1/0007-a-castle.png'
    """

    def __init__(self, text: str, suffix: str) -> None:
        """Check the template."""
        self._text, self._suffix = text, suffix
        try:
            for _, word, form, conversion in Formatter().parse(text):
                if word is None:
                    continue
                if word not in FIELDS:
                    raise PlanError(
                        f"knows the fields {', '.join(FIELDS)}, got {{{word}}}; braces are written twice"
                    )
                if conversion or not _FORMAT.fullmatch(form or ""):
                    raise PlanError(f"a field may have a width, as {{index:05}}, got {form!r} for {{{word}}}")
            self.name(dict.fromkeys(FIELDS, 1))
        except (ValueError, IndexError, KeyError) as error:
            if isinstance(error, PlanError):
                raise
            raise PlanError(f"{text!r} is not a template: {error}; example: {{index:05}}-{{seed}}") from error

    def name(self, fields: Mapping[str, object]) -> str:
        """
        Return the name of one picture.

        Raises:
            PlanError: When it would lie outside of the folder or be too long.
        """
        plain = {key: value if isinstance(value, int) else slug(str(value)) for key, value in fields.items()}
        name = self._text.format(**plain) + self._suffix
        path = PurePosixPath(name)
        if (
            path.is_absolute()
            or any(part in ("..", ".") or part.startswith(".") for part in name.split("/"))
            or not all(name.split("/"))
            or not name.isprintable()
            or any(mark in name for mark in '\\:*?"<>|')
        ):
            raise PlanError("is not a name for a file inside of the folder", file=name)
        if any(len(part.encode()) > _PART_BYTES_AT_MOST for part in path.parts):
            raise PlanError(f"is longer than {_PART_BYTES_AT_MOST} bytes", file=name[:60] + "...")
        return name


def slug(text: str) -> str:
    """
    Return the letters and digits of a text with dashes between them, short.

    Example:
        >>> slug("A castle, on a HILL!"), slug("...")
        ('a-castle-on-a-hill', 'x')
    """
    return re.sub(r"[^\w]+", "-", text.lower()).strip("-_")[:_SLUG].strip("-_") or "x"
