"""A contact sheet: bands of labelled rows of square pictures below a line of headings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_mixer.errors import PictureError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

GAP = 4
TEXT_SIZE = 18
_LINE = 24
_PAPER = (255, 255, 255)
_INK = (34, 34, 34)


@dataclass(frozen=True)
class Band:
    """
    Rows under headings of their own; a heading may have two lines.

    Attributes:
        headings: What stands above the columns.
        rows: Each row's label and its pictures, all of one size.

    Example:
        >>> Band(["base", "ink"], []).headings
        ['base', 'ink']
    """

    headings: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Image]]]


def contact_sheet(bands: Sequence[Band]) -> Image:
    """
    Draw the bands below each other; columns are as wide as the pictures, and the labels' as its longest word.

    Args:
        bands: At least one with at least one row; all pictures have one size.

    Returns:
        The sheet (PIL).

    Raises:
        PictureError: When there is no picture.

    Example:
        >>> from PIL import Image
        >>> cell = Image.new("RGB", (128, 128))
        >>> sheet = contact_sheet([Band(["base", "ink"], [("castle", [cell, cell]), ("owl", [cell, cell])])])
        >>> sheet.height, sheet.getpixel((sheet.width - 10, sheet.height - 10))
        (324, (0, 0, 0))
    """
    from PIL import Image, ImageDraw, ImageFont

    cells = [cell for band in bands for _, row in band.rows for cell in row]
    if not cells:
        raise PictureError("expected at least one row with a picture, got none", argument="bands")
    font = ImageFont.load_default(TEXT_SIZE)
    width, height = cells[0].size
    words = [word for band in bands for label, _ in band.rows for word in label.split()]
    left = int(max((font.getlength(word) for word in words), default=0)) + 4 * GAP
    columns = max(len(band.headings) for band in bands)
    head = 2 * _LINE + 3 * GAP
    sheet = Image.new(
        "RGB",
        (
            left + columns * (width + GAP),
            sum(head + len(band.rows) * (height + GAP) for band in bands),
        ),
        _PAPER,
    )
    draw = ImageDraw.Draw(sheet)
    draw.font = font
    top = 0
    for band in bands:
        for column, heading in enumerate(band.headings):
            x = left + column * (width + GAP) + width / 2
            _centred(draw, (x, top + head / 2), heading)
        top += head
        for label, pictures in band.rows:
            _centred(draw, (left / 2, top + height / 2), label.replace(" ", "\n"))
            for column, picture in enumerate(pictures):
                sheet.paste(picture, (left + column * (width + GAP), top))
            top += height + GAP
    return sheet


def _centred(draw: ImageDraw, middle: tuple[float, float], text: str) -> None:
    lines = text.split("\n")
    for number, line in enumerate(lines):
        y = middle[1] + (number - (len(lines) - 1) / 2) * _LINE
        draw.text((middle[0], y), line, fill=_INK, anchor="mm")
