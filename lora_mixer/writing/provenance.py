"""Where a written adapter is from: what was mixed, at which weights, by which version of what."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from lora_mixer import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_mixer.adapter import AdapterInfo

# Keys of a source's header that say something about its own bytes or names, which a new file has others of.
_STALE = ("format", "lora_adapter_metadata", "modelspec.hash_sha256")
_STALE_PREFIXES = ("sshs_", "lora_mixer.")


def of_one(info: AdapterInfo) -> dict[str, str]:
    """
    Return the texts for an adapter written as it was loaded: its own header, but for what holds no more.

    Args:
        info: The adapter.

    Returns:
        Texts for the header.
    """
    kept = {
        key: text
        for key, text in info.metadata.items()
        if key not in _STALE and not key.startswith(_STALE_PREFIXES)
    }
    return kept | {"lora_mixer.version": __version__, "lora_mixer.source": info.source}


def of_mix(infos: Sequence[AdapterInfo], mix: str, method: str, rank: str | None) -> dict[str, str]:
    """
    Return the texts for several adapters made one.

    Args:
        infos: The adapters.
        mix: The mix as text.
        method: The method as text.
        rank: What the ranks were cut to, or None.

    Returns:
        Texts for the header; ``lora_mixer.adapters`` is JSON with source, base, algorithms and trigger words of each.
    """
    adapters = {
        info.name: {
            "source": info.source,
            "base": info.base,
            "algorithms": list(info.algorithms),
            "trigger_words": list(info.trigger_words),
        }
        for info in infos
    }
    words = dict.fromkeys(word for info in infos for word in info.trigger_words)
    table = {
        "lora_mixer.version": __version__,
        "lora_mixer.mix": mix,
        "lora_mixer.method": method,
        "lora_mixer.adapters": json.dumps(adapters, sort_keys=True),
        "modelspec.merged_from": ", ".join(info.source for info in infos),
    }
    if words:
        table["modelspec.trigger_phrase"] = ", ".join(words)
    return table | ({"lora_mixer.rank": rank} if rank else {})


def common_family(infos: Sequence[AdapterInfo]) -> str:
    """
    Return the base family that all adapters are of, or ``unknown``.

    Example:
        >>> common_family([])
        'unknown'
    """
    families: Mapping[str, None] = dict.fromkeys(info.base for info in infos)
    return next(iter(families)) if len(families) == 1 else "unknown"
