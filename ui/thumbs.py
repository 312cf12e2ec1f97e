"""Small re-encoded pictures as data URIs: no file of a library or of a picture folder is served for them."""

from __future__ import annotations

import base64
import io
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from PIL.Image import Image


def data_uri(image: Image, side: int, kind: str = "webp", quality: int = 82) -> str:
    """
    Encode a picture, at most ``side`` pixels a side.

    Args:
        image: The picture.
        side: Pixels.
        kind: ``webp`` or ``jpeg``.
        quality: Of the encoding.
    """
    small = image.convert("RGB")
    small.thumbnail((side, side))
    stream = io.BytesIO()
    small.save(stream, format=kind, quality=quality)
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"


@lru_cache(maxsize=2000)
def _of_file(path: str, _: int, side: int) -> str:
    from PIL import Image

    try:
        with Image.open(path) as picture:
            return data_uri(picture, side)
    except (OSError, ValueError, Image.DecompressionBombError):
        return ""


def file_uri(path: Path, side: int) -> str:
    """Encode a picture file; empty where it is none. Kept until the file changes."""
    try:
        return _of_file(str(path), path.stat().st_mtime_ns, side)
    except OSError:
        return ""


def thumbnail_uri(library: Any, entry: Any, side: int) -> str:
    """Encode an adapter's preview as the library made it; empty where it has none."""
    if entry.preview is None:
        return ""
    path = library.thumbnail(entry.id, side)
    return file_uri(path, side) if path is not None else ""
