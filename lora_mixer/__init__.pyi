# The public names, once: type checkers and editors read them here, and so does the lazy loader of __init__.py.
from . import batches, fresh, library, merging, mixes, picture_metadata, pictures, writing
from .adapter import AdapterInfo
from .bases import from_adapter
from .batches import BatchResult, Plan, check_plan, run_plan
from .binding import ComponentMatch, MatchReport
from .demo import DemoAdapter, demo_adapters, load_demo
from .errors import (
    AdapterConfigError,
    AdapterNameError,
    AmbiguousSourceError,
    CorruptFileError,
    FormatError,
    InvalidAdapterError,
    LoraMixerError,
    MatchError,
    MissingExtraError,
    MixError,
    MixLostError,
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
from .fresh import AdapterConfig, EvaConfig
from .fresh.kinds.adalora import AdaLoraConfig
from .fresh.kinds.full import FullConfig
from .fresh.kinds.ia3 import IA3Config
from .fresh.kinds.loha import LoHaConfig
from .fresh.kinds.lokr import LoKrConfig
from .fresh.kinds.lora import LoraConfig
from .fresh.kinds.oft import OFTConfig
from .fresh.kinds.tokens import TrainableTokensConfig
from .fresh.making import UnmatchedTargetsWarning
from .inspection import match_adapter, read_adapter
from .library import Library, SavedMixes, base_family, layer_norms
from .memory import MemoryReport
from .mixer import LoraMixer, PartialMatchWarning, TokenInfo, UnusedWeightWarning
from .mixes import AdapterMix, Mix
from .picture_metadata import (
    AdapterMatches,
    PictureAdapter,
    PictureSettings,
    infotext,
    match_adapters,
    read_picture,
    save_picture,
)
from .pictures import (
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
from .problem import Problem, Remedy, SaveProblem, SaveReason, Surface
from .speed import Measurement, SpeedReport, measure_speed
from .writing import SaveReport

__version__: str

__all__ = [
    "AdaLoraConfig",
    "AdapterConfig",
    "AdapterConfigError",
    "AdapterInfo",
    "AdapterMatches",
    "AdapterMix",
    "AdapterNameError",
    "AmbiguousSourceError",
    "BatchResult",
    "ComponentMatch",
    "CorruptFileError",
    "DemoAdapter",
    "EvaConfig",
    "FairQueue",
    "FormatError",
    "FullConfig",
    "GridAxis",
    "IA3Config",
    "InvalidAdapterError",
    "Library",
    "LoHaConfig",
    "LoKrConfig",
    "LoraConfig",
    "LoraMixer",
    "LoraMixerError",
    "MatchError",
    "MatchReport",
    "Measurement",
    "MemoryReport",
    "MissingExtraError",
    "Mix",
    "MixError",
    "MixLostError",
    "NotAnAdapterError",
    "OFTConfig",
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
    "Problem",
    "Remedy",
    "SaveError",
    "SaveProblem",
    "SaveReason",
    "SaveReport",
    "SavedMixes",
    "SourceError",
    "SourceNotFoundError",
    "SpeedReport",
    "StepProgress",
    "Surface",
    "TokenInfo",
    "TrainableTokensConfig",
    "UnmatchedTargetsWarning",
    "UnsupportedAdapterError",
    "UnusedWeightWarning",
    "WorkersError",
    "base_family",
    "batches",
    "check_plan",
    "demo_adapters",
    "fresh",
    "from_adapter",
    "grid_requests",
    "grid_sheet",
    "infotext",
    "layer_norms",
    "library",
    "load_demo",
    "load_pipeline",
    "match_adapter",
    "match_adapters",
    "measure_speed",
    "merging",
    "mixes",
    "picture_metadata",
    "pictures",
    "read_adapter",
    "read_picture",
    "run_plan",
    "save_picture",
    "writing",
]
