"""The parts of a pipeline that adapters can reach."""

from __future__ import annotations

from typing import Any

from torch import nn

from lora_mixer.errors import PipelineStateError


def find_components(pipe: Any) -> dict[str, nn.Module]:
    """
    List the modules of a pipeline by name, or a bare module under the name that its class suggests.

    Args:
        pipe: A diffusers pipeline (anything with ``components``), or a ``torch.nn.Module``.

    Raises:
        PipelineStateError: When there is no module in it.
    """
    if isinstance(pipe, nn.Module):
        return {component_name(pipe): unwrap(pipe)}
    table = getattr(pipe, "components", None)
    if not isinstance(table, dict):
        raise PipelineStateError(
            f"expected a diffusers pipeline or a torch.nn.Module, got {type(pipe).__name__}"
        )
    modules = {name: unwrap(part) for name, part in table.items() if isinstance(part, nn.Module)}
    if not modules:
        raise PipelineStateError(f"this {type(pipe).__name__} has no components that are torch modules")
    return modules


def unwrap(module: nn.Module) -> nn.Module:
    """Look through ``torch.compile``'s wrapper."""
    inner = getattr(module, "_orig_mod", module)
    return inner if isinstance(inner, nn.Module) else module


def component_name(module: nn.Module) -> str:
    """Name a bare module as a pipeline would."""
    name = type(unwrap(module)).__name__
    if name.startswith("UNet"):
        return "unet"
    if name.startswith("CLIPText"):
        return "text_encoder"
    if "Transformer" in name and type(unwrap(module)).__module__.startswith("diffusers."):
        return "transformer"
    return "model"
