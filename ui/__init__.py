"""
The web page; installed as ``lora_mixer.ui``. Its modules import each other relatively: in the tree they stand beside the package.

It calls the public API only. ``studio`` is what all sessions share, ``board`` is one session's mix as the browser has it,
``desk_*`` are the handlers by area, ``page_*`` the layout, ``static/`` what runs in the browser.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .app import build, launch
    from .studio import Settings, Studio

__all__ = ["Settings", "Studio", "build", "launch"]

_MODULES = {"Settings": "studio", "Studio": "studio", "build": "app", "launch": "app"}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value
