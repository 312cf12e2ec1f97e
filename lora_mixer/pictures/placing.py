"""Where a loaded pipeline's parts are kept and in which form: offloading, 8 bits, tiles; and the next smaller of these."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from lora_mixer.errors import PictureError
from lora_mixer.problem import Surface, option_text
from lora_mixer.wording import first_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lora_mixer.pictures.model_options import ModelOptions

_OFFLOAD = "_lora_mixer_offload"
"""What a pipeline bears that was offloaded here: the way."""
_DENOISERS = ("unet", "transformer", "transformer_2", "controlnet")


def place(pipe: Any, wanted: ModelOptions, device: torch.device, dtype: torch.dtype) -> Any:
    """
    Put a loaded pipeline where it shall run, with what saves memory there.

    Args:
        pipe: A pipeline in host memory.
        wanted: The options.
        device: Where it runs.
        dtype: What it computes in.

    Returns:
        The same pipeline.

    Raises:
        PictureError: When the pipeline or the device cannot have what is asked.
    """
    vae = getattr(pipe, "vae", None)
    for name, asked in (("tiling", wanted.vae_tiling), ("slicing", wanted.vae_slicing)):
        enable = getattr(vae, f"enable_{name}", None)
        if asked and enable is None:
            raise PictureError(f"the VAE of {type(pipe).__name__} has no {name}", option=f"vae_{name}")
        if asked and enable is not None:
            enable()
    if wanted.fp8:
        store_in_eight_bits(pipe, dtype)
    if wanted.offload == "none":
        return pipe.to(device)
    if device.type == "cpu":
        raise PictureError(
            "parts are kept in host memory, off a GPU; on the CPU they are there already", option="offload"
        )
    return offload(pipe, wanted.offload, device)


def store_in_eight_bits(pipe: Any, dtype: torch.dtype) -> None:
    """
    Store a pipeline's denoisers in float8_e4m3fn; each layer computes in another type (diffusers' layerwise casting).

    Raises:
        PictureError: When a denoiser cannot be stored so.
    """
    denoisers = [module for name in _DENOISERS if (module := getattr(pipe, name, None)) is not None]
    if not denoisers or not all(hasattr(module, "enable_layerwise_casting") for module in denoisers):
        raise PictureError(
            f"{type(pipe).__name__} has no denoiser that can be stored in 8 bits", option="fp8"
        )
    for module in denoisers:
        try:
            module.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=dtype)
        except (ValueError, TypeError, RuntimeError, NotImplementedError) as error:
            raise PictureError(
                f"{type(module).__name__} cannot be stored in 8 bits: {first_line(error)}", option="fp8"
            ) from error


def offload(pipe: Any, way: str, device: torch.device) -> Any:
    """
    Let parts of a pipeline wait in host memory until they run.

    Args:
        pipe: The pipeline.
        way: ``model``: each component; ``group``: each layer, the next one on its way while one computes; ``sequential``: each
            layer, by accelerate's hooks.
        device: Where parts run.

    Returns:
        The same pipeline.
    """
    if way == "model":
        pipe.enable_model_cpu_offload(device=device)
    elif way == "sequential":
        pipe.enable_sequential_cpu_offload(device=device)
    else:
        _offload_groups(pipe, device)
    setattr(pipe, _OFFLOAD, way)
    return pipe


def _offload_groups(pipe: Any, device: torch.device) -> None:
    from diffusers import hooks

    apply: Any = getattr(hooks, "apply_group_offloading")  # noqa: B009 -- not said to be exported
    streams = device.type == "cuda"
    for component in pipe.components.values():
        if isinstance(component, torch.nn.Module):
            apply(
                component,
                onload_device=device,
                offload_device=torch.device("cpu"),
                offload_type="leaf_level",
                use_stream=streams,
            )


def offload_of(pipe: Any) -> str:
    """
    Return the way in which a pipeline was offloaded: ``none``, ``model``, ``group`` or ``sequential``.

    Example:
        >>> from lora_mixer import load_pipeline
        >>> offload_of(load_pipeline("demo", device="cpu"))
        'none'
    """
    if (way := getattr(pipe, _OFFLOAD, None)) is not None:
        return str(way)
    modules = [
        module for module in getattr(pipe, "components", {}).values() if isinstance(module, torch.nn.Module)
    ]
    if any(_is_grouped(part) for module in modules for part in module.modules()):
        return "group"
    if any(getattr(module, "_hf_hook", None) is not None for module in modules):
        leaves = (leaf for module in modules for leaf in module.parameters())
        return "sequential" if any(leaf.device.type == "meta" for leaf in leaves) else "model"
    return "none"


def _is_grouped(module: torch.nn.Module) -> bool:
    registry: Any = getattr(module, "_diffusers_hook", None)
    return registry is not None and registry.get_hook("group_offloading") is not None


@dataclass(frozen=True)
class Smaller:
    """
    A setting that takes less memory.

    Attributes:
        option: The attribute of ``ModelOptions``.
        value: What it is set to; empty where it is a switch.
        keeps_pixels: Whether pictures are the same with it.
        is_on: Tells whether a pipeline has it.
        can: Tells whether a pipeline could have it now.
        apply: Gives it to a pipeline.
    """

    option: str
    value: str
    keeps_pixels: bool
    is_on: Callable[[Any], bool]
    can: Callable[[Any], bool]
    apply: Callable[[Any], object]


def setting_text(option: str, value: str, surface: Surface) -> str:
    """
    Return an option of the model with its value, as a surface writes it.

    Example:
        >>> setting_text("offload", "model", Surface.COMMAND), setting_text("fp8", "", Surface.PYTHON)
        ('--offload model', 'fp8=True')
    """
    if surface is Surface.PLAN:
        return f"{option}: {value or 'true'}"
    if surface is Surface.PYTHON:
        return f"{option}={value!r}" if value else f"{option}=True"
    return f"{option_text(option)} {value}".rstrip()


def _on_gpu(pipe: Any) -> bool:
    return bool(_device_of(pipe).type != "cpu")


def _device_of(pipe: Any) -> torch.device:
    place = getattr(pipe, "_execution_device", None) or getattr(pipe, "device", None)
    return torch.device("cpu" if place is None else place)


def _has_tiles(pipe: Any) -> bool:
    return hasattr(getattr(pipe, "vae", None), "enable_tiling")


SMALLER: tuple[Smaller, ...] = (
    Smaller(
        "offload",
        "model",
        keeps_pixels=True,
        is_on=lambda pipe: offload_of(pipe) != "none",
        can=lambda pipe: _on_gpu(pipe) and hasattr(pipe, "enable_model_cpu_offload"),
        apply=lambda pipe: offload(pipe, "model", _device_of(pipe)),
    ),
    Smaller(
        "vae_tiling",
        "",
        keeps_pixels=False,
        is_on=lambda pipe: bool(getattr(getattr(pipe, "vae", None), "use_tiling", False)),
        can=_has_tiles,
        apply=lambda pipe: pipe.vae.enable_tiling(),
    ),
    Smaller(
        "offload",
        "sequential",
        keeps_pixels=True,
        is_on=lambda pipe: offload_of(pipe) in ("sequential", "group"),
        can=lambda pipe: _on_gpu(pipe) and hasattr(pipe, "enable_sequential_cpu_offload"),
        apply=lambda pipe: offload(pipe, "sequential", _device_of(pipe)),
    ),
)
"""From what costs least to what costs most."""


def smaller_than(pipe: Any, *, keeping_pixels: bool) -> Iterator[Smaller]:
    """Yield the settings that a pipeline has not and could have, in their order."""
    for each in SMALLER:
        if not each.is_on(pipe) and each.can(pipe) and (each.keeps_pixels or not keeping_pixels):
            yield each


def free_memory() -> None:
    """Give what a failed picture left behind back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
