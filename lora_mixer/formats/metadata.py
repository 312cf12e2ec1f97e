"""What a header says about an adapter beyond its tensors: trigger words and training facts."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

_TRIGGER_KEYS = (
    "modelspec.trigger_phrase",
    "trigger_words",
    "trigger_word",
    "activation text",
    "instance_prompt",
)
_LIMIT = 100  # a stranger's list of words is cut here


def trigger_words(metadata: Mapping[str, str], config: Mapping[str, Any] | None = None) -> tuple[str, ...]:
    """
    Find the words that call an adapter up.

    Args:
        metadata: The header's metadata.
        config: An ``adapter_config.json``, where some trainers leave an ``instance_prompt``.

    Returns:
        The words in order, without repeats; empty where the file names none.

    Example:
        >>> trigger_words({"modelspec.trigger_phrase": "wtrclr style, soft"})
        ('wtrclr style', 'soft')
    """
    words: dict[str, None] = {}
    for key in _TRIGGER_KEYS:
        raw: Any = metadata.get(key) or (config or {}).get(key)
        if not raw:
            continue
        if isinstance(raw, str) and raw.lstrip().startswith("["):
            try:
                raw = json.loads(raw)
            except (ValueError, RecursionError):
                raw = str(raw)
        parts = raw if isinstance(raw, list) else str(raw).split(",")
        for part in parts:
            if str(part).strip():
                words.setdefault(str(part).strip())
        break
    return tuple(words)[:_LIMIT]
