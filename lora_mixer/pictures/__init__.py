"""Making pictures: what is asked for, who makes it, grids and sheets of them; the UI, the batches and the CLI stand on it."""

from __future__ import annotations

from lora_mixer.pictures.grid import GridAxis, grid_requests, grid_sheet, with_adapter
from lora_mixer.pictures.loading import DEMO, load_outline, load_pipeline, own_defaults
from lora_mixer.pictures.maker import PictureMaker, StepProgress
from lora_mixer.pictures.queue import FairQueue
from lora_mixer.pictures.request import MAX_SEED, Picture, PictureRequest
from lora_mixer.pictures.sheet import Band, contact_sheet

__all__ = [
    "DEMO",
    "MAX_SEED",
    "Band",
    "FairQueue",
    "GridAxis",
    "Picture",
    "PictureMaker",
    "PictureRequest",
    "StepProgress",
    "contact_sheet",
    "grid_requests",
    "grid_sheet",
    "load_outline",
    "load_pipeline",
    "own_defaults",
    "with_adapter",
]
