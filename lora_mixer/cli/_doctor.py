"""``lora-mixer doctor``: what is installed, what fits on this machine, and which options make more fit."""

from __future__ import annotations

import json
import platform
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lora_mixer.cli._picture_options import model_options
from lora_mixer.cli._terminal import console, plain
from lora_mixer.extras import EXTRAS, install
from lora_mixer.pictures import DEMO, ModelOptions

if TYPE_CHECKING:
    from collections.abc import Mapping

_PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "safetensors")
_WORK = 1.25
"""What a picture takes beside the weights, roughly, as a factor; the docs have measured figures."""


@model_options("model", "config", "dtype", default=DEMO)
def doctor(
    *,
    options: ModelOptions,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Say what is installed, which devices there are, and whether a model fits on them, with the options that make it fit."""
    facts: dict[str, Any] = {
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": _packages(),
    }
    facts |= {"extras": _extras(), "devices": _devices(), "model": _model(options)}
    facts["advice"] = _advice(facts["devices"], facts["model"])
    if as_json:
        typer.echo(json.dumps(facts))
        return
    out = console()
    out.print(plain(f"Python {facts['python']} on {facts['system']}"), soft_wrap=True)
    out.print(", ".join(f"{name} {version}" for name, version in facts["packages"].items()), soft_wrap=True)
    for name, here in facts["extras"].items():
        if not here:
            out.print(f"extra {name}: not installed ({install(name)})", soft_wrap=True)
    for name, device in facts["devices"].items():
        out.print(
            plain(
                f"{name}: {device['name']}, {device['free'] / 1e9:.1f} of {device['total'] / 1e9:.1f} GB free"
            )
        )
    sizes = ", ".join(f"{part} {size / 1e9:.2f}" for part, size in facts["model"]["parts"].items())
    out.print(plain(f"{facts['model']['name']} in {facts['model']['dtype']}: {sizes} GB"), soft_wrap=True)
    for line in facts["advice"]:
        out.print(plain(line), soft_wrap=True)


def _packages() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    packages = {}
    for name in _PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = "missing"
    return packages


def _extras() -> dict[str, bool]:
    from importlib.util import find_spec

    return {
        name: all(find_spec(module) is not None for module in modules) for name, modules in EXTRAS.items()
    }


def _devices() -> dict[str, dict[str, Any]]:
    import torch

    devices: dict[str, dict[str, Any]] = {}
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        devices[f"cuda:{number}"] = {"name": torch.cuda.get_device_name(number), "free": free, "total": total}
    if torch.backends.mps.is_available():
        total = int(torch.mps.recommended_max_memory())
        devices["mps"] = {"name": "Apple GPU", "free": total, "total": total}
    free, total = _host_memory()
    devices["cpu"] = {"name": f"{torch.get_num_threads()} threads", "free": free, "total": total}
    return devices


def _host_memory() -> tuple[int, int]:
    """Return free and all host memory; 0 where the system does not tell."""
    import os

    try:
        page = os.sysconf("SC_PAGE_SIZE")
        return page * os.sysconf("SC_AVPHYS_PAGES"), page * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 0, 0


def _model(options: ModelOptions) -> dict[str, Any]:
    """Count the weights of the model's denoiser and text encoders by its configuration; nothing is loaded."""
    from lora_mixer.pictures import load_outline

    dtype = "float32" if options.dtype == "auto" and options.model == DEMO else options.dtype
    dtype = "float16" if dtype == "auto" else dtype
    each = 4 if dtype == "float32" else 2
    parts = {
        name: sum(parameter.numel() for parameter in module.parameters()) * each
        for name, module in load_outline(options).components.items()
    }
    return {"name": options.title, "dtype": dtype, "parts": parts}


def _advice(devices: Mapping[str, Mapping[str, Any]], model: Mapping[str, Any]) -> list[str]:
    whole, largest = sum(model["parts"].values()), max(model["parts"].values())
    lines = []
    for name, device in devices.items():
        if device["free"] == 0:
            lines.append(f"{name}: how much memory is free is not told here")
        elif whole * _WORK <= device["free"]:
            lines.append(f"{name}: fits as it is")
        elif name == "cpu":
            lines.append("cpu: does not fit; take a smaller model, or --dtype bfloat16")
        elif largest * _WORK <= device["free"]:
            lines.append(f"{name}: fits with --offload model and --keep-base host")
        else:
            lines.append(f"{name}: fits with --offload sequential, --vae-tiling and --keep-base host only")
    return lines
