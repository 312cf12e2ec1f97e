"""
Where settings lie in picture files: texts of a PNG; EXIF of JPEG and WebP. Both become texts by key.

Pixels are not decoded to read them, so a picture that claims to be huge costs nothing. EXIF is brought into the form of a
PNG's texts: its UserComment is ``parameters``, and what programs hid in other tags gets the key that it has in a PNG.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_mixer.errors import PictureMetadataError, SourceNotFoundError
from lora_mixer.parsing.image_bounds import refuse_heavy_exif, refuse_heavy_tables
from lora_mixer.parsing.json_text import LONGEST_JSON

if TYPE_CHECKING:
    from collections.abc import Mapping
    from os import PathLike

    from PIL.Image import Image

    Source = str | PathLike[str] | bytes | Image

OWN_KEY = "lora_mixer"
PARAMETERS = "parameters"
PICTURE_TYPES = ("PNG", "JPEG", "WEBP")

EXIF_IFD, USER_COMMENT, MAKER_NOTE, SOFTWARE = 0x8769, 0x9286, 0x927C, 0x0131
UNICODE = b"UNICODE\0"
OWN_NOTE = b"lora_mixer\0"
_FILE_AT_MOST = 512 * 1024 * 1024
_PIXELS_AT_MOST = 1 << 24
# ComfyUI and its nodes write "key:{json}" into tags that mean something else.
_KEYED_TAGS = (0x010E, 0x010F, 0x0110, *range(0x010D, 0x0100, -1))
_KEYED = {"prompt": "prompt", "workflow": "workflow"}


def read_texts(source: Source) -> tuple[dict[str, str], tuple[int, int]]:
    """
    Return the texts of a picture by key, and its size.

    Args:
        source: A path, the bytes of a file, or a picture that PIL has opened.

    Raises:
        SourceNotFoundError: There is no such file.
        PictureMetadataError: It is not a picture that can be read, or it is damaged or oversized.
    """
    from PIL import Image

    label = "the picture" if isinstance(source, bytes | Image.Image) else str(source)
    if isinstance(source, Image.Image):
        return _of_image(source, label), source.size
    if isinstance(source, bytes):
        return _of_stream(io.BytesIO(source), label)
    path = Path(source)
    try:
        size = path.stat().st_size
        if size > _FILE_AT_MOST or not path.is_file():
            raise PictureMetadataError(
                f"expected a picture of at most {_FILE_AT_MOST >> 20} MiB, got "
                f"{f'{size} bytes' if path.is_file() else 'something that is not a file'}",
                file=label,
            )
        with path.open("rb") as stream:
            return _of_stream(stream, label)
    except FileNotFoundError:
        raise SourceNotFoundError("there is no such file", file=label) from None
    except (OSError, ValueError) as error:
        if isinstance(error, PictureMetadataError):
            raise
        why = getattr(error, "strerror", None) or error
        raise PictureMetadataError(f"cannot be read ({why})", file=label) from error


def _of_stream(stream: Any, label: str) -> tuple[dict[str, str], tuple[int, int]]:
    from PIL import Image

    try:
        refuse_heavy_tables(stream)
        with Image.open(stream, formats=PICTURE_TYPES) as image:
            return _of_image(image, label), image.size
    except PictureMetadataError:
        raise
    except Exception as error:  # whatever a decoder meets in a hostile file
        raise PictureMetadataError(
            f"expected a PNG, JPEG or WebP picture; it cannot be read "
            f"({type(error).__name__}: {str(error)[:200]})",
            file=label,
        ) from error


def _of_image(image: Image, label: str) -> dict[str, str]:
    texts = _of_info(image)
    if not texts and image.format == "PNG" and image.width * image.height <= _PIXELS_AT_MOST:
        image.load()  # some editors move the texts behind the pixels
        texts = _of_info(image)
    try:
        for key, text in _of_exif(image).items():
            texts.setdefault(key, text)
    except Exception as error:  # as above
        if not texts:
            raise PictureMetadataError(f"its EXIF is damaged ({type(error).__name__})", file=label) from error
    too_long = [key for key, text in texts.items() if len(text) > LONGEST_JSON]
    if too_long:
        raise PictureMetadataError(
            f"its text {too_long[0][:60]!r} has {len(texts[too_long[0]])} characters, at most {LONGEST_JSON} are read",
            file=label,
        )
    return texts


def _of_info(image: Image) -> dict[str, str]:
    return {key: text for key, text in image.info.items() if isinstance(key, str) and isinstance(text, str)}


def _of_exif(image: Image) -> dict[str, str]:
    texts: dict[str, str] = {}
    # asked for EXIF that it has not, PIL decodes a PNG: it may stand behind the pixels
    if image.format == "PNG" and "exif" not in image.info and "Raw profile type exif" not in image.info:
        return texts
    refuse_heavy_exif(image)
    exif = image.getexif()
    if not exif:
        return texts
    inner = exif.get_ifd(EXIF_IFD)
    comment = decode_comment(inner.get(USER_COMMENT) or exif.get(USER_COMMENT))
    if comment:
        texts[PARAMETERS] = comment
    note = inner.get(MAKER_NOTE) or exif.get(MAKER_NOTE) or b""
    raw = note if isinstance(note, bytes) else str(note).encode("utf-8", "replace")
    if raw.startswith(OWN_NOTE):
        texts[OWN_KEY] = raw[len(OWN_NOTE) :].decode("utf-8", "replace")
    elif raw.strip(b"\0 ").lower() in (b"a1111", b"fooocus"):
        texts["fooocus_scheme"] = raw.strip(b"\0 ").decode().lower()
    if isinstance(software := exif.get(SOFTWARE), str):
        texts["Software"] = software
    for tag in _KEYED_TAGS:
        value = exif.get(tag)
        key, colon, rest = value.partition(":") if isinstance(value, str) else ("", "", "")
        if colon and (name := _KEYED.get(key.strip().lower())):
            texts.setdefault(name, rest)
    return texts


def decode_comment(value: object) -> str:
    r"""
    Read a UserComment as programs write them: with or without its 8 bytes of encoding, in UTF-16 or UTF-8.

    Example:
        >>> decode_comment(b"UNICODE\0" + "ä".encode("utf-16-be")), decode_comment("ä".encode())
        ('ä', 'ä')
    """
    if isinstance(value, str):
        return value.strip("\0")
    if not isinstance(value, bytes):
        return ""
    if not value.startswith(UNICODE):
        known = (b"ASCII\0\0\0", b"\0" * 8)
        return (value[8:] if value.startswith(known) else value).decode("utf-8", "replace").strip("\0")
    body = value[len(UNICODE) :]
    # Big-endian as said, unless a mark or where the zeros of plain letters stand says otherwise.
    zeros = body[:2000:2].count(0), body[1:2000:2].count(0)
    if body.startswith(b"\xff\xfe") or (zeros[1] > zeros[0] and not body.startswith(b"\xfe\xff")):
        order = "utf-16-le"
    elif zeros == (0, 0) and _is_utf8(body):
        order = "utf-8"
    else:
        order = "utf-16-be"
    return body.decode(order, "replace").strip("\0\ufeff")


def exif_of(parameters: str, own_text: str) -> bytes:
    """
    Return EXIF that holds both texts.

    Args:
        parameters: For the UserComment, ``UNICODE`` and UTF-16.
        own_text: ASCII, for the maker's note.
    """
    from PIL.Image import Exif

    exif = Exif()
    inner = exif.get_ifd(EXIF_IFD)
    inner[USER_COMMENT] = UNICODE + parameters.encode("utf-16-be")
    inner[MAKER_NOTE] = OWN_NOTE + own_text.encode("ascii")
    return exif.tobytes()


def png_texts(parameters: str, own_text: str) -> Any:
    """Return a PNG's chunks that hold both texts."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text(PARAMETERS, parameters)
    info.add_text(OWN_KEY, own_text)
    return info


def _is_utf8(body: bytes) -> bool:
    try:
        body.decode("utf-8")
    except UnicodeDecodeError:
        return False
    # Chinese in UTF-16 can look like UTF-8 by chance, plain text hardly like anything else.
    return body.isascii()


def shown_keys(texts: Mapping[str, str]) -> str:
    """List the keys of a picture's texts, for messages."""
    names = ", ".join(repr(key[:40]) for key in list(texts)[:10])
    return names or "none"
