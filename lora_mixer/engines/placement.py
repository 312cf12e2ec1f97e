"""Bring an adapter's tensors to where its layers live, in few large copies, and check them there."""

from __future__ import annotations

import dataclasses
import math
from itertools import islice
from typing import TYPE_CHECKING

import torch

from lora_mixer.binding.bound_moulds import MouldedBound, PouredLayers
from lora_mixer.errors import InvalidAdapterError
from lora_mixer.problem import Problem, Remedy

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import nn

    from lora_mixer.binding import BoundLayer

_WASTE = 1.5
"""A storage is copied whole when it holds at most this many times the bytes that are needed."""


def copy_to_devices(layers: Sequence[BoundLayer]) -> tuple[BoundLayer, ...]:
    """
    Return the layers with copies of their tensors on the device of the weights that they change.

    The tensors of a file are views of one mapped buffer: it is copied once, not once per tensor. Neither a file that
    changes later nor training steps on a caller's tensors reach a loaded adapter.
    """
    if isinstance(layers, MouldedBound):
        return _poured(layers)
    needed: dict[int, int] = {}
    for layer in layers:
        for tensor in layer.weights.tensors():
            key = tensor.untyped_storage().data_ptr()
            needed[key] = needed.get(key, 0) + tensor.numel() * tensor.element_size()
    moved: dict[tuple[int, torch.device, torch.dtype], torch.Tensor] = {}

    def move(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if not tensor.is_contiguous() or storage.nbytes() > _WASTE * needed[storage.data_ptr()]:
            return tensor.to(device, copy=True)
        key, size = (storage.data_ptr(), device, tensor.dtype), tensor.element_size()
        if key not in moved:
            raw = (storage.data_ptr(), device, torch.uint8)
            if raw not in moved:
                whole = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(storage)
                moved[raw] = whole.to(device, copy=True)
            moved[key] = moved[raw][: storage.nbytes() // size * size].view(tensor.dtype)
        return moved[key].as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())

    def settled(layer: BoundLayer) -> BoundLayer:
        device = compute_device(layer.live.module)
        return dataclasses.replace(layer, weights=layer.weights.map(lambda tensor: move(tensor, device)))

    return tuple(settled(layer) for layer in layers)


def _poured(layers: MouldedBound) -> PouredLayers:
    """Copy a file's data section to each device once; on the CPU it is nobody else's already, unless it is pinned."""
    raw, raws = layers.raw, dict[torch.device, torch.Tensor]()
    where = [compute_device(live.module) for live in layers.lives]
    for device in dict.fromkeys(where):
        stays = device == raw.device and not raw.is_pinned()
        raws[device] = raw if stays else raw.to(device, copy=True, non_blocking=device.type == "cuda")
    return layers.pour(raws, where)


def _all_finite(layers: PouredLayers) -> bool:
    """Say whether the numbers of the files that layers are views of are finite; False where some may be none."""
    if layers.spans is None:
        return False
    peaks = [
        torch.linalg.vector_norm(section.typed(dtype)[start:stop], float("inf"))
        for section in layers.sections
        for dtype, start, stop in layers.spans
    ]
    return all(math.isfinite(float(peak)) for peak in peaks)


def check_finite(layers: Sequence[BoundLayer], source: str) -> None:
    """
    Refuse NaN and Inf: one such value in a blend ruins every picture.

    Raises:
        InvalidAdapterError: Naming the modules.
    """
    if isinstance(layers, PouredLayers) and _all_finite(layers):
        return
    bad: dict[str, None] = {}
    alike: dict[tuple[torch.device, torch.dtype], list[tuple[str, torch.Tensor]]] = {}
    for layer in layers:
        name = f"{layer.live.component}.{layer.live.path}"
        for tensor in layer.weights.tensors():
            if tensor.is_floating_point() and tensor.numel():
                wide = tensor if tensor.dtype.itemsize > 1 else tensor.float()
                alike.setdefault((wide.device, wide.dtype), []).append((name, wide))
    for held in alike.values():
        # the largest magnitude of each tensor, all in a few kernels and one transfer; NaN comes through
        peaks = torch.stack(torch._foreach_norm([t for _, t in held], float("inf")))  # noqa: SLF001
        for (name, _), good in zip(held, torch.isfinite(peaks).tolist(), strict=True):
            if not good:
                bad.setdefault(name)
    if bad:
        raise InvalidAdapterError(
            f"NaN or Inf in {len(bad)} of {len(layers)} modules ({', '.join(list(bad)[:5])}); the training "
            "diverged or the file is damaged.",
            file=source,
            problems=[Problem(name, "holds NaN or Inf") for name in bad],
            remedy=Remedy("allow_nonfinite=True loads it all the same"),
        )


def computes_on_cuda(components: Iterable[nn.Module]) -> bool:
    """Say whether any of these has weights on a GPU, so that tensors of an adapter go there."""
    return any(parameter.is_cuda for part in components for parameter in islice(part.parameters(), 1))


def compute_device(module: nn.Module) -> torch.device:
    """Return the device that a layer computes on, also while its weight is offloaded."""
    weight = module._parameters.get("weight")  # noqa: SLF001 -- ten times faster than getattr
    weight = getattr(module, "weight", None) if weight is None else weight
    if weight is None:  # the owner of a bare parameter
        weight = next(module.parameters(recurse=False), None)
    device = weight.device if isinstance(weight, torch.Tensor) else torch.device("cpu")
    if device.type != "meta":
        return device
    place = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
    return torch.device("cpu" if place is None else f"cuda:{place}" if isinstance(place, int) else place)
