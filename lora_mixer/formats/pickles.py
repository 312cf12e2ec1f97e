"""
PyTorch pickles, only when the caller asked for them, and only through torch's ``weights_only`` loader.

Holds the one place where a pickle is ever opened.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import IO, Any

import torch

from lora_mixer.errors import CorruptFileError, NotAnAdapterError


def load_pickle(stream: IO[bytes], label: str) -> Any:
    """
    Load whatever a pickle holds that torch's restricted loader lets through.

    Raises:
        CorruptFileError: When that loader refuses the file.
    """
    stream.seek(0)
    try:
        return torch.load(stream, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 -- torch.load raises whatever the stream makes it raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        msg = f"{label}: torch.load(weights_only=True) refused the pickle: {reason}; use a safetensors file instead"
        raise CorruptFileError(msg) from None


def read_pickle(stream: IO[bytes], label: str) -> dict[str, torch.Tensor] | list[torch.Tensor]:
    """
    Load a state dict, or cloneofsimo's bare list of tensors, from a ``.pt``/``.bin`` stream.

    Raises:
        CorruptFileError: When torch's restricted loader refuses the file.
        NotAnAdapterError: When it holds neither a dict nor a list of tensors.
    """
    content = load_pickle(stream, label)
    if isinstance(content, Mapping):
        inner = content.get("state_dict")
        content = inner if isinstance(inner, Mapping) else content
        if all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in content.items()):
            return {key: value.detach() for key, value in content.items()}
    if isinstance(content, list) and content and all(isinstance(v, torch.Tensor) for v in content):
        # files of 2022 hold parameters, which want gradients
        return [value.detach() for value in content]
    msg = f"{label}: the pickle holds {type(content).__name__}, expected a state dict or a list of tensors"
    raise NotAnAdapterError(msg)
