"""Load, mix and remove LoRA adapters on diffusers pipelines; the base always comes back bit for bit."""

from __future__ import annotations

import warnings

import lazy_loader

__version__ = "0.1.0"

# The names stand in __init__.pyi. Each is imported at the first look, so that `lora-mixer --help` does not wait for torch.
_look_up, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

_FORMER = {
    "Axis": "GridAxis",
    "MixBook": "SavedMixes",
    "Recall": "AdapterMatches",
    "RecalledAdapter": "PictureAdapter",
    "StepReport": "StepProgress",
    "picture_text": "infotext",
    "strengths": "layer_norms",
}
"""Names from before the first tag: scripts of people who follow main use them, so they answer until then, with a warning."""


def __getattr__(name: str) -> object:
    if name in _FORMER:
        warnings.warn(f"lora_mixer.{name} is {_FORMER[name]} now", DeprecationWarning, stacklevel=2)
    value: object = _look_up(_FORMER.get(name, name))
    return value
