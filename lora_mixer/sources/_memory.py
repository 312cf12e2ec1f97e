"""Adapters that the caller already holds: bytes, open files and state dicts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, BinaryIO

from lora_mixer.errors import SourceError
from lora_mixer.sources._types import AdapterSource

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_mixer.sources._types import Request


def from_bytes(content: bytes, request: Request) -> AdapterSource:
    """Take the bytes of a file."""
    return AdapterSource(label=request.weight_name or f"{len(content)} bytes", weights=content)


def from_open_file(file: BinaryIO, request: Request) -> AdapterSource:
    """
    Read an open file from its start, leave it open, and put its position back.

    Raises:
        SourceError: It was opened for text or cannot be read.
    """
    name = getattr(file, "name", None)
    label = request.weight_name or (name if isinstance(name, str) else f"open {type(file).__name__}")
    # A pipe or a socket cannot go back: what is left of it is all there is.
    position = None
    try:
        position = file.tell() if file.seekable() else None
        if position is not None:
            file.seek(0)
        content: Any = file.read()
    except (OSError, ValueError) as error:
        raise SourceError(
            f"cannot be read: {error}. Pass a file opened with mode 'rb'.", file=str(label)
        ) from error
    finally:
        if position is not None:
            file.seek(position)
    if not isinstance(content, bytes | bytearray | memoryview):
        raise SourceError(
            f"must be open for bytes (got {type(content).__name__}). Open it with mode 'rb'.", file=str(label)
        )
    return AdapterSource(label=label, weights=bytes(content))


def from_state_dict(state: Mapping[Any, Any], request: Request) -> AdapterSource:
    """
    Take a state dict as it is: no copy, and nothing in it is changed.

    Raises:
        SourceError: A key is not a string or a value not a tensor.
    """
    import torch  # whoever holds tensors has it; bytes and files do without

    label = request.weight_name or "state dict"
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            raise SourceError(
                f"expected a mapping of names to tensors (got {type(key).__name__} to {type(value).__name__}). Pass the flat dict, "
                "as safetensors.torch.load_file returns it.",
                file=label,
                key=str(key)[:200],
            )
    return AdapterSource(label=label, weights=state)
