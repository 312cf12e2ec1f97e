"""Pictures in: settings out of whatever program wrote them."""

from __future__ import annotations

from dataclasses import replace
from os import PathLike
from typing import TYPE_CHECKING

from lora_mixer.errors import PictureMetadataError
from lora_mixer.picture_metadata.carriers import read_texts, shown_keys
from lora_mixer.picture_metadata.dialects import DIALECTS

if TYPE_CHECKING:
    from lora_mixer.picture_metadata.carriers import Source
    from lora_mixer.picture_metadata.settings import PictureSettings


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
        PictureMetadataError: It is no picture that can be read, or nobody wrote settings into it.

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
    for read in DIALECTS.values():
        settings = read(texts, notes)
        if settings is not None:
            width, height = (settings.width, settings.height) if settings.width else size
            return replace(settings, width=width, height=height, notes=tuple(dict.fromkeys(notes)))
    why = "; ".join(notes) if notes else f"no known settings among its texts (it has {shown_keys(texts)})"
    raise PictureMetadataError(
        f"{source if isinstance(source, str | PathLike) else 'the picture'}: {why}. Pictures lose their settings where "
        f"a site or an editor saved them again: take the original file."
    )
