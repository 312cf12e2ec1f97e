"""
Engines under the names that they had before the first tag, for scripts that follow main.

Scripts that let an engine fail at some place name modules and classes, read what is there and set something else. A
:class:`Former` is a view and no copy: what is read or set under a former name is read or set under today's. Nothing of the
package uses these names.
"""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import Any

_HERE = "lora_mixer.engines"

MODULES = {"beside": "side.engine", "merged": "merged.engine", "stage": "controller"}
"""Former modules of this room, and those of today."""

IN_MERGED = ("Groups", "MergedEngine", "blend_weight")
"""What was in the module ``merged``, which is a wing today and hands these on."""

_NAMES = {
    "controller": {"Stage": "EngineController"},
    "EngineController": {"rename": "replace"},
    "MergedEngine": {"remove": "forget"},
}
"""By module or class of today: former names in it, and those of today."""


class Former:
    """
    A module or a class, which answers to former names.

    Args:
        today: What it is today.
        names: Former names in it, and those of today.
    """

    def __init__(self, today: Any, names: dict[str, str]) -> None:
        """Look at what there is today."""
        vars(self).update(_today=today, _names=names)

    def __getattr__(self, name: str) -> Any:
        now = self._names.get(name, name)
        value = getattr(self._today, now)
        return Former(value, _NAMES[now]) if now in _NAMES else value

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._today, self._names.get(name, name), value)


def former_module(name: str) -> Former:
    """Return a module of engines by its former name, with a warning that says today's."""
    now = MODULES[name]
    warnings.warn(f"{_HERE}.{name} is {_HERE}.{now} now", DeprecationWarning, stacklevel=3)
    return Former(import_module(f"{_HERE}.{now}"), _NAMES.get(now, {}))
