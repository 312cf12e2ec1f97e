"""
SwarmUI's JSON, which stands where others have infotext: ``sui_image_params``, ``sui_models``.

Numbers are often texts; lists are JSON lists or texts with commas; a comma may stand before a closing bracket.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_mixer.parsing.json_text import read_json, without_trailing_commas
from lora_mixer.parsing.values import (
    as_float,
    as_hash,
    as_int,
    as_list,
    as_side,
    as_table,
    as_text,
    clean_text,
    file_stem,
)
from lora_mixer.picture_metadata.carriers import PARAMETERS
from lora_mixer.picture_metadata.dialects.a1111 import hashed
from lora_mixer.picture_metadata.dialects.dialect import Dialect
from lora_mixer.picture_metadata.settings import PictureAdapter, PictureSettings
from lora_mixer.picture_metadata.tags import take_tags

if TYPE_CHECKING:
    from collections.abc import Mapping

NAME = "swarmui"
_PARAMS, _MODELS = "sui_image_params", "sui_models"
_LISTED_AT_MOST = 500
_SAID = (
    *("prompt", "negativeprompt", "seed", "steps", "cfgscale", "sampler", "width", "height", "model"),
    *("loras", "loraweights", "loratencweights", "swarm_version"),
)


def read(texts: Mapping[str, str], notes: list[str]) -> PictureSettings | None:
    """Read SwarmUI's JSON, or None where there is none that can be read."""
    text = texts.get(PARAMETERS, "").strip()
    if not text.startswith("{") or _PARAMS not in text:
        return None
    try:
        root = as_table(_parsed(text))
    except ValueError as error:
        notes.append(f"SwarmUI's parameters cannot be read: {error}")
        return None
    params = as_table(root.get(_PARAMS))
    hashes = {
        file_stem(entry.get("name")): as_hash(entry.get("hash"))
        for entry in map(as_table, as_list(root.get(_MODELS))[:_LISTED_AT_MOST])
    }
    prompt, of_tags = take_tags(clean_text(params.get("prompt") or ""), notes, denoiser_first=True)
    adapters = {each.name: each for each in _adapters(params, notes)}
    for adapter in of_tags:
        adapters.setdefault(file_stem(adapter.name) or adapter.name, adapter)
    model = file_stem(params.get("model"))
    return PictureSettings(
        prompt=prompt,
        negative_prompt=clean_text(params.get("negativeprompt") or ""),
        seed=as_int(params.get("seed"), -1),
        steps=as_int(params.get("steps"), 0, 1 << 20),
        guidance_scale=as_float(params.get("cfgscale")),
        width=as_side(as_int(params.get("width"))),
        height=as_side(as_int(params.get("height"))),
        sampler=as_text(params.get("sampler")),
        model=model,
        model_hash=hashes.get(model),
        adapters=tuple(hashed(adapter, hashes.get(name)) for name, adapter in adapters.items()),
        dialect=NAME,
        version=as_text(params.get("swarm_version")),
        extra={key: said for key, value in params.items() if key not in _SAID and (said := as_text(value))},
    )


def _parsed(text: str) -> Any:
    try:
        return read_json(text)
    except ValueError:
        return read_json(without_trailing_commas(text))


def _adapters(params: dict[str, Any], notes: list[str]) -> list[PictureAdapter]:
    names = _listed(params.get("loras"))
    weights = [as_float(each) for each in _listed(params.get("loraweights"))]
    texts = [as_float(each) for each in _listed(params.get("loratencweights"))]
    if weights and len(weights) != len(names):
        notes.append(
            f"{len(names)} adapters and {len(weights)} weights are listed; the weights were taken as 1"
        )
    adapters = []
    for number, entry in enumerate(names):
        if name := file_stem(entry):
            given = weights[number] if len(weights) == len(names) else None
            text = texts[number] if len(texts) == len(names) else None
            weight = 1.0 if given is None else given
            adapters.append(PictureAdapter(name, weight, None if text == weight else text))
    return adapters


def _listed(value: object) -> list[Any]:
    if isinstance(value, str):
        return [part.strip() for part in value.split(",")[:_LISTED_AT_MOST] if part.strip()]
    return as_list(value)[:_LISTED_AT_MOST] if isinstance(value, list) else [value] if as_text(value) else []


DIALECT = Dialect(NAME, "SwarmUI", read)
