"""Small pictures for cards: decoded with limits and written anew, so that nothing of a stranger's file is ever served."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

from lora_mixer.atomic import write_files
from lora_mixer.errors import LoraMixerError
from lora_mixer.library._walking import within
from lora_mixer.parsing.files import read_regular
from lora_mixer.parsing.image_bounds import most_pixels, open_picture, refuse_heavy_exif

if TYPE_CHECKING:
    from pathlib import Path

    from lora_mixer.library.entry import Entry

SIZES = (64, 1024)
"""The smallest and the largest side."""
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
_FILE_AT_MOST = 64 << 20


class PreviewError(LoraMixerError, ValueError):
    """Why a preview cannot be shown."""


def thumbnail(entry: Entry, folder: Path, size: int, user_folder: Path | None = None) -> Path | None:
    """
    Return a small picture of an entry.

    Args:
        entry: The entry.
        folder: Where small pictures are kept.
        size: The longer side in pixels, brought within :data:`SIZES`.
        user_folder: The folder of previews that the user chose.

    Returns:
        A WebP file in that folder; None where the entry has no picture, or that is away.

    Raises:
        PreviewError: The picture is there and cannot be shown.
    """
    source = entry.preview
    if source is None or entry.offline:
        return None
    if not within(source, entry.root) and (
        user_folder is None or source.parent != user_folder or source.is_symlink()
    ):
        raise PreviewError("leads out of the library's folder", file=str(source))
    try:
        facts = os.stat(source)  # noqa: PTH116 -- one call for both
    except OSError:
        return None
    side = min(max(int(size), SIZES[0]), SIZES[1])
    stamp = hashlib.sha256(
        f"{source}\n{facts.st_size}\n{facts.st_mtime_ns}".encode("utf-8", "replace")
    ).hexdigest()[:16]
    path = folder / f"{entry.id}-{stamp}-{side}.webp"
    if not path.is_file():
        if facts.st_size > _FILE_AT_MOST:
            raise PreviewError(
                f"has {facts.st_size} bytes, at most {_FILE_AT_MOST} are read", file=str(source)
            )
        write(source, path, side)
        for stale in folder.glob(f"{entry.id}-*-{side}.webp"):
            if stale != path:
                stale.unlink(missing_ok=True)
    return path


def _refuse_huge(source: Path, size: int, width: int, height: int) -> None:
    most = most_pixels(size)
    if width * height > most:
        raise PreviewError(
            f"has {width} x {height} pixels, at most {most} are read of a file of {size} bytes",
            file=str(source),
        )


def write(source: Path, path: Path, side: int) -> None:
    """
    Write a picture anew, at most so large.

    Raises:
        PreviewError: When it cannot be read.
    """
    from PIL import ImageOps

    try:
        raw = read_regular(source, _FILE_AT_MOST)
        with open_picture(raw, _FORMATS) as image:
            _refuse_huge(source, len(raw), image.width, image.height)
            image.draft("RGB", (side, side))
            form = "RGBA" if "A" in image.getbands() or "transparency" in image.info else "RGB"
            small = image if image.mode == form else image.convert(form)
            small.thumbnail((side, side))
            refuse_heavy_exif(small)
            small = ImageOps.exif_transpose(small)
    except PreviewError:
        raise
    except Exception as error:  # whatever a decoder meets in a hostile file
        raise PreviewError(
            f"is not a picture that can be read ({type(error).__name__})", file=str(source)
        ) from error
    small.info = {}
    write_files({path: lambda stream: small.save(stream, "WEBP", quality=80)})
