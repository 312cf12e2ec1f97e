"""Pictures that others start from, kept by their content's digest, with masks brought to their size."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from typing import TYPE_CHECKING, Any

from lora_mixer.atomic import write_files
from lora_mixer.errors import PictureError

from . import checks
from .limits import MAX_SIDE

if TYPE_CHECKING:
    from pathlib import Path

    from PIL.Image import Image

    from .masks import Masks

MAX_TEXT = 48 << 20
"""Characters of an address that a browser sends a picture as."""
_DIGEST = re.compile("[0-9a-f]{64}")
_ADDRESS = re.compile(r"data:image/(?P<kind>png|jpeg|webp);base64,")


class Starts:
    """
    A folder of pictures to start from.

    Args:
        folder: Where they are; made when the first is put in.
        masks: Where painted masks are.
    """

    def __init__(self, folder: Path, masks: Masks) -> None:
        """Look at nothing yet."""
        self._folder, self._masks = folder, masks

    def put(self, picture: Image) -> str:
        """
        Keep a picture.

        Returns:
            Its digest.

        Raises:
            PictureError: When it is too large.
        """
        plain = picture.convert("RGB")
        if max(plain.size) > MAX_SIDE:
            raise PictureError(
                f"The picture has {plain.width} × {plain.height} pixels; at most {MAX_SIDE} a side can be started from."
            )
        digest = hashlib.sha256(f"{plain.size}".encode() + plain.tobytes()).hexdigest()
        self._write(plain, self._folder / f"{digest}.png")
        return digest

    def plain(self) -> Path:
        """Return the file of a grey picture, for what must be given one and shall not hear of it."""
        from PIL import Image

        return self.path(self.put(Image.new("RGB", (64, 64), (128, 128, 128))))

    def has(self, digest: str) -> bool:
        """Say whether a picture is here."""
        return bool(_DIGEST.fullmatch(digest)) and self._file(digest).is_file()

    def path(self, digest: str) -> Path:
        """
        Return a picture's file.

        Raises:
            PictureError: When it is gone.
        """
        if not self.has(digest):
            raise PictureError("The picture to start from is not here any more: choose it again.")
        return self._file(digest)

    def mask_path(self, digest: str, mask: str) -> Path:
        """
        Return the file of a painted mask, at the size of the picture that it is for.

        Raises:
            PictureError: When one of the two is gone.
        """
        from PIL import Image
        from PIL.Image import Resampling

        place = self._folder / digest / f"{mask}.png"
        if place.is_file() and self.has(digest) and _DIGEST.fullmatch(mask):
            return place
        with Image.open(self.path(digest)) as picture:
            size = picture.size
        try:
            painted: Any = self._masks[mask]
        except KeyError as error:
            raise PictureError(
                "The mask of what is made anew is not here any more: paint it again."
            ) from error
        self._write(painted.resize(size, Resampling.LANCZOS), place)
        return place

    def open(self, digest: str) -> Image:
        """
        Return a picture.

        Raises:
            PictureError: When it is gone.
        """
        from PIL import Image

        with Image.open(self.path(digest)) as picture:
            return picture.convert("RGB")

    def _file(self, digest: str) -> Path:
        return self._folder / f"{digest}.png"

    @staticmethod
    def _write(picture: Image, place: Path) -> None:
        if not place.is_file():
            write_files({place: lambda stream: picture.save(stream, format="png")})


def sent(address: Any) -> Image:
    """
    Read a picture that a browser sent.

    Args:
        address: A ``data:image/...;base64,`` address of a PNG, JPEG or WebP.

    Raises:
        PictureError: When it is none, or too large.
    """
    from PIL import Image, ImageOps

    given = checks.text(address, "The picture", MAX_TEXT)
    match = _ADDRESS.match(given)
    try:
        if match is None:
            raise ValueError("no picture")  # noqa: TRY301 -- one message for all that is none
        data = base64.b64decode(given[match.end() :], validate=True)
        with Image.open(io.BytesIO(data), formats=(match["kind"].upper(),)) as picture:
            if max(picture.size) > MAX_SIDE:
                raise ValueError("too large")  # noqa: TRY301
            return ImageOps.exif_transpose(picture).convert("RGB")
    except (ValueError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise PictureError(
            f"This is not a PNG, JPEG or WebP picture of at most {MAX_SIDE} pixels a side."
        ) from error
