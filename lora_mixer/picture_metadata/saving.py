"""Pictures out: with the text that other programs read, and the exact block beside it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from lora_mixer import __version__
from lora_mixer.errors import SaveError
from lora_mixer.picture_metadata import parameters_text
from lora_mixer.picture_metadata.carriers import exif_of, png_texts
from lora_mixer.picture_metadata.dialects import own
from lora_mixer.picture_metadata.portable import portable
from lora_mixer.picture_metadata.settings import PictureAdapter
from lora_mixer.picture_metadata.tags import alias_of, with_tags
from lora_mixer.pictures.request import PICTURE_FIELDS
from lora_mixer.pictures.samplers import usual_name

if TYPE_CHECKING:
    from collections.abc import Mapping
    from os import PathLike

    from PIL.Image import Image

    from lora_mixer.picture_metadata.settings import PictureSettings

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
"""Formats by the ending of a file's name."""
_QUALITY = {"JPEG": 95, "WEBP": 90}
_MODES = {"PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"), "JPEG": ("L", "RGB"), "WEBP": ("RGB", "RGBA")}
_ORDER = ("steps", "sampler", "schedule", "clip_skip", "guidance_scale", "seed")  # as AUTOMATIC1111 has them
_JPEG_EXIF_AT_MOST = 65_000  # the segment has 16 bits for its length
# Which hash AUTOMATIC1111 shows: of the tensors alone, where it is known.
_SHOWN_HASHES = ("sshs_model_hash", "autov3", "sha256", "autov2", "autov1")


def infotext(settings: PictureSettings, hashes: Mapping[str, Mapping[str, str]] | None = None) -> str:
    r"""
    Write settings as the ``parameters`` text that AUTOMATIC1111 made common.

    Args:
        settings: The settings.
        hashes: The adapters' hashes by kind, by name, as ``mixer.adapters[name].hashes``.

    Returns:
        The text: adapters as ``<lora:name:te:unet>`` tags behind the prompt, their hashes as ``Lora hashes``, and the
        mix as ``LoRA mix`` where tags cannot say all of it.

    Example:
        >>> from lora_mixer.picture_metadata import PictureSettings
        >>> settings = PictureSettings("a castle", steps=20, seed=7, width=64, height=64, mix="ink:0.8,te=0.2")
        >>> print(infotext(settings, {"ink": {"autov3": "0123456789ab"}}))
        a castle <lora:ink:0.2:0.8>
        Steps: 20, Seed: 7, Size: 64x64, Lora hashes: "ink: 0123456789ab", Version: lora-mixer ...
    """
    settings = _ours(settings, hashes)
    prompt, complete = with_tags(settings.prompt, settings.adapters)
    mix = None
    if settings.mix is not None and len(settings.mix) and not (complete and settings.mix.method.is_sum):
        mix = portable(settings.mix).to_text()
    listed = [
        f"{alias_of(adapter.name)}: {digits}"
        for adapter in settings.adapters
        if (digits := _shown_hash(adapter))
    ]
    negative_prompt = settings.negative_prompt
    if settings.negative_mix is not None:
        other = settings.negative_mix
        differing = [
            name for name in other if settings.mix is None or other[name] != settings.mix.adapters.get(name)
        ]
        told = [PictureAdapter.of(name, portable(other)[name]) for name in differing]
        negative_prompt, _ = with_tags(negative_prompt, told)
    values = {name: getattr(settings, name) for name in PICTURE_FIELDS} | _names_of_sampler(settings)
    sized = settings.width is not None and settings.height is not None
    return parameters_text.write_parameters(
        prompt,
        negative_prompt,
        {
            **{
                about.infotext: about.to_infotext(values[name])
                for name, about in sorted(PICTURE_FIELDS.items(), key=lambda item: _place(item[0]))
                if about.infotext is not None
            },
            "Size": f"{settings.width}x{settings.height}" if sized else None,
            "Model hash": settings.model_hash,
            "Model": settings.model,
            "Lora hashes": ", ".join(listed) or None,
            "LoRA mix": mix,
            "Version": f"lora-mixer {settings.version}",
        },
    )


def _place(name: str) -> int:
    """Return a field's place in the text: programs look for the steps at its beginning; a new field comes last."""
    return _ORDER.index(name) if name in _ORDER else len(_ORDER)


def _names_of_sampler(settings: PictureSettings) -> dict[str, str | None]:
    """Return the sampler and its schedule as other programs name them; only diffusers' classes have other names there."""
    sampler, word = settings.sampler, ""
    if sampler is not None and sampler.endswith("Scheduler"):
        sampler, word = usual_name(sampler)
    words = settings.schedule or word
    return {"sampler": sampler, "schedule": (words.capitalize() if words.isalpha() else words) or None}


def save_picture(
    image: Image,
    path: str | PathLike[str],
    settings: PictureSettings,
    *,
    hashes: Mapping[str, Mapping[str, str]] | None = None,
    quality: int | None = None,
) -> Path:
    """
    Write a picture with its settings inside: whole or not at all, the same bytes for the same input.

    A PNG gets the texts ``parameters`` and ``lora_mixer``; JPEG and WebP have the first as EXIF UserComment, the
    second as the maker's note. :func:`read_picture` gives an equal mix back.

    Args:
        image: The picture.
        path: Where to; the ending (.png, .jpg, .jpeg, .webp) says the format. Folders are made.
        settings: What it was made with; a size that is not said is the picture's.
        hashes: The adapters' hashes by kind, by name, as ``mixer.adapters[name].hashes``.
        quality: 1 to 100, for JPEG (95 unless said) and WebP (90; 100 is lossless).

    Returns:
        The path.

    Raises:
        SaveError: The ending is another, the settings are too long for a JPEG, or the disk refuses; what was there
            before is still there.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> from lora_mixer.picture_metadata import PictureSettings, read_picture
        >>> path = Path(tempfile.mkdtemp()) / "castle.png"
        >>> path = save_picture(Image.new("RGB", (64, 64)), path, PictureSettings("a castle", mix="ink:0.8"))
        >>> read_picture(path).mix.to_text()
        'ink:0.8'
    """
    from lora_mixer.atomic import write_files

    place = Path(path)
    kind = FORMATS.get(place.suffix.lower())
    if kind is None:
        raise SaveError(
            f"expected a name that ends with {', '.join(FORMATS)}, got {place.suffix!r}", file=str(place)
        )
    if quality is not None and quality not in range(1, 101):
        raise SaveError(
            f"quality must be a whole number from 1 to 100, got {quality!r}",
            file=str(place),
            argument="quality",
        )
    if settings.width is None or settings.height is None:
        settings = replace(settings, width=image.width, height=image.height)
    settings = _ours(settings, hashes)
    options = _texts_for(kind, settings, place) | _quality(kind, quality)
    shown = image if image.mode in _MODES[kind] else image.convert("RGB")
    shown = shown.copy()
    shown.info = {}  # what the picture was opened with is not what it was made with

    def write(stream: IO[bytes]) -> None:
        try:
            shown.save(stream, kind, **options)
        except ValueError as error:
            raise SaveError(f"cannot be written as {kind}: {error}", file=str(place)) from error

    write_files({place: write})
    return place


def _ours(settings: PictureSettings, hashes: Mapping[str, Mapping[str, str]] | None) -> PictureSettings:
    """Whoever wrote them before, now it is this version."""
    return replace(settings.with_hashes(hashes or {}), version=__version__)


def _texts_for(kind: str, settings: PictureSettings, place: Path) -> dict[str, Any]:
    text, block = infotext(settings), own.write_own(settings)
    if kind == "PNG":
        return {"pnginfo": png_texts(text, block)}
    exif = exif_of(text, block)
    if kind == "JPEG" and len(exif) > _JPEG_EXIF_AT_MOST:
        exif = exif_of(text, own.write_own(settings, with_masks=False))
    if kind == "JPEG" and len(exif) > _JPEG_EXIF_AT_MOST:
        raise SaveError(
            f"the settings take {len(exif)} bytes, and a JPEG has room for {_JPEG_EXIF_AT_MOST}; "
            f"save it as .png or .webp",
            file=str(place),
        )
    return {"exif": exif}


def _quality(kind: str, quality: int | None) -> dict[str, Any]:
    if kind == "PNG":
        return {}
    if kind == "WEBP" and quality == 100:
        return {"lossless": True, "quality": 100}
    return {"quality": _QUALITY[kind] if quality is None else quality}


def _shown_hash(adapter: PictureAdapter) -> str | None:
    digits = next((adapter.hashes[kind] for kind in _SHOWN_HASHES if adapter.hashes.get(kind)), None)
    return digits[:12] if digits else None
