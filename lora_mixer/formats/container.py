"""
Bytes to tensors: the data section of a safetensors file read whole, in one go, or one tensor of it.

It is read into one buffer and moved to a device in one copy; tensors are views of it. Nothing is mapped: a mapped file that is cut or
written anew by another program ends the process (SIGBUS).
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import IO, TYPE_CHECKING, Literal

import torch

from lora_mixer.errors import CorruptFileError
from lora_mixer.formats.header import ITEM_BYTES, open_weights, read_header, refuse_changed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from lora_mixer.formats.header import Header, TensorSpec


def torch_dtype(name: str) -> torch.dtype:
    """Return the dtype of a name in :data:`~lora_mixer.formats.header.ITEM_BYTES`."""
    dtype: torch.dtype = getattr(torch, name)
    return dtype


Memory = Literal["plain", "pinned"]
_PINNED_AT_MOST = 1 << 29
"""Bytes: torch keeps pinned memory for the next time, in powers of two."""
_PIECE = 1 << 24
"""Bytes that one thread reads at least: below that, one does as well."""
_READERS = 4


class FileTensors(Mapping[str, torch.Tensor]):
    """
    The tensors of a data section, each made when it is asked for.

    Args:
        buffer: The whole data section as bytes (uint8).
        header: Its checked header.
    """

    def __init__(self, buffer: torch.Tensor, header: Header) -> None:
        """Make none yet."""
        self.buffer = buffer
        self.header = header
        self._typed: dict[str, torch.Tensor] = {}
        self._made: dict[str, torch.Tensor] = {}

    def __getitem__(self, key: str) -> torch.Tensor:
        """Return a view of the buffer; a copy where a tensor's place does not fit its dtype."""
        made = self._made.get(key)
        if made is None:
            made = self._made[key] = self._make(self.header.tensors[key])
        return made

    def _make(self, spec: TensorSpec) -> torch.Tensor:
        size = ITEM_BYTES[spec.dtype]
        if spec.start % size:  # an odd header length alone does no harm: processors read unaligned values
            piece = self.buffer[spec.start : spec.end].clone()
            return piece.view(torch_dtype(spec.dtype)).view(spec.shape)
        whole = self._typed.get(spec.dtype)
        if whole is None:
            kept = self.buffer[: len(self.buffer) // size * size]
            whole = self._typed[spec.dtype] = kept.view(torch_dtype(spec.dtype))
        stride, strides = 1, []
        for n in reversed(spec.shape):
            strides.append(stride)
            stride *= max(n, 1)
        return whole.as_strided(spec.shape, strides[::-1], whole.storage_offset() + spec.start // size)

    def __contains__(self, key: object) -> bool:
        """Say whether there is one of that name."""
        return key in self.header.tensors

    def __iter__(self) -> Iterator[str]:
        """Yield the names."""
        return iter(self.header.tensors)

    def __len__(self) -> int:
        """Count them."""
        return len(self.header.tensors)


def read_data(stream: IO[bytes], header: Header, label: str, memory: Memory = "plain") -> torch.Tensor:
    """
    Read the whole data section as bytes, in one go or by a few threads.

    Args:
        stream: The stream that ``header`` came from.
        header: Its checked header.
        label: What to call the file in messages.
        memory: Where to read it; ``pinned`` is for tensors that go on to a GPU: torch keeps that memory from file to file,
            so that no new pages have to be mapped, which takes longer than reading a file that the system has in its cache.

    Raises:
        CorruptFileError: When there is no memory for it, or the file is shorter by now.
    """
    total = header.data_bytes
    try:
        buffer = torch.empty(
            total, dtype=torch.uint8, pin_memory=memory == "pinned" and total <= _PINNED_AT_MOST
        )
    except RuntimeError:
        raise CorruptFileError(f"there is no memory for its {total} bytes of tensors", file=label) from None
    view = memoryview(buffer.numpy().data)
    pieces = min(_READERS, total // _PIECE)
    if pieces > 1 and type(stream) is io.BufferedReader and hasattr(os, "preadv"):
        number, size = stream.fileno(), -(-total // pieces)

        def read(start: int) -> int:
            return _fill(view[start : start + size], partial(_read_at, number, header.data_start + start))

        with ThreadPoolExecutor(pieces) as pool:
            got = sum(pool.map(read, range(0, total, size)))
    else:
        stream.seek(header.data_start)
        got = _fill(view, lambda rest, _: stream.readinto(rest))  # type: ignore[attr-defined]
    # A file changed between the two reads is as damaged as a truncated one.
    if got < total:
        raise CorruptFileError(f"truncated while reading: {got} of {total} bytes came", file=label)
    refuse_changed(stream, header.stamp, label)
    return buffer


def _read_at(number: int, start: int, view: memoryview, got: int) -> int:
    return os.preadv(number, [view], start + got)


def _fill(view: memoryview, read: Callable[[memoryview, int], int | None]) -> int:
    """Fill memory by as many reads as it takes; return how many bytes came."""
    got = 0
    while got < len(view):
        n = read(view[got:], got)
        if not n:
            break
        got += n
    return got


def read_tensors(
    stream: IO[bytes], header: Header, label: str, memory: Memory = "plain"
) -> dict[str, torch.Tensor]:
    """
    Read the whole data section.

    Args:
        stream: The stream that ``header`` came from.
        header: Its checked header.
        label: What to call the file in messages.
        memory: Where to read it, as for :func:`read_data`.

    Returns:
        Tensors by name, views of one buffer (of a copy where a view would be misaligned).

    Raises:
        CorruptFileError: As :func:`read_data` does.
    """
    return dict(FileTensors(read_data(stream, header, label, memory), header))


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """
    Read the tensors of a safetensors file.

    Raises:
        SourceError: When it is not there or cannot be read.
        FormatError: When it is damaged, something else, or written to meanwhile.
    """
    with open_weights(path, str(path)) as stream:
        return read_tensors(stream, read_header(stream, str(path)), str(path))


def lazy_tensors(path: Path) -> dict[str, Callable[[], torch.Tensor]]:
    """
    List the tensors of a safetensors file, each with a function that reads it alone.

    Raises:
        SourceError: As :func:`load_tensors`, which the functions do, too.
        FormatError: Likewise.
    """
    with open_weights(path, str(path)) as stream:
        header = read_header(stream, str(path))
    return {key: partial(_read_one, path, header, key) for key in header.tensors}


def _read_one(path: Path, header: Header, key: str) -> torch.Tensor:
    """Read one tensor of a file that has to be as it was when its header was read."""
    spec, label = header.tensors[key], str(path)
    with open_weights(path, label) as stream:
        refuse_changed(stream, header.stamp, label)
        part = replace(
            header,
            tensors={key: spec._replace(start=0, end=spec.end - spec.start)},
            data_start=header.data_start + spec.start,
            data_bytes=spec.end - spec.start,
        )
        return read_tensors(stream, part, label)[key]
