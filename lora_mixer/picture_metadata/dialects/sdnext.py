"""
SD.Next's infotext: as AUTOMATIC1111's, but ``LoRA networks`` has the names and ``LoRA hashes`` the hashes alone.

The two belong together by their places, and only where there are as many of one as of the other.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lora_mixer.parsing.values import as_float, as_hash
from lora_mixer.picture_metadata import parameters_text
from lora_mixer.picture_metadata.carriers import PARAMETERS
from lora_mixer.picture_metadata.dialects.a1111 import hashed, settings_of
from lora_mixer.picture_metadata.dialects.dialect import Dialect
from lora_mixer.picture_metadata.settings import PictureAdapter, PictureSettings

if TYPE_CHECKING:
    from collections.abc import Mapping

NAME = "sdnext"
_NETWORKS, _HASHES, _APP = "LoRA networks", "LoRA hashes", "App"
_LISTED_AT_MOST = 500


def read(texts: Mapping[str, str], notes: list[str]) -> PictureSettings | None:
    """Read SD.Next's infotext, or None where it is another's."""
    infotext = parameters_text.parse(texts.get(PARAMETERS, ""))
    if infotext is None or not (
        infotext.pairs.get(_APP, "").lower().startswith("sd.next")
        or _NETWORKS in infotext.pairs
        or _HASHES in infotext.pairs
    ):
        return None
    names = _listed(infotext.pairs.get(_NETWORKS, ""))
    hashes = [as_hash(text) for text in _listed(infotext.pairs.get(_HASHES, ""))]
    stems = [name.partition(":")[0].strip() for name in names]
    paired = len(hashes) == len(stems)
    if hashes and not paired:
        notes.append(
            f"{len(stems)} adapters and {len(hashes)} hashes are listed; which belong together is not known"
        )
    settings = settings_of(infotext, notes, NAME)
    by_name = {adapter.name: adapter for adapter in settings.adapters}
    for number, stem in enumerate(stems):
        if stem and stem not in by_name:  # the prompt came without its tags
            weight = as_float(names[number].partition(":")[2])
            by_name[stem] = PictureAdapter(stem, 1.0 if weight is None else weight)
            if weight is None:
                notes.append(f'the weight of "{stem}" is not written; it was taken as 1')
        if stem and paired:
            by_name[stem] = hashed(by_name[stem], hashes[number])
    return replace(settings, adapters=tuple(by_name.values()))


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")[:_LISTED_AT_MOST] if part.strip()]


DIALECT = Dialect(NAME, "SD.Next", read)
