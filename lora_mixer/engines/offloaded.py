"""
Values of tensors that offloading keeps elsewhere while their module does not compute.

A hook on a layer runs once its ``forward`` is over. By then accelerate has put the layer's tensors on meta again, and diffusers'
group offloading to disk has taken the values out of them: what the next call will put there is read where it is kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_mixer.engines.compiling import outside
from lora_mixer.engines.merged.group_files import own_files
from lora_mixer.errors import PipelineStateError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import torch
    from torch import nn


def value_of(module: nn.Module, name: str) -> torch.Tensor | None:
    """
    Return what a parameter or buffer of a module holds when the module computes, wherever that is now.

    Args:
        module: The module that owns it.
        name: Its name there.

    Returns:
        The tensor itself, or what is kept for it; None where the module has none.

    Raises:
        PipelineStateError: When nobody knows where its values are.

    Example:
        >>> import torch
        >>> layer = torch.nn.Linear(2, 2, bias=False)
        >>> value_of(layer, "weight") is layer.weight, value_of(layer, "bias")
        (True, None)
    """
    tensor: torch.Tensor | None = module._parameters.get(name)  # noqa: SLF001 -- ten times faster than getattr
    tensor = module._buffers.get(name) if tensor is None else tensor  # noqa: SLF001
    if tensor is None or not (tensor.device.type == "meta" or _has_group(module)):
        return tensor
    return _read(module, name, tensor)


def _has_group(module: nn.Module) -> bool:
    registry: Any = getattr(module, "_diffusers_hook", None)
    return registry is not None and "group_offloading" in registry.hooks


@outside
def _read(module: nn.Module, name: str, tensor: torch.Tensor) -> torch.Tensor:
    if tensor.device.type != "meta":
        stored = own_files(module).get(id(tensor))
        return tensor if stored is None else stored.read()
    for values in _maps(module):
        if name in values:
            return values[name].to(tensor.dtype)
    raise PipelineStateError(
        f"the {name} of a {type(module).__name__} is on the meta device, and its values are nowhere where offloading keeps "
        "them: set the mix again, or use enable_model_cpu_offload(), which keeps weights in memory"
    )


def is_kept(module: nn.Module, name: str) -> bool:
    """Tell whether accelerate keeps the values of a tensor that is on meta between calls."""
    return any(name in values for values in _maps(module))


def stored_values(module: nn.Module, attribute: str) -> tuple[Any, str] | None:
    """
    Find where accelerate keeps the values of a parameter that is on meta, for writing.

    Returns:
        A table of tensors and the name in it, which may be new to it where the values are on disk; None for unknown places.
    """
    for values in _maps(module):
        table: Any = values
        key = attribute
        while hasattr(table, "prefix"):
            table, key = table.dataset, f"{table.prefix}{key}"
        table = getattr(table, "state_dict", table)
        if isinstance(table, dict):
            return table, key
    return None


def _maps(module: nn.Module) -> Iterator[Mapping[str, torch.Tensor]]:
    hook = getattr(module, "_hf_hook", None)
    for one in getattr(hook, "hooks", (hook,)):
        values = getattr(one, "weights_map", None)
        if values is not None:
            yield values
