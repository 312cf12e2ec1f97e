"""One mixer per pipeline: two kept bases of the same weights would contradict each other."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

from lora_mixer.errors import PipelineStateError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn

    from lora_mixer.mixer import LoraMixer

_owners: weakref.WeakKeyDictionary[nn.Module, weakref.ref[LoraMixer]] = weakref.WeakKeyDictionary()


def claim(mixer: LoraMixer, roots: Iterable[nn.Module]) -> None:
    """
    Note that a mixer works on these modules from now on.

    Raises:
        PipelineStateError: When another living mixer has adapters or words loaded on one of them.
    """
    held = list(roots)
    for root in held:
        reference = _owners.get(root)
        other = reference() if reference is not None else None
        if other is not None and other is not mixer and (other.adapters or other.tokens):
            msg = (
                f"another LoraMixer has adapters loaded on this {type(root).__name__}; use that one, or call its "
                "unload_lora_weights() first"
            )
            raise PipelineStateError(msg)
    for root in held:
        _owners[root] = weakref.ref(mixer)
