"""Load, mix and remove LoRA adapters on diffusers pipelines; the base always comes back bit for bit."""

from __future__ import annotations

from lora_mixer.adapter import AdapterInfo
from lora_mixer.binding import ComponentMatch, MatchReport
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
    SourceError,
    SourceNotFoundError,
    UnsupportedAdapterError,
)
from lora_mixer.inspection import read_adapter
from lora_mixer.memory import MemoryReport
from lora_mixer.mixer import LoraMixer, PartialMatchWarning
from lora_mixer.mixes import AdapterMix, Mix

__version__ = "0.1.0"

__all__ = [
    "AdapterInfo",
    "AdapterMix",
    "AdapterNameError",
    "AmbiguousSourceError",
    "ComponentMatch",
    "CorruptFileError",
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
    "SourceError",
    "SourceNotFoundError",
    "UnsupportedAdapterError",
    "read_adapter",
]
