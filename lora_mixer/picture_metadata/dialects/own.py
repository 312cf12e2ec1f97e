"""
The block of this package: JSON that says everything, to the last bit.

    {"format": 1, "version": ..., "prompt": ..., "mix": as Mix.to_dict, "fingerprint": ..., "masks": {digest: PNG},
     "adapters": [{"name", "weight", "text_weight", "hashes", "spec"}], ...}
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from lora_mixer.mixes import Mix
from lora_mixer.parsing.json_text import read_json
from lora_mixer.parsing.values import (
    as_float,
    as_hash,
    as_int,
    as_list,
    as_table,
    clean_text,
)
from lora_mixer.picture_metadata.carriers import OWN_KEY
from lora_mixer.picture_metadata.dialects.dialect import Dialect
from lora_mixer.picture_metadata.portable import masks_of, portable, read_mix, read_spec
from lora_mixer.picture_metadata.settings import PictureAdapter, PictureSettings
from lora_mixer.pictures import PICTURE_FIELDS
from lora_mixer.wording import quoted

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_mixer.pictures import PictureField

NAME = "lora_mixer"
_FORMAT = 1
_ADAPTERS_AT_MOST = 1000


def write_own(settings: PictureSettings, *, with_masks: bool = True) -> str:
    """
    Write the block.

    Args:
        settings: The settings.
        with_masks: Whether the masks' pictures go with it.

    Returns:
        JSON in ASCII.
    """
    table: dict[str, Any] = {
        "format": _FORMAT,
        **{name: getattr(settings, name) for name in PICTURE_FIELDS},
        "model": settings.model,
        "model_hash": settings.model_hash,
        "version": settings.version,
        "adapters": [_adapter(each, in_mix=settings.mix is not None) for each in settings.adapters],
        "extra": dict(settings.extra),
    }
    if settings.mix is not None:
        mix = portable(settings.mix)
        table |= {"mix": mix.to_dict(), "fingerprint": mix.fingerprint}
        masks = masks_of(settings.mix)
        if settings.negative_mix is not None:
            table["negative_mix"] = portable(settings.negative_mix).to_dict()
            masks |= masks_of(settings.negative_mix)
        if with_masks and masks:
            table["masks"] = masks
    kept = {key: value for key, value in table.items() if value is not None}
    return json.dumps(kept, separators=(",", ":"), allow_nan=False)


def read(texts: Mapping[str, str], notes: list[str]) -> PictureSettings | None:
    """Read the block, or None where there is none that can be read."""
    if OWN_KEY not in texts:
        return None
    try:
        table = read_json(texts[OWN_KEY])
    except ValueError as error:
        notes.append(f"the block {quoted(OWN_KEY)} cannot be read: {error}")
        return None
    if not isinstance(table, dict) or table.get("format") != _FORMAT:
        got = as_table(table).get("format", "none")
        notes.append(
            f"the block {quoted(OWN_KEY)} has format {quoted(str(got), 40)}, this version reads {_FORMAT}"
        )
        return None
    mix = read_mix(table.get("mix"), table.get("masks"), notes)
    if mix is not None and table.get("fingerprint") not in (None, mix.fingerprint):
        notes.append("the mix is not the one that the fingerprint was written for; somebody changed it")
    return PictureSettings(
        **{name: _field(about, table.get(name)) for name, about in PICTURE_FIELDS.items()},
        model=_text_or_none(table.get("model")),
        model_hash=_text_or_none(table.get("model_hash")),
        version=_text_or_none(table.get("version")),
        adapters=tuple(_adapters(as_list(table.get("adapters")), mix, notes)),
        mix=mix,
        negative_mix=read_mix(table.get("negative_mix"), table.get("masks"), notes),
        dialect=NAME,
        extra={key: text for key, text in as_table(table.get("extra")).items() if isinstance(text, str)},
    )


def _field(about: PictureField, value: object) -> Any:
    """Return a field as it should be; others' limits may be wider than those of requests."""
    if about.kind == "text":
        return (
            _text_or_none(value)
            if about.default is None
            else clean_text(value)
            if isinstance(value, str)
            else ""
        )
    if about.kind == "number":
        return as_float(value)
    return as_int(value, *about.elsewhere)


def _text_or_none(value: object) -> str | None:
    return clean_text(value) if isinstance(value, str) else None


def _adapter(adapter: PictureAdapter, *, in_mix: bool) -> dict[str, Any]:
    table: dict[str, Any] = {
        "name": adapter.name,
        "weight": adapter.weight,
        "text_weight": adapter.text_weight,
        "hashes": dict(adapter.hashes),
    }
    if adapter.spec is not None and not in_mix:
        table["spec"] = portable(Mix({"x": adapter.spec})).to_dict()["x"]
    return {key: value for key, value in table.items() if value not in (None, {})}


def _adapters(entries: list[Any], mix: Mix | None, notes: list[str]) -> list[PictureAdapter]:
    adapters: list[PictureAdapter] = []
    for entry in map(as_table, entries[:_ADAPTERS_AT_MOST]):
        name = entry.get("name")
        hashes = {
            str(kind)[:40]: digits
            for kind, value in as_table(entry.get("hashes")).items()
            if (digits := as_hash(value))
        }
        if not isinstance(name, str) or not name.strip():
            continue
        if mix is not None and name in mix:
            adapters.append(PictureAdapter.of(name, mix[name], hashes))
            continue
        weight = as_float(entry.get("weight"))
        spec = read_spec(entry["spec"], notes) if "spec" in entry else None
        adapters.append(
            PictureAdapter(
                name, 1.0 if weight is None else weight, as_float(entry.get("text_weight")), hashes, spec
            )
        )
    return adapters


DIALECT = Dialect(NAME, "lora_mixer", read, clip_skip_is_told=True)
