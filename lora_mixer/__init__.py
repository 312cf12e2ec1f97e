"""Load, mix and remove LoRA adapters on diffusers pipelines; the base always comes back bit for bit."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lora_mixer.adapter import AdapterInfo
    from lora_mixer.binding import ComponentMatch, MatchReport
    from lora_mixer.demo import DemoAdapter, demo_adapters, load_demo
    from lora_mixer.errors import (
        AdapterNameError,
        AmbiguousSourceError,
        CorruptFileError,
        FormatError,
        InvalidAdapterError,
        LoraMixerError,
        MatchError,
        MissingExtraError,
        MixError,
        NotAnAdapterError,
        PipelineStateError,
        SaveError,
        SourceError,
        SourceNotFoundError,
        UnsupportedAdapterError,
    )
    from lora_mixer.inspection import read_adapter
    from lora_mixer.memory import MemoryReport
    from lora_mixer.mixer import LoraMixer, PartialMatchWarning
    from lora_mixer.mixes import AdapterMix, Mix
    from lora_mixer.textual_inversion import TokenInfo
    from lora_mixer.writing import SaveReport

__version__ = "0.1.0"

__all__ = [
    "AdapterInfo",
    "AdapterMix",
    "AdapterNameError",
    "AmbiguousSourceError",
    "ComponentMatch",
    "CorruptFileError",
    "DemoAdapter",
    "FormatError",
    "InvalidAdapterError",
    "LoraMixer",
    "LoraMixerError",
    "MatchError",
    "MatchReport",
    "MemoryReport",
    "MissingExtraError",
    "Mix",
    "MixError",
    "NotAnAdapterError",
    "PartialMatchWarning",
    "PipelineStateError",
    "SaveError",
    "SaveReport",
    "SourceError",
    "SourceNotFoundError",
    "TokenInfo",
    "UnsupportedAdapterError",
    "demo_adapters",
    "load_demo",
    "read_adapter",
]

# Public names that are not errors, by the module that has them. They are imported at the first look, so that
# `lora-mixer --help` does not wait for torch; to type checkers and editors they are the plain imports above.
_MODULES = {
    "AdapterInfo": "adapter",
    "AdapterMix": "mixes",
    "ComponentMatch": "binding",
    "DemoAdapter": "demo",
    "LoraMixer": "mixer",
    "MatchReport": "binding",
    "MemoryReport": "memory",
    "Mix": "mixes",
    "PartialMatchWarning": "mixer",
    "SaveReport": "writing",
    "TokenInfo": "textual_inversion",
    "demo_adapters": "demo",
    "load_demo": "demo",
    "read_adapter": "inspection",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(f"{__name__}.{_MODULES.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
