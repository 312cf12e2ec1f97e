"""
Bytes to tensors: the data section of a safetensors file read whole, in one go.

It is read into one buffer and moved to a device in one copy; tensors are views of it.
"""

from __future__ import annotations

from typing import IO, TYPE_CHECKING, Literal

import torch

from lora_mixer.errors import CorruptFileError
from lora_mixer.formats.header import ITEM_BYTES

if TYPE_CHECKING:
    from lora_mixer.formats.header import Header


def torch_dtype(name: str) -> torch.dtype:
    """Return the dtype of a name in :data:`~lora_mixer.formats.header.ITEM_BYTES`."""
    dtype: torch.dtype = getattr(torch, name)
    return dtype


Memory = Literal["plain", "pinned"]
_PINNED_AT_MOST = 1 << 29
"""Bytes: torch keeps pinned memory for the next time, in powers of two."""


def read_tensors(
    stream: IO[bytes], header: Header, label: str, memory: Memory = "plain"
) -> dict[str, torch.Tensor]:
    """
    Read the whole data section with one read.

    Args:
        stream: The stream that ``header`` came from.
        header: Its checked header.
        label: What to call the file in messages.
        memory: Where to read it; ``pinned`` is for tensors that go on to a GPU: torch keeps that memory from file to file,
            so that no new pages have to be mapped, which takes longer than reading a file that the system has in its cache.

    Returns:
        Tensors by name, views of one buffer (of a copy where a view would be misaligned).
    """
    try:
        buffer = torch.empty(
            header.data_bytes,
            dtype=torch.uint8,
            pin_memory=memory == "pinned" and header.data_bytes <= _PINNED_AT_MOST,
        )
    except RuntimeError:
        raise CorruptFileError(
            f"there is no memory for its {header.data_bytes} bytes of tensors", file=label
        ) from None
    stream.seek(header.data_start)
    got = 0
    # A file changed between the two reads is as damaged as a truncated one.
    view = memoryview(buffer.numpy().data)
    while got < header.data_bytes:
        n = stream.readinto(view[got:])  # type: ignore[attr-defined]
        if not n:
            raise CorruptFileError(
                f"truncated while reading: {got} of {header.data_bytes} bytes came", file=label
            )
        got += n
    return views(buffer, header)


def views(buffer: torch.Tensor, header: Header) -> dict[str, torch.Tensor]:
    """
    Return the tensors of a data section.

    Args:
        buffer: The whole data section as bytes (uint8).
        header: Its checked header.

    Returns:
        Views of the buffer by key; copies where a tensor's place does not fit its dtype.
    """
    typed: dict[str, torch.Tensor] = {}
    tensors: dict[str, torch.Tensor] = {}
    for key, spec in header.tensors.items():
        size = ITEM_BYTES[spec.dtype]
        if spec.start % size:  # an odd header length alone does no harm: processors read unaligned values
            tensors[key] = (
                buffer[spec.start : spec.end].clone().view(torch_dtype(spec.dtype)).view(spec.shape)
            )
            continue
        whole = typed.get(spec.dtype)
        if whole is None:
            whole = typed[spec.dtype] = buffer[: len(buffer) // size * size].view(torch_dtype(spec.dtype))
        stride, strides = 1, []
        for n in reversed(spec.shape):
            strides.append(stride)
            stride *= max(n, 1)
        offset = whole.storage_offset() + spec.start // size
        tensors[key] = whole.as_strided(spec.shape, strides[::-1], offset)
    return tensors
