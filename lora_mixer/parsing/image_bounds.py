"""What a picture of a stranger's may cost: its pixels, and the values of its EXIF, follow the size of the file."""

from __future__ import annotations

import io
import struct
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

PICTURE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "MPO")
"""What is opened as a picture to work with: none that another program is started for, as for PostScript."""
_PIXELS, _PIXELS_A_BYTE = 3 << 22, 6
_VALUES_TIMES = 4
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}
"""Bytes of a value by TIFF's number of its type."""
_INNER = (0x8769, 0x8825, 0xA005)
"""Tags that hold the place of another table."""
_SCAN, _PADDING = 0xFFDA, (0xFF00, 0xFFFF)


def most_pixels(file_bytes: int) -> int:
    """
    Return how many pixels of a file are decoded: those of a picture of 12 megapixels, and more where the file is large.

    A picture of one colour unpacks to a thousand times its file and more.

    Example:
        >>> most_pixels(100) > 4000 * 3000, most_pixels(100) < 4096 * 4096, most_pixels(6 << 20) > 4096 * 4096
        (True, True, True)
    """
    return _PIXELS + _PIXELS_A_BYTE * file_bytes


def open_picture(raw: bytes, formats: tuple[str, ...] = PICTURE_FORMATS) -> Image:
    """
    Open a picture, which is not decoded yet.

    Raises:
        ValueError: When its tables stand for far more than it holds.
        Exception: What a decoder raises.
    """
    from PIL import Image

    stream = io.BytesIO(raw)
    refuse_heavy_tables(stream)
    return Image.open(stream, formats=formats)


def refuse_heavy_tables(stream: IO[bytes]) -> None:
    """
    Refuse a TIFF, or a JPEG with EXIF, that PIL would take gigabytes for as it opens it; the stream is left at its start.

    Raises:
        ValueError: When the values of its tables lie over each other.
    """
    first = stream.read(4)
    stream.seek(0)
    if first[:2] in (b"II", b"MM"):
        _refuse_overlapping(stream.read(), chained=True)
    elif first[:3] == b"\xff\xd8\xff":
        for tables in _tables_of_jpeg(stream):
            _refuse_overlapping(tables)
    stream.seek(0)


def refuse_heavy_exif(image: Image) -> None:
    """
    Refuse EXIF that PIL would take gigabytes for when somebody asks for it.

    Raises:
        ValueError: When its values lie over each other.
    """
    raw = image.info.get("exif")
    if raw is None and isinstance(text := image.info.get("Raw profile type exif"), str):
        raw = bytes.fromhex("".join(text.split("\n")[3:]))
    if isinstance(raw, bytes):
        _refuse_overlapping(raw.removeprefix(b"Exif\0\0"))


def _tables_of_jpeg(stream: IO[bytes]) -> tuple[bytes, bytes]:
    """Return the EXIF of a JPEG, of all its segments, and the list of its pictures; found as PIL finds them."""
    from PIL.JpegImagePlugin import MARKER

    exif, listed = b"", b""
    stream.seek(2)
    while (letter := stream.read(1)) != b"":
        if letter != b"\xff":
            continue
        while (second := stream.read(1)) == b"\xff":
            pass
        marker = 0xFF00 | int.from_bytes(second, "big")
        if marker in _PADDING or second == b"":
            continue
        if marker not in MARKER:
            break
        if MARKER[marker][2] is not None:
            size = int.from_bytes(stream.read(2), "big") - 2
            held = stream.read(max(size, 0))
            exif += held[6:] if marker == 0xFFE1 and held[:6] == b"Exif\0\0" else b""
            listed = held[4:] if marker == 0xFFE2 and held[:4] == b"MPF\0" else listed
        if marker == _SCAN:
            break
    return exif, listed


def _refuse_overlapping(raw: bytes, *, chained: bool = False) -> None:
    """
    Refuse the tables of a TIFF, of which EXIF is one, where their values come to far more than there are bytes.

    Args:
        raw: The TIFF.
        chained: Whether each table names the next one, as those of several pictures do; in EXIF some write other things there.

    Raises:
        ValueError: When they do, or they are of a newer kind.
    """
    order = {b"II": "<", b"MM": ">"}.get(raw[:2])
    if order is None or len(raw) < 8:
        return
    kind, start = struct.unpack_from(f"{order}HI", raw, 2)
    if kind == 43:
        raise ValueError("BigTIFF is not read")
    waiting, seen, whole = [start], set[int](), 0
    while waiting:
        at = waiting.pop()
        if at in seen or at + 2 > len(raw):
            continue
        seen.add(at)
        count = min(struct.unpack_from(f"{order}H", raw, at)[0], (len(raw) - at - 2) // 12)
        end = at + 2 + 12 * count
        for tag, form, values, place in struct.iter_unpack(f"{order}HHII", raw[at + 2 : end]):
            whole += _SIZES.get(form, 0) * values
            if tag in _INNER:
                waiting.append(place)
        # tables may lie over each other, too
        if whole > _VALUES_TIMES * len(raw) or 12 * count * len(seen) > _VALUES_TIMES * len(raw) + (1 << 20):
            raise ValueError(
                f"the tables in its {len(raw)} bytes stand for far more, since they lie over each other"
            )
        if chained and end + 4 <= len(raw):
            waiting += struct.unpack_from(f"{order}I", raw, end)
