"""Adapters in training to PEFT folders: the tensors by the keys that they were read under, with all fields of the configuration."""

from __future__ import annotations

import functools
import json
from typing import IO, TYPE_CHECKING, Any

from lora_mixer.atomic import write_files
from lora_mixer.writing.container import write_safetensors
from lora_mixer.writing.report import SaveReport

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch


def write_trained(folder: Path, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> SaveReport:
    """
    Write a PEFT folder.

    Args:
        folder: Where to.
        tensors: By PEFT's keys.
        config: The configuration; its fields are kept, but for ``inference_mode``, which is true in what is saved.

    Returns:
        The files.

    Raises:
        SaveError: When the disk refuses; what was there before is still there.
    """
    text = json.dumps({**config, "inference_mode": True}, indent=2, sort_keys=True)

    def write_config(stream: IO[bytes]) -> None:
        stream.write(text.encode())

    files = write_files(
        {
            folder / "adapter_config.json": write_config,
            folder / "adapter_model.safetensors": functools.partial(
                write_safetensors, tensors=tensors, metadata={"format": "pt"}
            ),
        }
    )
    return SaveReport(
        files, "peft", {}, notes=(f"{len(tensors)} tensors under the keys that they were read by",)
    )
