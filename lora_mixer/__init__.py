"""Load, mix and remove LoRA adapters on diffusers pipelines; the base always comes back bit for bit."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lora_mixer.adapter import AdapterInfo
    from lora_mixer.batches import BatchResult, Plan, check_plan, run_plan
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
        PictureCancelled,
        PictureError,
        PictureMetadataError,
        PipelineStateError,
        PlanError,
        SaveError,
        SourceError,
        SourceNotFoundError,
        UnsupportedAdapterError,
        WorkersError,
    )
    from lora_mixer.inspection import match_adapter, read_adapter
    from lora_mixer.library import Library, SavedMixes, base_family, layer_norms
    from lora_mixer.memory import MemoryReport
    from lora_mixer.mixer import LoraMixer, PartialMatchWarning, TokenInfo
    from lora_mixer.mixes import AdapterMix, Mix
    from lora_mixer.picture_metadata import (
        AdapterMatches,
        PictureAdapter,
        PictureSettings,
        infotext,
        match_adapters,
        read_picture,
        save_picture,
    )
    from lora_mixer.pictures import (
        FairQueue,
        GridAxis,
        Picture,
        PictureMaker,
        PictureRequest,
        StepProgress,
        grid_requests,
        grid_sheet,
        load_pipeline,
    )
    from lora_mixer.writing import SaveReport

__version__ = "0.1.0"

__all__ = [
    "AdapterInfo",
    "AdapterMatches",
    "AdapterMix",
    "AdapterNameError",
    "AmbiguousSourceError",
    "BatchResult",
    "ComponentMatch",
    "CorruptFileError",
    "DemoAdapter",
    "FairQueue",
    "FormatError",
    "GridAxis",
    "InvalidAdapterError",
    "Library",
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
    "Picture",
    "PictureAdapter",
    "PictureCancelled",
    "PictureError",
    "PictureMaker",
    "PictureMetadataError",
    "PictureRequest",
    "PictureSettings",
    "PipelineStateError",
    "Plan",
    "PlanError",
    "SaveError",
    "SaveReport",
    "SavedMixes",
    "SourceError",
    "SourceNotFoundError",
    "StepProgress",
    "TokenInfo",
    "UnsupportedAdapterError",
    "WorkersError",
    "base_family",
    "check_plan",
    "demo_adapters",
    "grid_requests",
    "grid_sheet",
    "infotext",
    "layer_norms",
    "load_demo",
    "load_pipeline",
    "match_adapter",
    "match_adapters",
    "read_adapter",
    "read_picture",
    "run_plan",
    "save_picture",
]

# Public names that are not errors, by the module that has them. They are imported at the first look, so that
# `lora-mixer --help` does not wait for torch; to type checkers and editors they are the plain imports above.
_MODULES = {
    "AdapterInfo": "adapter",
    "AdapterMix": "mixes",
    "GridAxis": "pictures",
    "BatchResult": "batches",
    "ComponentMatch": "binding",
    "DemoAdapter": "demo",
    "FairQueue": "pictures",
    "Library": "library",
    "LoraMixer": "mixer",
    "MatchReport": "binding",
    "MemoryReport": "memory",
    "Mix": "mixes",
    "SavedMixes": "library",
    "PartialMatchWarning": "mixer",
    "Picture": "pictures",
    "PictureMaker": "pictures",
    "PictureRequest": "pictures",
    "PictureSettings": "picture_metadata",
    "Plan": "batches",
    "AdapterMatches": "picture_metadata",
    "PictureAdapter": "picture_metadata",
    "SaveReport": "writing",
    "StepProgress": "pictures",
    "TokenInfo": "mixer",
    "base_family": "library",
    "check_plan": "batches",
    "demo_adapters": "demo",
    "grid_requests": "pictures",
    "grid_sheet": "pictures",
    "load_demo": "demo",
    "load_pipeline": "pictures",
    "match_adapter": "inspection",
    "match_adapters": "picture_metadata",
    "infotext": "picture_metadata",
    "read_adapter": "inspection",
    "read_picture": "picture_metadata",
    "run_plan": "batches",
    "save_picture": "picture_metadata",
    "layer_norms": "library",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(f"{__name__}.{_MODULES.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
