"""A pipeline by name: the embedded demo, a folder or a Hub repository, on a device, in a dtype."""

from __future__ import annotations

import warnings
from typing import Any, Literal

import torch

from lora_mixer.errors import MissingExtraError, PictureError, SourceNotFoundError
from lora_mixer.extras import install

DEMO = "demo"
"""The name of the embedded pipeline."""

_QUANTISERS = ("bitsandbytes", "torchao", "quanto")
"""What messages call the libraries of the extra ``quant``."""

DType = Literal["auto", "float32", "float16", "bfloat16"]


def load_pipeline(model: str = DEMO, *, device: str = "auto", dtype: str = "auto") -> Any:
    """
    Load a diffusers pipeline.

    Args:
        model: ``demo`` for the embedded one, a folder, or the name of a Hub repository.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``, ...
        dtype: ``float32``, ``float16``, ``bfloat16``; ``auto`` is float16 on a GPU, and float32 on the CPU and for the
            demo, which was tested in it.

    Returns:
        The pipeline.

    Raises:
        SourceNotFoundError: When there is no pipeline of that name.
        PictureError: When the device or the dtype cannot be used.
        MissingExtraError: When the pipeline is quantised by a library that is not installed.

    Example:
        >>> type(load_pipeline("demo")).__name__  # doctest: +SKIP
        'StableDiffusionPipeline'
    """
    chosen = _device(device)
    if dtype not in ("auto", "float32", "float16", "bfloat16"):
        raise PictureError(f"dtype must be auto, float32, float16 or bfloat16, got {dtype!r}")
    if model == DEMO:
        from lora_mixer.demo import load_demo

        return load_demo(dtype=None if dtype == "auto" else getattr(torch, dtype), device=chosen)
    from diffusers import DiffusionPipeline

    pipelines: Any = DiffusionPipeline
    half = torch.float32 if chosen.type == "cpu" else torch.float16
    loaded_as = half if dtype == "auto" else getattr(torch, dtype)
    try:
        with warnings.catch_warnings():
            # Named "dtype" in the newest releases only, which still take this one.
            warnings.filterwarnings("ignore", message=".*torch_dtype", category=FutureWarning)
            return pipelines.from_pretrained(model, torch_dtype=loaded_as).to(chosen)
    except ImportError as error:
        if any(library in str(error).lower() for library in _QUANTISERS):
            raise MissingExtraError(
                f"{model!r} is quantised, and the library for that is missing ({error}); "
                f"install it with: {install('quant')}"
            ) from error
        raise
    except (OSError, ValueError, TypeError, AttributeError) as error:
        first_line = str(error).strip().split("\n", 1)[0]
        raise SourceNotFoundError(
            f"the model {model!r} must be 'demo', a folder or a Hub repository with a diffusers pipeline "
            f"(model_index.json), and could not be loaded: {first_line}"
        ) from error


def _device(name: str) -> torch.device:
    if name == "auto":
        accelerator = "mps" if torch.backends.mps.is_available() else "cpu"
        return torch.device("cuda" if torch.cuda.is_available() else accelerator)
    try:
        found = torch.device(name)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise PictureError(
            f"the device {name!r} cannot be used here: {str(error).splitlines()[0]}"
        ) from error
    return found


def own_defaults(model: str) -> dict[str, Any]:
    """
    Give what pictures of a model are best made with, where that is known: the demo's.

    Example:
        >>> own_defaults("demo"), own_defaults("user/repo")
        ({'steps': 20, 'guidance_scale': 3.0}, {})
    """
    if model != DEMO:
        return {}
    from lora_mixer.demo import GUIDANCE_SCALE, STEPS

    return {"steps": STEPS, "guidance_scale": GUIDANCE_SCALE}


def load_outline(model: str = DEMO) -> Any:
    """
    Build the modules of a pipeline without their weights, to check adapters and mixes against.

    Args:
        model: ``demo``, a diffusers folder, or the name of a Hub repository, of which only configurations are read.

    Returns:
        Something with ``components``, as a pipeline has, on the meta device.

    Raises:
        SourceNotFoundError: When there is no such model, or its configurations cannot be understood.

    Example:
        >>> sorted(load_outline("demo").components)
        ['text_encoder', 'unet']
    """
    from pathlib import Path

    from lora_mixer.writing.skeleton import of_folder

    if model == DEMO:
        from lora_mixer.demo import demo_folder

        return of_folder(demo_folder())
    if not Path(model).expanduser().exists() and model.count("/") == 1:
        from huggingface_hub import snapshot_download

        try:
            return of_folder(snapshot_download(model, allow_patterns=["*.json"]))
        except (OSError, ValueError) as error:
            raise SourceNotFoundError(
                f"the model {model!r} is no folder here, and its configurations cannot be had from the Hub: "
                f"{str(error).strip().splitlines()[0]}"
            ) from error
    return of_folder(model)
