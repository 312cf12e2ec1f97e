"""
The web page; installed as ``lora_mixer.ui``. Its modules import each other relatively: in the tree they stand beside the package.

It calls the public API only. ``app_state`` is what all sessions share, ``mix_rows`` one session's mix as the browser has it, ``jobs`` the pictures that
are being made, ``handlers/`` what is done by area, ``pages/`` the layout, ``static/`` what runs in the browser.
"""

from __future__ import annotations

import importlib
import warnings
from typing import TYPE_CHECKING

from lora_mixer.extras import explained

if TYPE_CHECKING:
    from .app import build, launch
    from .app_state import AppState, ServerOptions

__all__ = ["AppState", "ServerOptions", "build", "launch"]

_MODULES = {"ServerOptions": "app_state", "AppState": "app_state", "build": "app", "launch": "app"}
_FORMER = {"Settings": "ServerOptions", "Studio": "AppState"}
"""Names from before the first tag: scripts of people who follow main use them, so they answer until then, with a warning."""


def __getattr__(name: str) -> object:
    if name in _FORMER:
        warnings.warn(f"{__name__}.{name} is {_FORMER[name]} now", DeprecationWarning, stacklevel=2)
        name = _FORMER[name]
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value: object = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    except ModuleNotFoundError as error:
        raise explained(error, "ui") from error
    globals()[name] = value
    return value
