"""
The layouts of cloneofsimo/lora, which count modules instead of naming them (docs/formats.md).

``unet:12:up`` is the 13th Linear inside the target classes, in the order in which the model of that time listed them;
the older ``.pt`` is a bare list [up, down, up, down, ...] in that order. The counting itself needs the live model
and is done by :mod:`lora_mixer.families.counted_names`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from lora_mixer.components import COUNTED
from lora_mixer.errors import InvalidAdapterError
from lora_mixer.parsing.json_text import json_or_none

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

KEY = re.compile(r"(unet|text_encoder):(\d+):(up|down)")
PREFIX = COUNTED
"""Module spellings of this layout are ``ordinal:<classes>:<number>``."""

_HINT = {"unet": "denoiser", "text_encoder": "text_encoder"}


def module_name(classes: Sequence[str] | None, number: int) -> str:
    """Spell the ``number``-th Linear of the classes; without classes, those that fit the count are found later."""
    return f"{PREFIX}{','.join(sorted(classes)) if classes else '?'}:{number}"


def split_key(key: str, metadata: Mapping[str, str]) -> tuple[str, str, str] | None:
    """
    Read one key of a safeloras file.

    Returns:
        (component hint, module spelling, role), or None for a key of another kind.
    """
    match = KEY.fullmatch(key)
    if not match:
        return None
    component, number, role = match.groups()
    classes = json_or_none(metadata.get(component, "null"))
    named = [str(c) for c in classes] if isinstance(classes, list) else None
    return _HINT[component], module_name(named, int(number)), role


def from_list(tensors: Sequence[torch.Tensor], label: str) -> dict[str, torch.Tensor]:
    """
    Turn the bare list of a ``.pt`` file into keys of the safeloras kind, component not named.

    Raises:
        InvalidAdapterError: When the list is not an alternation of matrices that multiply.
    """
    pairs = list(zip(tensors[::2], tensors[1::2], strict=False))
    fits = all(up.ndim == 2 and down.ndim == 2 and up.shape[1] == down.shape[0] for up, down in pairs)
    if len(tensors) % 2 or not fits:
        raise InvalidAdapterError(
            f"a list of {len(tensors)} tensors that is no [up, down, up, down, ...] of matrices", file=label
        )
    table = {}
    for number, (up, down) in enumerate(pairs):
        name = module_name(None, number)
        table[f"{name}.lora_up.weight"] = up
        table[f"{name}.lora_down.weight"] = down
    return table
