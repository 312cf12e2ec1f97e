"""
PyTorch pickles, only when the caller asked for them, and only through torch's ``weights_only`` loader.

Holds the one place where a pickle is ever opened.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from typing import IO, Any

import torch

from lora_mixer.errors import CorruptFileError, NotAnAdapterError
from lora_mixer.formats.header import refuse_changed, stamp
from lora_mixer.formats.signatures import is_pickle, other_kind
from lora_mixer.problem import Remedy
from lora_mixer.wording import first_line

_UNPACKED_TIMES = 4
_SHOWN = 8


def load_pickle(stream: IO[bytes], label: str) -> Any:
    """
    Load whatever a pickle holds that torch's restricted loader lets through.

    Raises:
        CorruptFileError: When that loader refuses the file, or its tensors stand for much more than it holds.
        NotAnAdapterError: When it is something else, such as a web page, a picture or an archive.
    """
    kind = other_kind(stream)
    if kind is not None:
        raise NotAnAdapterError(f"not a PyTorch file but {kind}", file=label)
    stream.seek(0)
    first = stream.read(_SHOWN)
    if not is_pickle(first):
        what = f"it begins with the bytes {first.hex(' ')}" if first else "it is empty (0 bytes)"
        raise NotAnAdapterError(f"not a PyTorch file: {what}; download it again", file=label)
    before = stamp(stream)
    _refuse_bomb(stream, label)
    stream.seek(0)
    try:
        content = torch.load(stream, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 -- torch.load raises whatever the stream makes it raise
        reason = first_line(error)
        raise CorruptFileError(
            f"torch.load, which reads weights only, refused the pickle: {reason}; use a safetensors file instead",
            file=label,
        ) from None
    refuse_changed(stream, before, label)
    _refuse_folded(content, stream, label)
    return content


def _refuse_folded(content: Any, stream: IO[bytes], label: str) -> None:
    """Refuse tensors that stand for much more than the file holds: the same few bytes in many places, or under many names."""
    size, whole = stream.seek(0, 2), 0
    waiting = [content]
    while waiting:
        each = waiting.pop()
        if isinstance(each, Mapping):
            waiting.extend(each.values())
        elif isinstance(each, list | tuple):
            waiting.extend(each)
        elif isinstance(each, torch.Tensor) and not each.is_meta and each.layout is torch.strided:
            whole += each.numel() * each.element_size()
    if whole > _UNPACKED_TIMES * size:
        raise CorruptFileError(
            f"its tensors stand for {whole} bytes, more than {_UNPACKED_TIMES} times the {size} that the file has: they lie over "
            "each other",
            file=label,
            remedy=Remedy(
                "save them with .clone(), or as safetensors",
                "save them as safetensors",
                "save them as safetensors",
            ),
        )


def _refuse_bomb(stream: IO[bytes], label: str) -> None:
    """Refuse an archive that unpacks to much more than it is: torch stores tensors as they are, and reads packed ones too."""
    size = stream.seek(0, 2)
    try:
        with zipfile.ZipFile(stream) as archive:
            whole = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return  # an older kind, or broken, which torch tells
    if whole > _UNPACKED_TIMES * size:
        raise CorruptFileError(
            f"a packed archive of {size} bytes that unpacks to {whole}, more than {_UNPACKED_TIMES} times as much",
            file=label,
        )


def read_pickle(
    stream: IO[bytes], label: str
) -> tuple[dict[str, torch.Tensor] | list[torch.Tensor], tuple[str, ...]]:
    """
    Load a state dict, or cloneofsimo's bare list of tensors, from a ``.pt``/``.bin`` stream.

    Returns:
        The tensors, and the names of entries beside them that are none, such as a trainer's settings.

    Raises:
        CorruptFileError: When torch's restricted loader refuses the file.
        NotAnAdapterError: When it holds neither a dict nor a list of tensors.
    """
    content = load_pickle(stream, label)
    if isinstance(content, Mapping):
        inner = content.get("state_dict")
        content = inner if isinstance(inner, Mapping) else content
        tensors = {key: value for key, value in content.items() if isinstance(value, torch.Tensor)}
        if (tensors or not content) and all(isinstance(key, str) for key in content):
            return tensors, tuple(key for key in content if key not in tensors)
    if isinstance(content, list) and content and all(isinstance(v, torch.Tensor) for v in content):
        # files of 2022 hold parameters, which want gradients
        return content, ()
    raise NotAnAdapterError(
        f"the pickle holds {type(content).__name__}, expected a state dict or a list of tensors", file=label
    )
