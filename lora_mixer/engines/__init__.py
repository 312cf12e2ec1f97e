"""Engines put a mix into effect; each leaves no trace when it goes."""

from __future__ import annotations

from typing import Any

from lora_mixer.engines.active import BASE, ActiveMixes
from lora_mixer.engines.controller import EngineController
from lora_mixer.engines.former import MODULES, former_module
from lora_mixer.engines.merged.kept_weight import KeepBase

__all__ = ["BASE", "ActiveMixes", "EngineController", "KeepBase"]


def __getattr__(name: str) -> Any:
    """Return a module by the name that it had before the first tag."""
    if name in MODULES:
        return former_module(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
