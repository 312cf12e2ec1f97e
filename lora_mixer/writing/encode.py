"""Values to stored tensors: the dtype that was asked for, shapes as the module has them, nothing that overflows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lora_mixer.algorithms.base import all_finite
from lora_mixer.engines.merged.rounding import write_rounded
from lora_mixer.errors import SaveError

if TYPE_CHECKING:
    from lora_mixer.writing.layers import ModulePlace, NewLayer

DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "float16": torch.float16,
    "fp16": torch.float16,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
}


def as_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """
    Read a dtype as users name it.

    Raises:
        SaveError: When it is none that adapters are stored in.

    Example:
        >>> as_dtype("bf16")
        torch.bfloat16
    """
    kind = DTYPES.get(dtype.removeprefix("torch.")) if isinstance(dtype, str) else dtype
    if dtype is not None and kind not in DTYPES.values():
        raise SaveError(f"dtype must be float32, float16 or bfloat16, got {dtype!r}", argument="dtype")
    return kind


def cast(tensor: torch.Tensor, dtype: torch.dtype | None, place: ModulePlace) -> torch.Tensor:
    """
    Return a tensor in the dtype to store, each value rounded once; None keeps its own.

    Raises:
        SaveError: When finite values do not fit the dtype.
    """
    given = tensor.detach()
    if given.dtype == torch.float64 and dtype is not None:
        stored = torch.empty_like(given, dtype=dtype, device="cpu")
        write_rounded(stored, given.cpu())
    else:
        stored = given.to(dtype or given.dtype)
    if stored.dtype != tensor.dtype and not all_finite(stored) and all_finite(tensor):
        raise SaveError(
            f"values up to {float(tensor.float().abs().max()):.3g} do not fit {dtype}; use bfloat16",
            key=str(place),
        )
    return stored.contiguous()


def shaped_pair(layer: NewLayer, dtype: torch.dtype | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return up and down in the shapes that the module's kind has: kernels for convolutions, else matrices."""
    up, down = (cast(half, dtype, layer.place) for half in layer.pair)
    shape, rank = layer.place.shape, layer.rank
    if len(shape) > 2:
        return up.reshape(shape[0], rank, *[1] * (len(shape) - 2)), down.reshape(rank, *shape[1:])
    return up, down


def shaped_lengths(layer: NewLayer, dtype: torch.dtype | None, *, keep: int) -> torch.Tensor:
    """Return the lengths of a layer's DoRA as a tensor of the weight's axes, all 1 but that of number ``keep``."""
    if layer.lengths is None:
        raise TypeError(f"{layer.place} has no magnitude")
    view = [-1 if axis == keep else 1 for axis in range(len(layer.place.shape))]
    return cast(layer.lengths, dtype, layer.place).reshape(view)
