"""ComfyUI-Lora-Manager's recipes: ``Recipe metadata: {...}`` behind an infotext, with full hashes and all weights."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lora_mixer.parsing.values import (
    as_float,
    as_hash,
    as_int,
    as_list,
    as_table,
    as_text,
    clean_text,
    file_stem,
    sides,
)
from lora_mixer.picture_metadata import parameters_text
from lora_mixer.picture_metadata.carriers import PARAMETERS
from lora_mixer.picture_metadata.dialects.a1111 import hashed, settings_of
from lora_mixer.picture_metadata.dialects.dialect import Dialect
from lora_mixer.picture_metadata.settings import PictureAdapter, PictureSettings

if TYPE_CHECKING:
    from collections.abc import Mapping

NAME = "lora_manager"
_BLOCK = "Recipe metadata"
_LORAS_AT_MOST = 500


def read(texts: Mapping[str, str], notes: list[str]) -> PictureSettings | None:
    """Read a recipe, or None where there is none."""
    infotext = parameters_text.parse(texts.get(PARAMETERS, ""))
    recipe = as_table(infotext.blocks.get(_BLOCK)) if infotext is not None else {}
    if infotext is None or not isinstance(recipe.get("loras"), list):
        return None
    plain = settings_of(infotext, notes, NAME)
    of_tags = {adapter.name: adapter for adapter in plain.adapters}
    adapters = [
        _adapter(entry, of_tags) for entry in map(as_table, as_list(recipe["loras"])[:_LORAS_AT_MOST])
    ]
    checkpoint: Any = recipe.get("checkpoint")
    model = file_stem(as_table(checkpoint).get("file_name") or as_table(checkpoint).get("modelName"))
    settings = replace(
        plain,
        adapters=tuple(adapter for adapter in adapters if adapter is not None),
        model=plain.model or model or file_stem(checkpoint),
        extra={
            **plain.extra,
            **{key: text for key in ("title", "base_model") if (text := as_text(recipe.get(key)))},
        },
    )
    return _filled(settings, as_table(recipe.get("gen_params")))


def _adapter(entry: dict[str, Any], of_tags: Mapping[str, PictureAdapter]) -> PictureAdapter | None:
    name = file_stem(entry.get("file_name")) or as_text(entry.get("modelName"))
    if name is None:
        return None
    weight = as_float(entry.get("strength"))
    weight = 1.0 if weight is None else weight
    tag = of_tags.get(name)
    # The recipe has one weight; the tag beside it may have said more with the same one.
    adapter = tag if tag is not None and tag.weight == weight else PictureAdapter(name, weight)
    return hashed(adapter, as_hash(entry.get("hash")))


def _filled(settings: PictureSettings, params: dict[str, Any]) -> PictureSettings:
    """Take from the recipe what the text before it does not say."""
    width, height = sides(params.get("size"))
    more: dict[str, Any] = {
        "prompt": clean_text(params.get("prompt") or ""),
        "negative_prompt": clean_text(params.get("negative_prompt") or ""),
        "seed": as_int(params.get("seed")),
        "steps": as_int(params.get("steps"), 0, 1 << 20),
        "guidance_scale": as_float(params.get("cfg_scale")),
        "sampler": as_text(params.get("sampler")),
        "width": width,
        "height": height,
    }
    return replace(
        settings, **{key: value for key, value in more.items() if getattr(settings, key) in (None, "")}
    )


DIALECT = Dialect(NAME, "LoRA Manager", read)
