"""The modules of a model by name, without their weights in memory: to check adapters against, to merge and to extract."""

from __future__ import annotations

import importlib
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lora_mixer.components import DENOISERS
from lora_mixer.errors import SourceNotFoundError
from lora_mixer.families.skeleton import Skeleton
from lora_mixer.formats.container import lazy_tensors
from lora_mixer.parsing.files import place_of
from lora_mixer.parsing.json_text import loose_json
from lora_mixer.pictures.checkpoints import PICKLED, is_checkpoint_name, not_expected, read_checkpoint
from lora_mixer.pictures.loading import config_of, load_pipeline
from lora_mixer.pictures.model_options import DEMO, ModelOptions
from lora_mixer.wording import first_line

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    Tables = dict[str, Callable[[], torch.Tensor]]


def load_outline(model: str | ModelOptions = DEMO, **options: Any) -> Skeleton:
    """
    Build the modules of a pipeline without their weights; each weight is read when it is asked for.

    Args:
        model: As for :func:`~lora_mixer.load_pipeline`; of a file and of a Hub repository only headers and configurations are
            read now.
        options: Likewise.

    Returns:
        Something with ``components``, as a pipeline has, on the meta device.

    Raises:
        SourceNotFoundError: When there is no such model, or its configurations cannot be understood.

    Example:
        >>> sorted(load_outline("demo").components)
        ['text_encoder', 'unet']
    """
    wanted = replace(model, **options) if isinstance(model, ModelOptions) else ModelOptions(model, **options)
    name = wanted.model
    if name == DEMO:
        from lora_mixer.demo import demo_folder

        return of_folder(demo_folder())
    if is_checkpoint_name(name) and not place_of(name).is_dir():
        checkpoint = read_checkpoint(name, allow_pickle=wanted.allow_pickle)
        if checkpoint.kind == "denoiser" and wanted.config is not None:
            outline = of_folder(wanted.config)
        elif checkpoint.kind != "pipeline":
            raise not_expected(checkpoint, "a model")
        else:
            with config_of(checkpoint, wanted.config) as folder:
                outline = of_folder(folder)
        return replace(outline, name=name, tables=_OfFile(wanted))
    if not place_of(name).exists() and name.count("/") == 1:
        return replace(
            of_folder(_downloaded(wanted, "*.json")), name=name, tables=partial(_of_repository, wanted)
        )
    return of_folder(name)


def _downloaded(wanted: ModelOptions, pattern: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(wanted.model, allow_patterns=[pattern], revision=wanted.revision))
    except (OSError, ValueError) as error:
        raise SourceNotFoundError(
            f"is not a folder here, and its {pattern} cannot be had from the Hub: {first_line(error)}",
            file=wanted.model,
        ) from error


def _of_repository(wanted: ModelOptions, part: str) -> Tables:
    return _tensors_in(_downloaded(wanted, f"{part}/*.safetensors") / part)


class _OfFile:
    """
    The weights of a single file by component, named as diffusers names them; loaded at the first look, and once.

    Args:
        wanted: The file, and how it is loaded.
    """

    def __init__(self, wanted: ModelOptions) -> None:
        """Load nothing yet."""
        self._wanted = wanted
        self._pipe: Any = None

    def __call__(self, part: str) -> Tables:
        """Return the tensors of a component, each with a function that gives it."""
        if self._pipe is None:
            # in the file's own type tensors are views of it, and no sum loses anything
            self._pipe = load_pipeline(
                self._wanted, device="cpu", offload="none", fp8=False, dtype=_widest(self._wanted.model)
            )
        module = getattr(self._pipe, part, None)
        state = {} if module is None else module.state_dict()
        return {key: partial(_same, value) for key, value in state.items()}


def _same(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _widest(name: str) -> str:
    """Return the type that holds all numbers of a file."""
    from lora_mixer.formats.header import open_weights, read_header

    place = place_of(name)
    if place.suffix.lower() in PICKLED or place.suffix.lower() == ".gguf":
        return "float32"
    with open_weights(place, name) as stream:
        dtypes = {spec.dtype for spec in read_header(stream, name).tensors.values()}
    halves = dtypes & {"float16", "bfloat16"}
    return next(iter(halves)) if len(halves) == 1 and not dtypes & {"float32", "float64"} else "float32"


def of_folder(folder: str | Path) -> Skeleton:
    """
    Build the modules of a diffusers folder from its configurations.

    Args:
        folder: The folder with ``model_index.json``.

    Returns:
        The denoiser and the text encoders, without weights, which are read when asked for.

    Raises:
        SourceNotFoundError: When there is no such folder, or a configuration cannot be understood.
    """
    root = place_of(folder)
    index = root / "model_index.json"
    if not index.is_file():
        raise SourceNotFoundError(
            "expected a diffusers folder with model_index.json; a Hub model has to be downloaded first",
            file=str(folder),
        )
    components: dict[str, nn.Module] = {}
    try:
        for part, entry in loose_json(index.read_text(encoding="utf-8")).items():
            wanted = part in DENOISERS or part.startswith("text_encoder")
            if wanted and isinstance(entry, list) and entry[0] in ("diffusers", "transformers"):
                components[part] = _from_config(entry[0], entry[1], root / part)
    except (OSError, ValueError, TypeError, AttributeError, LookupError) as error:
        raise SourceNotFoundError(
            f"its configurations cannot be read: {first_line(error)}", file=str(folder)
        ) from error
    if not components:
        raise SourceNotFoundError(
            "model_index.json names no UNet, transformer or text encoder", file=str(folder)
        )
    return Skeleton(str(folder), components, lambda part: _tensors_in(root / part))


def _from_config(library: str, kind: str, folder: Path) -> nn.Module:
    cls: Any = getattr(importlib.import_module(library), kind)
    with torch.device("meta"):
        if library == "diffusers":
            module: nn.Module = cls.from_config(cls.load_config(str(folder)))
            return module
        made: nn.Module = cls(cls.config_class.from_pretrained(str(folder)))
        return made


def _tensors_in(folder: Path) -> dict[str, Callable[[], torch.Tensor]]:
    """List the tensors of a component's safetensors files, each with a function that reads it."""
    table: dict[str, Callable[[], torch.Tensor]] = {}
    files = sorted(folder.glob("*.safetensors"))
    plain = [file for file in files if not {"fp16", "non_ema"} & set(file.name.split("."))]
    for file in plain or files:
        table |= lazy_tensors(file)
    return table
