"""Painted masks, kept by their content's digest, so that a mix that names one finds it again."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from lora_mixer.atomic import write_files
from lora_mixer.errors import PictureError
from lora_mixer.mixes import Mask

from . import checks
from .limits import MAX_SIDE

if TYPE_CHECKING:
    from pathlib import Path

    from PIL.Image import Image

_DIGEST = re.compile("[0-9a-f]{64}")
MAX_BYTES = 8 << 20


class Masks(Mapping[str, object]):
    """
    A folder of masks as a mapping of digests to pictures, which ``Mix.of(..., masks=)`` takes.

    Args:
        folder: Where they are; made when the first is put in.
    """

    def __init__(self, folder: Path) -> None:
        """Look at nothing yet."""
        self._folder = folder

    def put(self, picture: Image) -> str:
        """
        Keep a mask.

        Args:
            picture: Grey values; white is where an adapter works.

        Returns:
            Its digest.

        Raises:
            PictureError: When it is too large or empty.
        """
        grey = picture.convert("L")
        if max(grey.size) > MAX_SIDE:
            raise PictureError(f"a mask has at most {MAX_SIDE} pixels a side, got {grey.width}x{grey.height}")
        if not grey.getbbox():
            raise PictureError("nothing is painted: paint where the adapter shall work, then use the mask")
        digest = Mask.of(grey).digest
        path = self._folder / f"{digest}.png"
        if not path.is_file():
            write_files({path: lambda stream: grey.save(stream, format="png")})
        return digest

    def put_values(self, values: Any) -> str:
        """Keep a mask that is given as values from 0 to 1; its digest is the same only where 8 bits say it all."""
        from PIL import Image

        if values.ndim > 2:
            raise PictureError(f"a mask of {len(values)} frames: the page paints masks of one")
        return self.put(Image.fromarray((values * 255).round().astype("uint8")))

    def __getitem__(self, digest: str) -> object:
        """Return a mask's picture."""
        from PIL import Image

        if not _DIGEST.fullmatch(str(digest)):
            raise KeyError(digest)
        path = self._folder / f"{digest}.png"
        if not path.is_file() or path.is_symlink():
            raise KeyError(digest)
        with Image.open(path) as picture:
            return picture.convert("L")

    def __iter__(self) -> Iterator[str]:
        """List the digests."""
        if self._folder.is_dir():
            yield from (path.stem for path in self._folder.glob("*.png") if _DIGEST.fullmatch(path.stem))

    def __len__(self) -> int:
        """Count the masks."""
        return sum(1 for _ in self)


def painted(address: Any) -> Image:
    """
    Read a mask that the page painted.

    Args:
        address: A ``data:image/png;base64,`` address.

    Raises:
        PictureError: When it is not a PNG of a mask's size.
    """
    from PIL import Image

    start = "data:image/png;base64,"
    given = checks.text(address, "mask", MAX_BYTES)
    try:
        if not given.startswith(start):
            raise ValueError("no PNG")  # noqa: TRY301 -- one message for all that is none
        data = base64.b64decode(given[len(start) :], validate=True)
        with Image.open(io.BytesIO(data), formats=("PNG",)) as picture:
            if max(picture.size) > MAX_SIDE:
                raise ValueError("too large")  # noqa: TRY301
            return picture.convert("L")
    except (ValueError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise PictureError(f"the mask is not a PNG of at most {MAX_SIDE} pixels a side") from error
