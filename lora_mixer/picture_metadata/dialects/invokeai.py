"""
InvokeAI's JSON: ``invokeai_metadata``.

Its model hashes are BLAKE3 by default, which no other program computes, so its adapters are matched by name.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from lora_mixer.parsing.json_text import read_json
from lora_mixer.parsing.values import (
    as_float,
    as_int,
    as_list,
    as_side,
    as_table,
    as_text,
    clean_text,
)
from lora_mixer.picture_metadata.dialects.dialect import Dialect
from lora_mixer.picture_metadata.settings import PictureAdapter, PictureSettings

if TYPE_CHECKING:
    from collections.abc import Mapping

NAME = "invokeai"
_CHUNK = "invokeai_metadata"
_LORAS_AT_MOST = 500
_SAID = (
    *("positive_prompt", "negative_prompt", "seed", "steps", "cfg_scale", "scheduler", "width", "height"),
    *("model", "loras", "app_version", "clip_skip"),
)
# compel's marks: (word)1.2, word++, ("a", "b").blend(1, 2); without any, a prompt is plain text in both grammars
_COMPEL = re.compile(r"\)[+\-\d.]|[^\s+\-][+\-]{1,9}(?=[\s,.)]|$)|\)\.(?:blend|and|swap)\(")


def read(texts: Mapping[str, str], notes: list[str]) -> PictureSettings | None:
    """Read InvokeAI's chunk, or None where there is none that can be read."""
    if _CHUNK not in texts:
        return None
    try:
        table = as_table(read_json(texts[_CHUNK]))
    except ValueError as error:
        notes.append(f"InvokeAI's metadata cannot be read: {error}")
        return None
    model = as_table(table.get("model"))
    texts_of_prompt = [clean_text(table.get(key) or "") for key in ("positive_prompt", "negative_prompt")]
    return PictureSettings(
        prompt=texts_of_prompt[0],
        negative_prompt=texts_of_prompt[1],
        seed=as_int(table.get("seed")),
        steps=as_int(table.get("steps"), 0, 1 << 20),
        guidance_scale=as_float(table.get("cfg_scale")),
        width=as_side(table.get("width")),
        height=as_side(table.get("height")),
        sampler=as_text(table.get("scheduler")),
        clip_skip=as_int(table.get("clip_skip"), 0, 100),
        emphasis="compel" if any(_COMPEL.search(text) for text in texts_of_prompt) else None,
        model=_name(model),
        model_hash=as_text(model.get("hash")),
        adapters=tuple(_adapters(as_list(table.get("loras")))),
        dialect=NAME,
        version=as_text(table.get("app_version")),
        extra={key: text for key, value in table.items() if key not in _SAID and (text := as_text(value))},
    )


def _adapters(entries: list[Any]) -> list[PictureAdapter]:
    adapters = []
    for entry in map(as_table, entries[:_LORAS_AT_MOST]):
        model = as_table(entry.get("model") or entry.get("lora"))
        weight = as_float(entry.get("weight"))
        if name := _name(model):
            written = as_text(model.get("hash"))
            kind, _, digits = (written or "").rpartition(":")
            hashes = {kind or "blake3": digits} if digits else {}
            adapters.append(PictureAdapter(name, 1.0 if weight is None else weight, None, hashes))
    return adapters


def _name(model: Mapping[str, Any]) -> str | None:
    return as_text(model.get("name")) or as_text(model.get("model_name"))


DIALECT = Dialect(NAME, "InvokeAI", read)
