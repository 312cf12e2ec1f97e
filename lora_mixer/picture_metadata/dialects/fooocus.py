"""
Fooocus: its own JSON, or infotext with the weights in ``Lora weights``; a chunk beside them says which.

    loras: [[name, weight, hash], ...]; lora_combined_1: "name : weight"
    Lora hashes: "name: hash", Lora weights: "name: weight"; in older files Lora hashes: "name: hash: weight"
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lora_mixer.parsing.json_text import read_json
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
from lora_mixer.picture_metadata.tags import take_tags

if TYPE_CHECKING:
    from collections.abc import Mapping

NAME = "fooocus"
_SCHEME = "fooocus_scheme"
_LORAS_AT_MOST = 100
_SAID = (
    *("prompt", "negative_prompt", "seed", "steps", "guidance_scale", "resolution", "sampler", "base_model"),
    *("base_model_hash", "version", "loras", "full_prompt", "full_negative_prompt"),
)


def read(texts: Mapping[str, str], notes: list[str]) -> PictureSettings | None:
    """Read either scheme, or None where the picture is not Fooocus'."""
    parameters = texts.get(PARAMETERS, "")
    if not parameters or not (_SCHEME in texts or texts.get("Software", "").startswith("Fooocus")):
        return None
    if parameters.lstrip().startswith("{"):
        try:
            table = as_table(read_json(parameters))
        except ValueError as error:
            notes.append(f"Fooocus' parameters cannot be read: {error}")
            return None
        return _of_json(table, notes)
    infotext = parameters_text.parse(parameters)
    return None if infotext is None else _of_infotext(infotext, notes)


def _of_infotext(infotext: parameters_text.Infotext, notes: list[str]) -> PictureSettings:
    pairs = dict(infotext.pairs)
    weights = parameters_text.entries(pairs.get("Lora weights", ""))
    hashes = parameters_text.entries(pairs.get("Lora hashes", ""))
    listed: dict[str, PictureAdapter] = {}
    for name, text in weights:
        listed[name] = _weighed(file_stem(name), text)
    for name, text in hashes:
        alias, _, digits = name.rpartition(":")
        if as_hash(text) and name in listed:
            listed[name] = hashed(listed[name], as_hash(text))
        elif as_hash(text):
            listed[name] = hashed(PictureAdapter(file_stem(name) or name), as_hash(text))
            notes.append(f'the weight of "{name}" is not written; it was taken as 1')
        elif alias and as_hash(digits.strip()):  # the older order: name, hash, weight
            listed[alias] = hashed(_weighed(file_stem(alias), text), as_hash(digits.strip()))
    for key in ("Lora weights", "Lora hashes"):
        pairs.pop(key, None)
    plain = settings_of(
        parameters_text.Infotext(infotext.prompt, infotext.negative_prompt, pairs), notes, NAME
    )
    named = {adapter.name for adapter in listed.values()}
    adapters = (*listed.values(), *(each for each in plain.adapters if each.name not in named))
    return replace(plain, adapters=tuple(adapters))


def _of_json(table: dict[str, Any], notes: list[str]) -> PictureSettings:
    listed: dict[str, PictureAdapter] = {}
    for entry in as_list(table.get("loras"))[:_LORAS_AT_MOST]:
        name, weight, digits = (*as_list(entry)[:3], None, None, None)[:3]
        if stem := file_stem(name):
            listed[stem] = hashed(_weighed(stem, weight), as_hash(digits))
    for key, text in table.items():
        if key.startswith("lora_combined_") and isinstance(text, str):
            name, _, weight = text.rpartition(":")
            if (stem := file_stem(name)) and len(listed) < _LORAS_AT_MOST:
                listed.setdefault(stem, _weighed(stem, weight))
    prompt, of_tags = take_tags(clean_text(table.get("prompt") or ""), notes)
    for adapter in of_tags:
        listed.setdefault(adapter.name, adapter)
    width, height = sides(table.get("resolution"))
    return PictureSettings(
        prompt=prompt,
        negative_prompt=clean_text(table.get("negative_prompt") or ""),
        seed=as_int(table.get("seed")),
        steps=as_int(table.get("steps"), 0, 1 << 20),
        guidance_scale=as_float(table.get("guidance_scale")),
        width=width,
        height=height,
        sampler=as_text(table.get("sampler")),
        model=file_stem(table.get("base_model")),
        model_hash=as_text(table.get("base_model_hash")),
        adapters=tuple(listed.values()),
        dialect=NAME,
        version=as_text(table.get("version")),
        extra={
            key: text
            for key, value in table.items()
            if key not in _SAID and not key.startswith("lora_combined_") and (text := as_text(value))
        },
    )


def _weighed(name: str | None, weight: object) -> PictureAdapter:
    number = as_float(weight)
    return PictureAdapter(name or "?", 1.0 if number is None else number)


DIALECT = Dialect(NAME, "Fooocus", read)
