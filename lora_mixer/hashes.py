"""
The hashes by which people find an adapter again (A1111, Civitai, kohya).

Computed from the file when first asked for, since a hash reads every byte.
"""

from __future__ import annotations

import hashlib
import json
import os
from typing import IO, TYPE_CHECKING

from lora_mixer.parsing.frozen import LazyMap
from lora_mixer.parsing.json_text import loose_json

if TYPE_CHECKING:
    from collections.abc import Callable

_CHUNK = 1 << 20
_SAMPLED = 1 << 12
"""Bytes of each place of a file that are looked at to tell it from others at little cost."""
_LEGACY_START, _LEGACY_SIZE = 0x100000, 0x10000
NAMES = ("sha256", "autov1", "autov2", "autov3", "sshs_model_hash", "sshs_legacy_hash")


def _digest(stream: IO[bytes], start: int) -> str:
    stream.seek(start)
    digest = hashlib.sha256()
    while chunk := stream.read(_CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


def compute(stream: IO[bytes], data_start: int | None) -> dict[str, str]:
    """
    Compute every hash of a file.

    Args:
        stream: The file.
        data_start: Where the tensors of a safetensors file begin; None for other files, which then have
            no ``autov3``.

    Returns:
        ``sha256`` of the file; ``autov2``, its first 10 digits; ``autov1`` (A1111's old 8 digits of the bytes at
        1 MiB); ``sshs_model_hash`` over the tensors alone, and ``autov3``, its first 12 digits;
        ``sshs_legacy_hash``, AutoV1 of the file as Kohya's scripts hash it: with their own metadata only. Of a range
        without a byte there is no hash: files under 1 MiB have no ``autov1``.
    """
    full = _digest(stream, 0)
    table = {"sha256": full, "autov2": full[:10]}
    legacy = _window(stream, _LEGACY_START)
    if legacy is not None:
        table["autov1"] = legacy
    if data_start is not None and stream.seek(0, os.SEEK_END) > data_start:
        tensors = _digest(stream, data_start)
        table |= {"sshs_model_hash": tensors, "autov3": tensors[:12]}
        legacy_hash = _sshs_legacy(stream, data_start)
        if legacy_hash is not None:
            table["sshs_legacy_hash"] = legacy_hash
    return table


def sample(stream: IO[bytes], data_start: int | None) -> str:
    """
    Digest a little of a file: what differs here differs in every hash, what does not has to be read.

    Args:
        stream: The file.
        data_start: Where the tensors of a safetensors file begin; None for other files.

    Returns:
        A digest of the tensors' size, their beginning, middle and end.

    Example:
        >>> import io
        >>> one, other = io.BytesIO(b"one" * 9000), io.BytesIO(b"one" * 8999 + b"two")
        >>> sample(one, 4) == sample(one, 4), sample(one, 4) == sample(other, 4)
        (True, False)
    """
    start = data_start or 0
    size = max(stream.seek(0, os.SEEK_END) - start, 0)
    digest = hashlib.sha256(str(size).encode())
    for place in (0, size // 2, max(size - _SAMPLED, 0)):
        stream.seek(start + place)
        digest.update(stream.read(_SAMPLED))
    return digest.hexdigest()


def _sshs_legacy(stream: IO[bytes], data_start: int) -> str | None:
    """
    Hash the bytes at 1 MiB of the file as it would be with ``ss_`` metadata alone.

    Only the length of that header matters, and whether it is filled up to 8 bytes, which the safetensors library does
    since 0.3. None where the header itself would reach that far: the order of its entries is nobody's to know.
    """
    stream.seek(8)
    header = loose_json(stream.read(data_start - 8))
    kept = {k: v for k, v in (header.pop("__metadata__", None) or {}).items() if k.startswith("ss_")}
    text = json.dumps({"__metadata__": kept, **header}, separators=(",", ":"), ensure_ascii=False).encode()
    filled = 0 if data_start % 8 else -len(text) % 8
    skipped = _LEGACY_START - 8 - len(text) - filled
    if skipped < 0:
        return None
    return _window(stream, data_start + skipped)


def _window(stream: IO[bytes], start: int) -> str | None:
    """Return AutoV1's digits of the bytes at a place; None where there are none, since all such files would have one hash."""
    stream.seek(start)
    window = stream.read(_LEGACY_SIZE)
    return hashlib.sha256(window).hexdigest()[:8] if window else None


class Hashes(LazyMap[str, str]):
    """
    A mapping of hash names to hex digits that reads the file at the first look.

    Args:
        load: Computes the table; None for sources without bytes of their own.
        sampled: Digests a little of the file, as :func:`sample`; None where that cannot be.
    """

    def __init__(
        self, load: Callable[[], dict[str, str]] | None, sampled: Callable[[], str] | None = None
    ) -> None:
        """Take the functions; nothing is read yet."""
        super().__init__(load or dict)
        self._sampled = sampled

    def may_equal(self, other: Hashes) -> bool:
        """Tell whether two files may have equal tensors; little of them is read."""
        if self._sampled is None or other._sampled is None:
            return True
        return self._sampled() == other._sampled()
