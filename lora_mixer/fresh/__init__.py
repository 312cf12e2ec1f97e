"""
Fresh adapters: what kind, on which modules, from which start.

A configuration has PEFT's field names and meanings and is a plain value; ``LoraMixer.add_adapter`` makes an adapter of it. PEFT's
own objects, dicts and ``adapter_config.json`` say the same. The configurations of all kinds are names of ``lora_mixer``, and of
this room by the rows of :data:`KINDS`.
"""

from __future__ import annotations

from typing import Any

from lora_mixer.fresh.config import AdapterConfig
from lora_mixer.fresh.kinds import KINDS
from lora_mixer.fresh.reading import read_config
from lora_mixer.fresh.starts.eva import EvaConfig

__all__ = ["KINDS", "AdapterConfig", "EvaConfig", "read_config"]
__all__ += [kind.config.__name__ for kind in KINDS.values()]


def __getattr__(name: str) -> Any:
    """Return a kind's configuration by its name."""
    for kind in KINDS.values():
        if kind.config.__name__ == name:
            return kind.config
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
