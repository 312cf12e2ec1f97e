"""Pictures in: settings out of whatever program wrote them."""

from __future__ import annotations

import os
from dataclasses import replace
from os import PathLike
from typing import TYPE_CHECKING, Any

from lora_mixer.errors import PictureMetadataError
from lora_mixer.parsing.values import as_int
from lora_mixer.picture_metadata.carriers import read_texts, shown_keys
from lora_mixer.picture_metadata.dialects import DIALECTS, own
from lora_mixer.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_mixer.picture_metadata.carriers import Source
    from lora_mixer.picture_metadata.settings import PictureSettings


_ELSEWHERE: Mapping[str, tuple[str, ...]] = {
    "schedule": ("Schedule", "Scheduler", "scheduler", "noise_schedule"),
}
"""Where programs say what is a field here; each keeps it among the ``extra`` of its settings, too."""


def _from_extra(settings: PictureSettings) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if settings.dialect == own.NAME:  # which says them itself
        return fields
    for name, keys in _ELSEWHERE.items():
        value = next((settings.extra[key] for key in keys if settings.extra.get(key)), None)
        if getattr(settings, name) is None and value is not None:
            fields[name] = value
    if settings.clip_skip is None and (skip := _clip_skip(settings.extra)) is not None:
        fields["clip_skip"] = skip
    return fields


def _clip_skip(extra: Mapping[str, str]) -> int | None:
    """Return the layers to skip as diffusers counts: Fooocus says 1 more, SwarmUI a negative place."""
    for key, sign, more in (("clip_skip", 1, -1), ("clipstopatlayer", -1, -1)):
        number = as_int(extra.get(key), -100, 100)
        if number is not None and sign * number + more >= 0:
            return sign * number + more
    return None


def read_picture(source: Source) -> PictureSettings:
    r"""
    Read how a picture was made.

    Read are this package's own pictures and those of AUTOMATIC1111 and Forge, SD.Next, Fooocus, InvokeAI, ComfyUI,
    SwarmUI and ComfyUI-Lora-Manager, as PNG, JPEG or WebP.

    Args:
        source: A path, the bytes of a file, or a picture that PIL has opened.

    Returns:
        The settings; their ``notes`` say what could not be read. Where the metadata do not say the size, it is the
        picture's own.

    Raises:
        SourceNotFoundError: There is no such file.
        PictureMetadataError: It is not a picture that can be read, or nobody wrote settings into it.

    Example:
        >>> from PIL import Image
        >>> picture = Image.new("RGB", (64, 64))
        >>> picture.info["parameters"] = "a castle <lora:ink:0.5>\nSteps: 20, Sampler: Euler, Seed: 7"
        >>> settings = read_picture(picture)
        >>> settings.prompt, settings.seed, settings.adapters[0].weight
        ('a castle', 7, 0.5)
    """
    texts, size = read_texts(source)
    notes: list[str] = []
    for dialect in DIALECTS.values():
        settings = dialect.read(texts, notes)
        if settings is not None:
            width, height = (settings.width, settings.height) if settings.width else size
            settings = replace(settings, width=width, height=height, notes=tuple(dict.fromkeys(notes)))
            return replace(settings, **_from_extra(settings))
    why = "; ".join(notes) if notes else f"no known settings among its texts (it has {shown_keys(texts)})"
    raise PictureMetadataError(
        f"{why}. Pictures lose their settings where a site or an editor saved them again: take the original file.",
        file=os.fspath(source) if isinstance(source, str | PathLike) else "the picture",
        problems=[Problem("", note) for note in notes],
    )
