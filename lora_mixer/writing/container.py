"""
Tensors to a safetensors file, streamed, with the hashes that belong into its header.

The order of tensors is that of the safetensors library (wider dtypes first, then by name), so files and hashes come
out as its own would. Layout: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import hashlib
import json
from typing import IO, TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
# the library's own ascending order of dtypes; it writes the last first
_ORDER = (
    "BOOL",
    "U8",
    "I8",
    "F8_E5M2",
    "F8_E4M3",
    "I16",
    "F16",
    "BF16",
    "I32",
    "F32",
    "F64",
    "I64",
)
_LEGACY_START, _LEGACY_SIZE = 0x100000, 0x10000


def write_safetensors(
    stream: IO[bytes], tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]
) -> None:
    """
    Write a safetensors file to a stream.

    Args:
        stream: Open for writing.
        tensors: By name, on any device.
        metadata: Free-form texts for the header.

    Example:
        >>> import io
        >>> from safetensors.torch import load
        >>> stream = io.BytesIO()
        >>> write_safetensors(stream, {"a": torch.ones(2)}, {"k": "v"})
        >>> load(stream.getvalue())["a"].tolist()
        [1.0, 1.0]
    """
    stream.write(_header(tensors, metadata))
    for _, tensor in _ordered(tensors):
        stream.write(_bytes(tensor))


def model_hashes(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """
    Compute the hashes that Kohya's trainers write into the header.

    Args:
        tensors: What will be written.
        metadata: The header's texts; only ``ss_*`` count, as in Kohya's own computation.

    Returns:
        ``sshs_model_hash``: SHA-256 of the tensors' bytes. ``sshs_legacy_hash``: the first 8 digits of the SHA-256 of
        64 KiB at 1 MiB of the file that has only ``ss_*`` in its header; a shorter file has none.
    """
    whole, window = hashlib.sha256(), bytearray()
    head = _header(tensors, {key: text for key, text in metadata.items() if key.startswith("ss_")})
    position = 0
    for number, block in enumerate((head, *(_bytes(tensor) for _, tensor in _ordered(tensors)))):
        if number:
            whole.update(block)
        start = max(_LEGACY_START - position, 0)
        end = _LEGACY_START + _LEGACY_SIZE - position
        if end > 0:
            window += block[start:end]
        position += len(block)
    hashes = {"sshs_model_hash": whole.hexdigest()}
    if window:
        hashes["sshs_legacy_hash"] = hashlib.sha256(window).hexdigest()[:8]
    return hashes


def _ordered(tensors: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    def key(name: str) -> tuple[int, bytes]:
        return -_ORDER.index(_DTYPES[tensors[name].dtype]), name.encode()

    yield from ((name, tensors[name]) for name in sorted(tensors, key=key))


def _header(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> bytes:
    table: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for name, tensor in _ordered(tensors):
        end = position + tensor.numel() * tensor.element_size()
        table[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _bytes(tensor: torch.Tensor) -> bytes:
    flat = tensor.detach().to("cpu").contiguous().flatten()
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
