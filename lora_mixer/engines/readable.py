"""The values of weights that cannot be rewritten: quantised ones as their library unpacks them, offloaded ones where they lie."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import nn


def readable(module: nn.Module, attribute: str) -> torch.Tensor | None:
    """
    Return the values of a parameter as the layer computes with them, or None where they cannot be told.

    Args:
        module: The owner.
        attribute: The parameter's name.

    Returns:
        A plain tensor of the parameter's logical shape, in fp32 where it had to be unpacked; what it is in memory where not.

    Example:
        >>> from torch import nn
        >>> readable(nn.Linear(2, 3), "weight").shape
        torch.Size([3, 2])
    """
    parameter: Any = module._parameters.get(attribute)  # noqa: SLF001
    parameter = getattr(module, attribute, None) if parameter is None else parameter
    if parameter is None or parameter.device.type == "meta":
        return None
    data = parameter.data
    if type(data) is torch.Tensor and data.is_floating_point() and not hasattr(parameter, "quant_type"):
        return data.float() if data.dtype.itemsize == 1 else data
    kind = type(parameter).__name__
    if kind == "Params4bit":
        return _four_bits(parameter)
    if kind == "Int8Params":
        return _eight_bits(module)
    if kind == "GGUFParameter":
        from diffusers.quantizers.gguf.utils import dequantize_gguf_tensor

        unpack_gguf: Any = dequantize_gguf_tensor
        unpacked: torch.Tensor = unpack_gguf(parameter)
        return unpacked.as_subclass(torch.Tensor).float()
    unpack = getattr(data, "dequantize", None)
    whole = unpack() if unpack is not None else None
    return whole.float() if isinstance(whole, torch.Tensor) else None


def _four_bits(parameter: Any) -> torch.Tensor | None:
    state = getattr(parameter, "quant_state", None)
    if state is None:  # packed at the first move to a device
        return None
    from bitsandbytes.functional import dequantize_4bit

    whole: torch.Tensor = dequantize_4bit(parameter.data, state)
    return whole.float()


def _eight_bits(module: Any) -> torch.Tensor | None:
    state = getattr(module, "state", None)
    packed, scales = (getattr(module.weight, key, None) for key in ("CB", "SCB"))
    packed = getattr(state, "CB", None) if packed is None else packed
    scales = getattr(state, "SCB", None) if scales is None else scales
    if packed is None or scales is None:
        return None
    whole: torch.Tensor = packed.float() * scales.float().unsqueeze(1) / 127  # (out, in) by (out, 1)
    return whole
