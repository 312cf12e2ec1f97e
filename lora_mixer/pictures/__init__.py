"""Making pictures: what is asked for, who makes it, grids and sheets of them; the UI, the batches and the CLI stand on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader  # type: ignore[import-untyped]

from lora_mixer.pictures.fields import MAX_SEED, PictureField, PictureFields
from lora_mixer.pictures.model_options import DEMO, MODEL_FIELDS, ModelOptions
from lora_mixer.pictures.request import PICTURE_FIELDS, Picture, PictureRequest

if TYPE_CHECKING:
    from lora_mixer.pictures.checkpoints import Checkpoint, find_models, read_checkpoint
    from lora_mixer.pictures.grid import GridAxis, grid_requests, grid_sheet, with_adapter
    from lora_mixer.pictures.loading import load_pipeline, own_defaults
    from lora_mixer.pictures.maker import PictureMaker, SmallerSettingWarning, StepProgress
    from lora_mixer.pictures.outline import load_outline
    from lora_mixer.pictures.proposals import Proposal, propose, propose_for
    from lora_mixer.pictures.queue import FairQueue
    from lora_mixer.pictures.samplers import SAMPLERS, SCHEDULES, Sampler, fitting_samplers, usual_name
    from lora_mixer.pictures.sheet import Band, contact_sheet

__all__ = [
    "DEMO",
    "MAX_SEED",
    "MODEL_FIELDS",
    "PICTURE_FIELDS",
    "SAMPLERS",
    "SCHEDULES",
    "Band",
    "Checkpoint",
    "FairQueue",
    "GridAxis",
    "ModelOptions",
    "Picture",
    "PictureField",
    "PictureFields",
    "PictureMaker",
    "PictureRequest",
    "Proposal",
    "Sampler",
    "SmallerSettingWarning",
    "StepProgress",
    "contact_sheet",
    "find_models",
    "fitting_samplers",
    "grid_requests",
    "grid_sheet",
    "load_outline",
    "load_pipeline",
    "own_defaults",
    "propose",
    "propose_for",
    "read_checkpoint",
    "usual_name",
    "with_adapter",
]

# Imported at the first look: what a picture's fields are can be asked without torch, as commands do for their help.
__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "checkpoints": ["Checkpoint", "find_models", "read_checkpoint"],
        "grid": ["GridAxis", "grid_requests", "grid_sheet", "with_adapter"],
        "loading": ["load_pipeline", "own_defaults"],
        "maker": ["PictureMaker", "SmallerSettingWarning", "StepProgress"],
        "outline": ["load_outline"],
        "proposals": ["Proposal", "propose", "propose_for"],
        "queue": ["FairQueue"],
        "samplers": ["SAMPLERS", "SCHEDULES", "Sampler", "fitting_samplers", "usual_name"],
        "sheet": ["Band", "contact_sheet"],
    },
)
