"""
AUTOMATIC1111's and Forge's infotext, and what Civitai's generator adds to it.

Weights stand in the prompt's tags; ``Lora hashes`` has the first 12 digits of each adapter's hash by its alias, and
Civitai's ``Hashes`` and ``Civitai resources`` more of the kind.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lora_mixer.parsing.values import as_float, as_hash, as_list, as_table, as_text, sides
from lora_mixer.picture_metadata import parameters_text
from lora_mixer.picture_metadata.carriers import PARAMETERS
from lora_mixer.picture_metadata.dialects.dialect import Dialect
from lora_mixer.picture_metadata.settings import HASH_KINDS, PictureAdapter, PictureSettings
from lora_mixer.picture_metadata.tags import alias_of, take_tags
from lora_mixer.pictures.request import PICTURE_FIELDS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_mixer.picture_metadata.parameters_text import Infotext

NAME = "a1111"
_KNOWN = ("Model", "Model hash", "Size", "Version", "Lora hashes")


def read(texts: Mapping[str, str], notes: list[str]) -> PictureSettings | None:
    """Read an infotext, or None where there is none."""
    infotext = parameters_text.parse(texts.get(PARAMETERS, ""))
    return None if infotext is None else settings_of(infotext, notes)


def settings_of(
    infotext: Infotext, notes: list[str], dialect: str = NAME, more: Mapping[str, str] | None = None
) -> PictureSettings:
    """
    Read the parts that all infotexts share.

    Args:
        infotext: The text, taken apart.
        notes: Where remarks go.
        dialect: The dialect's name.
        more: Hashes by alias, besides those in the text.
    """
    pairs = infotext.pairs
    prompt, adapters = take_tags(infotext.prompt, notes)
    width, height = sides(pairs.get("Size", ""))
    fields = {
        name: value
        for name, about in PICTURE_FIELDS.items()
        if about.infotext is not None and (value := about.of_infotext(pairs.get(about.infotext))) is not None
    }
    known = {*_KNOWN, *(PICTURE_FIELDS[name].infotext for name in fields)}
    return PictureSettings(
        **fields,
        prompt=prompt,
        negative_prompt=infotext.negative_prompt,
        width=width,
        height=height,
        model=as_text(pairs.get("Model")),
        model_hash=as_text(pairs.get("Model hash")),
        adapters=tuple(_with_resources(adapters, infotext, {**hashes_of(infotext), **(more or {})}, notes)),
        dialect=dialect,
        version=as_text(pairs.get("Version")),
        extra={key: text for key, text in pairs.items() if key not in known},
    )


def hashes_of(infotext: Infotext) -> dict[str, str]:
    """Return the adapters' hashes by alias, from both places that may have them."""
    hashes = {
        name: digits
        for name, text in parameters_text.entries(infotext.pairs.get("Lora hashes", ""))
        if (digits := as_hash(text))
    }
    for key, value in as_table(infotext.blocks.get("Hashes")).items():
        kind, _, name = key.partition(":")
        if kind.lower() in ("lora", "lyco") and name and (digits := as_hash(value)):
            hashes.setdefault(name, digits)
    return hashes


def hashed(adapter: PictureAdapter, digits: str | None) -> PictureAdapter:
    """Return the adapter with a hash of the kind that its length suggests."""
    if digits is None:
        return adapter
    return replace(adapter, hashes={HASH_KINDS.get(len(digits), "sha256"): digits, **adapter.hashes})


def _with_resources(
    adapters: list[PictureAdapter], infotext: Infotext, hashes: dict[str, str], notes: list[str]
) -> list[PictureAdapter]:
    """Return the adapters their hashes, and add those that only lists name."""
    named = {alias_of(name): digits for name, digits in hashes.items()}
    listed = [hashed(adapter, named.pop(alias_of(adapter.name), None)) for adapter in adapters]
    for name, weight in _resources(infotext):
        if name not in {adapter.name for adapter in listed}:
            listed.append(hashed(PictureAdapter(name, weight), named.pop(alias_of(name), None)))
    if named and not listed:
        # The tags were taken out of the prompt, as some sites do.
        listed = [hashed(PictureAdapter(name), digits) for name, digits in named.items()]
        notes.append(f"the weights of {', '.join(named)} are not written; they were taken as 1")
    return listed


def _resources(infotext: Infotext) -> list[tuple[str, float]]:
    listed: list[Any] = as_list(infotext.blocks.get("Civitai resources"))
    entries: list[tuple[str, float]] = []
    for entry in map(as_table, listed[:500]):
        name = as_text(entry.get("modelName"))
        if name and str(entry.get("type", "")).lower() in ("lora", "lycoris", "locon", "dora"):
            weight = as_float(entry.get("weight"))
            entries.append((name, 1.0 if weight is None else weight))
    return entries


DIALECT = Dialect(NAME, "AUTOMATIC1111", read)
