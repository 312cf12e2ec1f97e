"""
Mixes that travel in pictures: without paths of the machine they were made on, with their masks inside.

What comes back is a stranger's: it may name no file. Patterns of layers have a bound of their own, whoever wrote them.
"""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lora_mixer.errors import MixError
from lora_mixer.mixes import AdapterMix, Mask, Mix
from lora_mixer.mixes.grammar.forms import entries_of
from lora_mixer.mixes.reading import Reading
from lora_mixer.parsing.values import as_table

if TYPE_CHECKING:
    from collections.abc import Mapping

_MASK_BYTES_AT_MOST = 2_000_000
_MASK_PIXELS_AT_MOST = 1 << 22
_MASKS_AT_MOST = 16
_ADAPTERS_AT_MOST = 1000


def portable(mix: Mix) -> Mix:
    """Return an equal mix whose masks name no files."""
    return Mix({name: _bare(adapter) for name, adapter in mix.adapters.items()}, mix.method)


def masks_of(mix: Mix) -> dict[str, str]:
    """
    Return the pictures of a mix's masks, as PNG in base64 by digest; those that are not at hand are left out.

    Args:
        mix: The mix, before ``portable``.
    """
    masks: dict[str, str] = {}
    for mask in {each.mask.digest: each.mask for each in mix.adapters.values() if each.mask}.values():
        encoded = _encoded(mask) if len(masks) < _MASKS_AT_MOST else None
        if encoded is not None and len(encoded) <= _MASK_BYTES_AT_MOST:
            masks[mask.digest] = encoded
    return masks


def read_mix(spec: object, masks: object, notes: list[str]) -> Mix | None:
    """
    Read a mix out of a picture.

    Args:
        spec: As ``Mix.to_dict`` gives it.
        masks: As ``masks_of`` gives them.
        notes: Where remarks go.

    Returns:
        The mix, or None where it cannot be read.
    """
    if not isinstance(spec, dict):
        return None
    try:
        mix = Mix.of(_fileless(spec, notes))
    except (MixError, RecursionError) as error:
        notes.append(f"the mix in the picture cannot be read: {str(error)[:300]}")
        return None
    pictures = as_table(masks)
    adapters: dict[str, AdapterMix] = {}
    for name, adapter in mix.adapters.items():
        kept = adapter
        if adapter.mask is not None:
            kept = replace(kept, mask=_mask_here(name, adapter.mask, pictures, notes))
        adapters[name] = kept
    return Mix(adapters, mix.method)


def read_mix_text(text: str, masks: object, notes: list[str]) -> Mix | None:
    """
    Read a mix that a stranger wrote as text, in any form that ``Mix.of`` reads.

    Args:
        text: One line, JSON or YAML.
        masks: As for ``read_mix``.
        notes: Where remarks go.

    Example:
        >>> notes = []
        >>> read_mix_text("a:0.5,mask=/home/x/private.png", {}, notes)["a"].mask is None, len(notes)
        (True, 1)
    """
    reading = Reading()
    entries = entries_of(text, reading)
    names = [name for name, _ in entries.adapters]
    if reading.problems or len(set(map(str, names))) < len(names):
        why = str(reading.problems[0]) if reading.problems else "a name stands twice"
        notes.append(f"the mix cannot be read: {why[:300]}")
        return None
    return read_mix(
        {"adapters": {str(k): v for k, v in entries.adapters}, "method": entries.method}, masks, notes
    )


def read_spec(spec: object, notes: list[str]) -> AdapterMix | None:
    """Read what a picture says about one adapter; None where it cannot be read."""
    mix = read_mix({"adapters": {"x": spec}}, {}, notes)
    return mix["x"] if mix is not None else None


def _bare(adapter: AdapterMix) -> AdapterMix:
    if adapter.mask is None:
        return adapter
    return replace(adapter, mask=Mask(adapter.mask.digest, adapter.mask.feather))


def _encoded(mask: Mask) -> str | None:
    import numpy as np
    from PIL import Image

    try:
        picture = mask.picture if mask.picture is not None else replace(mask, feather=0.0).load()
    except MixError:
        return None
    if picture.size > _MASK_PIXELS_AT_MOST or picture.ndim > 2:  # a film's mask has no place in a picture
        return None
    levels = (picture.astype("float64") * 65535).round().astype("uint16")
    eight = (levels // 257).astype("uint8")
    exact = bool(np.array_equal(eight.astype("uint16") * 257, levels))
    stream = io.BytesIO()
    Image.fromarray(eight if exact else levels).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


def _mask_here(name: str, mask: Mask, pictures: Mapping[str, Any], notes: list[str]) -> Mask:
    encoded = pictures.get(mask.digest)
    if isinstance(encoded, str) and len(encoded) <= _MASK_BYTES_AT_MOST and len(pictures) <= _MASKS_AT_MOST:
        decoded = _decoded(encoded)
        if decoded is not None and decoded.digest == mask.digest:
            return replace(decoded, feather=mask.feather)
    notes.append(f'"{name}": the mask is not in the picture; give it again')
    return mask


def _decoded(encoded: str) -> Mask | None:
    import numpy as np
    from PIL import Image

    try:
        with Image.open(io.BytesIO(base64.b64decode(encoded, validate=True)), formats=("PNG",)) as image:
            if image.width * image.height > _MASK_PIXELS_AT_MOST:
                return None
            values = np.asarray(image)
        return Mask.of(values if values.dtype == np.uint8 else values.astype("float64") / 65535)
    except Exception:  # noqa: BLE001  (whatever a decoder meets in a hostile file)
        return None


def _fileless(spec: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    """Leave out the files that a stranger wants to be opened; only the forms that ``Mix.to_dict`` writes are let in."""
    full = isinstance(spec.get("adapters"), dict | list) and set(spec) <= {"adapters", "method"}
    table = spec["adapters"] if full else spec
    if not isinstance(table, dict) or len(table) > _ADAPTERS_AT_MOST:
        raise MixError(f"expected weights of at most {_ADAPTERS_AT_MOST} adapters by name")
    adapters: dict[str, Any] = {}
    for name, each in table.items():
        kept = dict(each) if isinstance(each, dict) else each
        if "mask" in as_table(kept):
            mask = as_table(kept.pop("mask"))
            if isinstance(mask.get("digest"), str):
                kept["mask"] = {key: mask[key] for key in ("digest", "feather") if key in mask}
            else:
                notes.append(f'"{name}": its mask names a file and was left out')
        adapters[name] = kept
    return {**spec, "adapters": adapters} if full else adapters
