"""The merged engine: weights rewritten in place from kept bases."""

from __future__ import annotations

from typing import Any

from lora_mixer.engines.former import IN_MERGED, former_module


def __getattr__(name: str) -> Any:
    """Return what stood in the one module that this wing was before the first tag."""
    if name in IN_MERGED:
        return getattr(former_module("merged"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
