"""Adapters of PEFT to PEFT folders: the tensors by the keys that they were read under, with all fields of the configuration."""

from __future__ import annotations

import functools
import json
from typing import IO, TYPE_CHECKING, Any

import torch

from lora_mixer.algorithms.base import all_finite
from lora_mixer.atomic import write_files
from lora_mixer.errors import SaveError
from lora_mixer.formats.container import read_tensors
from lora_mixer.formats.header import open_weights, read_header
from lora_mixer.problem import Problem, SaveProblem, SaveReason
from lora_mixer.wording import first_of
from lora_mixer.writing.container import write_safetensors
from lora_mixer.writing.report import SaveReport

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def write_peft(
    folder: Path,
    tensors: Mapping[str, torch.Tensor],
    config: Mapping[str, Any],
    *,
    dtype: torch.dtype | None = None,
) -> SaveReport:
    """
    Write a PEFT folder, and read it back before it takes its place.

    Args:
        folder: Where to.
        tensors: By PEFT's keys.
        config: The configuration; its fields are kept, but for ``inference_mode``, which is true in what is saved.
        dtype: To store numbers with a point in; None keeps each tensor's own.

    Returns:
        The files.

    Raises:
        SaveError: When values are NaN or Inf or do not fit the dtype, or the disk refuses; what was there before is still there.
    """
    _refuse_nonfinite(tensors, folder)
    stored = {key: _stored(key, tensor, dtype) for key, tensor in tensors.items()}
    text = json.dumps({**config, "inference_mode": True}, indent=2, sort_keys=True)
    place = folder / "adapter_model.safetensors"

    def write_config(stream: IO[bytes]) -> None:
        stream.write(text.encode())

    def check(files: Mapping[Path, Path]) -> None:
        with open_weights(files[place], str(place)) as stream:
            written = read_tensors(stream, read_header(stream, str(place)), str(place))
        odd = written.keys() ^ stored.keys()
        odd |= {key for key in written.keys() - odd if not torch.equal(written[key], stored[key].cpu())}
        if odd:
            raise SaveError(
                f"{', '.join(sorted(odd)[:3])} came back other than written",
                file=str(place),
                problems=[Problem(key, "came back other than written") for key in sorted(odd)],
            )

    files = write_files(
        {
            folder / "adapter_config.json": write_config,
            place: functools.partial(write_safetensors, tensors=stored, metadata={"format": "pt"}),
        },
        check=check,
    )
    return SaveReport(
        files, "peft", {}, notes=(f"{len(tensors)} tensors under the keys that they were read by",)
    )


def _refuse_nonfinite(tensors: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Refuse NaN and Inf, which would be in the file for good; all keys are named."""
    bad = [key for key, tensor in tensors.items() if tensor.is_floating_point() and not all_finite(tensor)]
    if bad:
        raise SaveError(
            f"NaN or Inf in {len(bad)} of {len(tensors)} tensors ({first_of(bad, 5)}): the training diverged, or the file that they "
            "were read from is damaged; go on from the last checkpoint that was written, at a lower learning rate",
            file=str(folder),
            problems=[SaveProblem(key, SaveReason.VALUES) for key in bad],
        )


def _stored(key: str, tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    value = tensor.detach()
    stored = value.to(dtype) if dtype is not None and value.is_floating_point() else value
    if stored is not value and not all_finite(stored):
        raise SaveError(
            f"values up to {float(value.abs().max()):.3g} do not fit {dtype}; use bfloat16", key=key
        )
    return stored
