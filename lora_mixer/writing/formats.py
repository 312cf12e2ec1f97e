"""Layers to files in one of the three formats; nothing of a layer is left out without a word."""

from __future__ import annotations

import json
from functools import partial
from typing import IO, TYPE_CHECKING

from lora_mixer.atomic import write_files
from lora_mixer.errors import SaveError
from lora_mixer.formats.names import COMPONENT_KEY
from lora_mixer.formats.peft_config import HEADER_KEY
from lora_mixer.wording import first_of
from lora_mixer.writing.container import write_safetensors
from lora_mixer.writing.kohya import kohya_metadata, to_kohya
from lora_mixer.writing.peft import lora_config, refuse_what_peft_lacks, to_peft
from lora_mixer.writing.read_back import check_written
from lora_mixer.writing.report import SaveReport

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import torch

    from lora_mixer.writing.layers import NewLayer
    from lora_mixer.writing.names import Names
    from lora_mixer.writing.read_back import Locate

    Writers = dict[Path, Callable[[IO[bytes]], None]]

FORMATS = ("diffusers", "kohya", "comfyui", "peft")
WITH_LEAVES = ("kohya", "comfyui")
"""Those that hold every algorithm's own tensors, norms and biases, under the names of the original code."""
WEIGHT_NAME = "pytorch_lora_weights.safetensors"
_PEFT_NAME = "adapter_model.safetensors"


def write_adapter(
    path: Path,
    layers: Sequence[NewLayer],
    names: Names,
    *,
    format: str,  # noqa: A002 -- the name that users give it
    dtype: torch.dtype | None,
    metadata: Mapping[str, str],
    family: str,
    title: str,
    locate: Locate | None = None,
) -> SaveReport:
    """
    Write an adapter, and read it back before it takes its place.

    Args:
        path: A ``.safetensors`` file or a folder; PEFT's format is a folder, with one folder per component inside it
            where there are several.
        layers: What to write.
        names: The spelling of modules.
        format: One of ``FORMATS``.
        dtype: To store in; None keeps each tensor's own.
        metadata: Texts for the header.
        family: The base family.
        title: The adapter's name.
        locate: Finds the modules of an adapter that is read back; None where only its spelling can be compared.

    Returns:
        What was written.

    Raises:
        SaveError: When the format cannot carry a layer, or the disk refuses; the old files are untouched then.
    """
    check_format(format, path)
    if not layers:
        raise SaveError("there is nothing to write: the mix changes no module")
    spelling = {"kohya": names.kohya, "comfyui": names.comfyui}.get(format)
    if format == "peft":
        writers = _peft_folder(path, layers, dtype, metadata)
    else:
        file = path if path.suffix.lower() == ".safetensors" else path / WEIGHT_NAME
        if format in WITH_LEAVES:
            tensors = to_kohya(layers, names, dtype, comfyui=format == "comfyui")
            texts = kohya_metadata(layers, tensors, metadata, family, title) | _which(layers)
        else:
            tensors, texts = _diffusers_file(layers, names, dtype, metadata)
        writers = {file: partial(_safetensors, tensors=tensors, texts=texts)}
    return SaveReport(
        files=write_files(
            writers, check=partial(check_written, layers=layers, spelling=spelling, locate=locate)
        ),
        format=format,
        ranks={str(layer.place): layer.rank for layer in layers},
        errors={str(layer.place): layer.error for layer in layers},
        notes=(
            *_notes(layers),
            *(_warning(layers) if format in WITH_LEAVES else ()),
            *_strengths(layers, format),
        ),
    )


def check_format(format: str, path: Path) -> None:  # noqa: A002
    """
    Refuse a format that there is not, or a file's name for a format that is a folder.

    Raises:
        SaveError: Saying what would do.
    """
    if format not in FORMATS:
        raise SaveError(f"format must be one of {', '.join(FORMATS)}, got {format!r}")
    if format == "peft" and (path.suffix.lower() == ".safetensors" or path.is_file()):
        raise SaveError(
            f"PEFT's format is a folder (adapter_config.json, {_PEFT_NAME}); give a folder's name",
            file=str(path),
        )


def _safetensors(stream: IO[bytes], *, tensors: Mapping[str, torch.Tensor], texts: Mapping[str, str]) -> None:
    write_safetensors(stream, tensors, texts)


def _by_component(layers: Sequence[NewLayer]) -> dict[str, list[NewLayer]]:
    table: dict[str, list[NewLayer]] = {}
    for layer in layers:
        table.setdefault(layer.place.component, []).append(layer)
    return table


def _diffusers_file(
    layers: Sequence[NewLayer], names: Names, dtype: torch.dtype | None, metadata: Mapping[str, str]
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    refuse_what_peft_lacks(layers, "diffusers' format", embeddings=False)
    header: dict[str, object] = {}
    for component, own in _by_component(layers).items():
        # without the root that transformers 5 dropped, an end of the path in every version
        config = lora_config(own, [layer.place.path.removeprefix("text_model.") for layer in own])
        front = "" if component == "model" else f"{component}."
        header |= {f"{front}{field}": value for field, value in config.items()}
    tensors = to_peft(layers, lambda layer: names.diffusers(layer.place), dtype)
    texts = {"format": "pt", **metadata, HEADER_KEY: json.dumps(header, indent=2, sort_keys=True)}
    return tensors, texts


def _which(layers: Sequence[NewLayer]) -> dict[str, str]:
    """Name the denoiser where its names do not: the second of two experts."""
    second = any(layer.place.component == "transformer_2" for layer in layers)
    return {COMPONENT_KEY: "transformer_2"} if second else {}


def _peft_folder(
    path: Path, layers: Sequence[NewLayer], dtype: torch.dtype | None, metadata: Mapping[str, str]
) -> Writers:
    refuse_what_peft_lacks(layers, "PEFT's format", embeddings=True)
    parts = _by_component(layers)
    writers: Writers = {}
    for component, own in parts.items():
        folder = path if len(parts) == 1 else path / component
        fields = lora_config(own, [layer.place.path for layer in own])
        config = {
            "peft_type": "LORA",
            "task_type": None,
            "base_model_name_or_path": None,
            "inference_mode": True,
            "bias": "none",
            "lora_dropout": 0.0,
            "fan_in_fan_out": False,
            "use_rslora": False,
            "use_dora": False,
            **fields,
        }
        text = (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()
        tensors = to_peft(own, lambda layer: f"base_model.model.{layer.place.path}", dtype)
        texts = {"format": "pt", **metadata, COMPONENT_KEY: component}
        writers[folder / _PEFT_NAME] = partial(_safetensors, tensors=tensors, texts=texts)
        writers[folder / "adapter_config.json"] = partial(_write_bytes, content=text)
    return writers


def _write_bytes(stream: IO[bytes], *, content: bytes) -> None:
    stream.write(content)


def _warning(layers: Sequence[NewLayer]) -> tuple[str, ...]:
    if len({layer.alpha for layer in layers if layer.rank}) < 2:
        return ()
    return (
        (
            "alphas differ from module to module, as in the source: diffusers 0.42.1 misreads that in Kohya's format "
            "(format='diffusers' is safe there)"
        ),
    )


def _strengths(layers: Sequence[NewLayer], format: str) -> tuple[str, ...]:  # noqa: A002
    count = sum(layer.lengths is not None for layer in layers)
    if not count:
        return ()
    rule = (
        "straight (dora_scale)"
        if format in WITH_LEAVES
        else "as PEFT's own forward does (lora_magnitude_vector)"
    )
    return (f"{count} modules are DoRA: readers of this format take weights other than 1 {rule}",)


def _notes(layers: Sequence[NewLayer]) -> tuple[str, ...]:
    table: dict[str, list[str]] = {}
    for layer in layers:
        if layer.note:
            table.setdefault(layer.note, []).append(str(layer.place))
    return tuple(f"{note}: {first_of(where, 3)}" for note, where in table.items())
