"""
What a file is that is not what its name says, by its first bytes: a page, a picture, an archive, another format.

Signatures: https://en.wikipedia.org/wiki/List_of_file_signatures. Texts are told in UTF-8, in UTF-16 and UTF-32 with or
without a byte order mark, and in the encodings of 8 bits: no byte of those is a control character.
"""

from __future__ import annotations

import codecs
import zipfile
from typing import IO

SNIFFED = 512
"""Bytes that are enough to tell: ``tar`` has its name at 257."""

_ARCHIVE = "archive; unpack it, and give the file that is in it"
_PICTURE = "picture, such as a preview; download the file itself"
_SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (b"\x1f\x8b", f"a gzip {_ARCHIVE}"),
    (b"BZh", f"a bzip2 {_ARCHIVE}"),
    (b"\xfd7zXZ\x00", f"an xz {_ARCHIVE}"),
    (b"\x28\xb5\x2f\xfd", f"a zstd {_ARCHIVE}"),
    (b"7z\xbc\xaf\x27\x1c", f"a 7z {_ARCHIVE}"),
    (b"Rar!\x1a\x07", f"a rar {_ARCHIVE}"),
    (b"\x89PNG\r\n\x1a\n", f"a PNG {_PICTURE}"),
    (b"\xff\xd8\xff", f"a JPEG {_PICTURE}"),
    (b"GIF8", f"a GIF {_PICTURE}"),
    (b"RIFF", f"a WebP {_PICTURE}"),
    (b"%PDF", "a PDF; download the file itself"),
    (b"GGUF", "a GGUF file, which is not read here; look for the safetensors file"),
    (b"\x89HDF", "an HDF5 file, which is not read here; look for the safetensors file"),
    (b"\x93NUMPY", "a NumPy file, which is not read here; look for the safetensors file"),
)
_PAGE = "an HTML page; download the file itself"
_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF32_LE, "utf-32-le"), (codecs.BOM_UTF32_BE, "utf-32-be"),
          (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))  # fmt: skip
_UNMARKED = ("utf-8", "utf-16-le", "utf-16-be")
_SHOWN, _TELLING = 40, 8
_HEADER = 8
"""Where the table of a safetensors file begins."""
_DIFFERENT = 4
"""Letters that a text has at least."""


def is_pickle(first: bytes) -> bool:
    """Say whether these are the first bytes of what torch saves: a zip file, or a pickle by itself."""
    return first[:4] == b"PK\x03\x04" or first[:1] == b"\x80"


def other_kind(stream: IO[bytes]) -> str | None:
    """
    Say what a stream is that is neither safetensors nor a pickle, and what to do; None where that cannot be told.

    Args:
        stream: Read from its start, wherever it stands.

    Example:
        >>> import io
        >>> other_kind(io.BytesIO("<html>403</html>".encode("utf-16")))
        'an HTML page; download the file itself'
        >>> other_kind(io.BytesIO(b"GIF89a"))
        'a GIF picture, such as a preview; download the file itself'
    """
    stream.seek(0)
    first = stream.read(SNIFFED)
    if first[:2] == b"PK":
        return _zip_kind(stream)
    if first[257:262] == b"ustar":
        return f"a tar {_ARCHIVE}"
    kind_by_start = next((kind for signature, kind in _SIGNATURES if first.startswith(signature)), None)
    return kind_by_start or text_kind(first)


def text_kind(first: bytes) -> str | None:
    """
    Say what text these first bytes begin, as servers and Git give it in place of a file; None for other bytes.

    Example:
        >>> text_kind("Доступ запрещён".encode())
        "a text ('Доступ запрещён'...); download the file itself"
    """
    text = _decoded(first) if len(first) > 1 else None  # one letter tells nothing
    start = "" if text is None else text.lstrip()
    if not start:
        return None
    if start[0] == "<":
        return _PAGE
    if start.startswith("version https://git-lfs"):
        return "a Git LFS pointer; run `git lfs pull`, or download the file itself"
    if start[0] in "{[":
        return "a JSON text, such as a server's answer that there is no such file; download the file itself"
    return f"a text ({start[:_SHOWN]!r}...); download the file itself"


def _decoded(first: bytes) -> str | None:
    """Return bytes as the text that they are, or None; a character that is cut at their end does not count."""
    marked = next(((mark, name) for mark, name in _MARKS if first.startswith(mark)), None)
    if marked is not None:
        mark, name = marked
        return _read(first[len(mark) :], name)
    names = _UNMARKED if len(first) > _HEADER else _UNMARKED[:1]  # a header's length begins as UTF-16 does
    texts = (_read(first, name) for name in names)
    # nearly any bytes are UTF-16: without a mark it is told by ASCII at its start
    decoded = next((text for text in texts if text and (text[:_TELLING].isascii() or _is_utf8(first))), None)
    if decoded is not None:
        return decoded
    return first.decode("latin-1") if _may_be_letters(first) else None


def _may_be_letters(first: bytes) -> bool:
    """Say whether bytes may be a text in 8 bits: no control characters, and not one byte again and again, or a damaged header."""
    plain = not any(_is_control(chr(byte)) for byte in first)
    return plain and first[_HEADER : _HEADER + 1] != b"{" and len(set(first)) >= _DIFFERENT


def _read(raw: bytes, name: str) -> str | None:
    try:
        text = codecs.getincrementaldecoder(name)().decode(raw)
    except UnicodeDecodeError:
        return None
    return None if any(_is_control(letter) for letter in text) else text


def _is_utf8(raw: bytes) -> bool:
    return _read(raw, "utf-8") is not None


def _is_control(letter: str) -> bool:
    return (letter < " " and letter not in "\t\n\f\r") or letter == "\x7f"


def _zip_kind(stream: IO[bytes]) -> str | None:
    """Tell an archive with files in it from what torch saves, which is one, too."""
    try:
        with zipfile.ZipFile(stream) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return None  # cut, which torch tells
    if any(name.endswith("data.pkl") for name in names):
        return None
    return f"a zip {_ARCHIVE} ({', '.join(map(ascii, names[:3]))})" if names else "an empty zip archive"
