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
    from lora_mixer.library import Library, MixBook, base_family, strengths
    from lora_mixer.memory import MemoryReport
    from lora_mixer.mixer import LoraMixer, PartialMatchWarning
    from lora_mixer.mixes import AdapterMix, Mix
    from lora_mixer.pictures import (
        Axis,
        FairQueue,
        Picture,
        PictureMaker,
        PictureRequest,
        StepReport,
        grid_requests,
        grid_sheet,
        load_pipeline,
    )
    from lora_mixer.recall import (
        PictureSettings,
        Recall,
        RecalledAdapter,
        match_adapters,
        picture_text,
        read_picture,
        save_picture,
    )
    from lora_mixer.textual_inversion import TokenInfo
    from lora_mixer.writing import SaveReport

__version__ = "0.1.0"

__all__ = [
    "AdapterInfo",
    "AdapterMix",
    "AdapterNameError",
    "AmbiguousSourceError",
    "Axis",
    "BatchResult",
    "ComponentMatch",
    "CorruptFileError",
    "DemoAdapter",
    "FairQueue",
    "FormatError",
    "InvalidAdapterError",
    "Library",
    "LoraMixer",
    "LoraMixerError",
    "MatchError",
    "MatchReport",
    "MemoryReport",
    "MissingExtraError",
    "Mix",
    "MixBook",
    "MixError",
    "NotAnAdapterError",
    "PartialMatchWarning",
    "Picture",
    "PictureCancelled",
    "PictureError",
    "PictureMaker",
    "PictureMetadataError",
    "PictureRequest",
    "PictureSettings",
    "PipelineStateError",
    "Plan",
    "PlanError",
    "Recall",
    "RecalledAdapter",
    "SaveError",
    "SaveReport",
    "SourceError",
    "SourceNotFoundError",
    "StepReport",
    "TokenInfo",
    "UnsupportedAdapterError",
    "WorkersError",
    "base_family",
    "check_plan",
    "demo_adapters",
    "grid_requests",
    "grid_sheet",
    "load_demo",
    "load_pipeline",
    "match_adapter",
    "match_adapters",
    "picture_text",
    "read_adapter",
    "read_picture",
    "run_plan",
    "save_picture",
    "strengths",
]

# Public names that are not errors, by the module that has them. They are imported at the first look, so that
# `lora-mixer --help` does not wait for torch; to type checkers and editors they are the plain imports above.
_MODULES = {
    "AdapterInfo": "adapter",
    "AdapterMix": "mixes",
    "Axis": "pictures",
    "BatchResult": "batches",
    "ComponentMatch": "binding",
    "DemoAdapter": "demo",
    "FairQueue": "pictures",
    "Library": "library",
    "LoraMixer": "mixer",
    "MatchReport": "binding",
    "MemoryReport": "memory",
    "Mix": "mixes",
    "MixBook": "library",
    "PartialMatchWarning": "mixer",
    "Picture": "pictures",
    "PictureMaker": "pictures",
    "PictureRequest": "pictures",
    "PictureSettings": "recall",
    "Plan": "batches",
    "Recall": "recall",
    "RecalledAdapter": "recall",
    "SaveReport": "writing",
    "StepReport": "pictures",
    "TokenInfo": "textual_inversion",
    "base_family": "library",
    "check_plan": "batches",
    "demo_adapters": "demo",
    "grid_requests": "pictures",
    "grid_sheet": "pictures",
    "load_demo": "demo",
    "load_pipeline": "pictures",
    "match_adapter": "inspection",
    "match_adapters": "recall",
    "picture_text": "recall",
    "read_adapter": "inspection",
    "read_picture": "recall",
    "run_plan": "batches",
    "save_picture": "recall",
    "strengths": "library",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(f"{__name__}.{_MODULES.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
