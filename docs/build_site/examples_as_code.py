"""For the site: our docstrings' ``Example:`` is what griffe knows as ``Examples:``, and so is set as code."""

from __future__ import annotations

import re
from typing import Any

import griffe

_HEADING = re.compile(r"^(\s*)Example:$", re.MULTILINE)


class ExamplesAsCode(griffe.Extension):
    """Rename the section before it is read."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Look at the docstring of each object."""
        if obj.docstring is not None:
            obj.docstring.value = _HEADING.sub(r"\1Examples:", obj.docstring.value)
