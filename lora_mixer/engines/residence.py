"""Bring an adapter's tensors to where its layers live, in few large copies, and check them there."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch

from lora_mixer.errors import InvalidAdapterError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_mixer.binding import BoundLayer

_WASTE = 1.5
"""A storage is copied whole when it holds at most this many times the bytes that are needed."""


def settle(layers: Sequence[BoundLayer]) -> tuple[BoundLayer, ...]:
    """
    Give the layers with copies of their tensors on the device of the weights that they change.

    The tensors of a file are views of one mapped buffer: it is copied once, not once per tensor. Neither a file that
    changes later nor training steps on a caller's tensors reach a loaded adapter.
    """
    needed: dict[int, int] = {}
    for layer in layers:
        for tensor in layer.weights.tensors():
            key = tensor.untyped_storage().data_ptr()
            needed[key] = needed.get(key, 0) + tensor.numel() * tensor.element_size()
    moved: dict[tuple[int, torch.device], torch.Tensor] = {}

    def move(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
        if device.type == "meta":
            return tensor
        storage = tensor.untyped_storage()
        if not tensor.is_contiguous() or storage.nbytes() > _WASTE * needed[storage.data_ptr()]:
            return tensor.to(device, copy=True)
        key = (storage.data_ptr(), device)
        if key not in moved:
            moved[key] = (
                torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(storage).to(device, copy=True)
            )
        start = tensor.storage_offset() * tensor.element_size()
        part = moved[key][start : start + tensor.numel() * tensor.element_size()]
        return part.view(tensor.dtype).view(tensor.shape)

    def settled(layer: BoundLayer) -> BoundLayer:
        device = layer.live.weight.device
        weights: Any = layer.weights
        changed = {
            f.name: move(value, device)
            for f in dataclasses.fields(weights)
            if isinstance(value := getattr(weights, f.name), torch.Tensor)
        }
        return dataclasses.replace(layer, weights=dataclasses.replace(weights, **changed))

    return tuple(settled(layer) for layer in layers)


def check_finite(layers: Sequence[BoundLayer], source: str) -> None:
    """
    Refuse NaN and Inf: one such value in a blend ruins every picture.

    Raises:
        InvalidAdapterError: Naming the modules.
    """
    bad: dict[str, None] = {}
    by_device: dict[torch.device, list[tuple[str, torch.Tensor]]] = {}
    for layer in layers:
        for tensor in layer.weights.tensors():
            by_device.setdefault(tensor.device, []).append(
                (f"{layer.live.component}.{layer.live.path}", tensor)
            )
    for held in by_device.values():
        wide = [t if t.dtype.itemsize > 1 else t.float() for _, t in held]
        # the largest magnitude of each tensor, all in a few kernels and one transfer; NaN comes through
        peaks = torch.stack([n.float() for n in torch._foreach_norm(wide, float("inf"))])  # noqa: SLF001
        for (name, _), good in zip(held, torch.isfinite(peaks).tolist(), strict=True):
            if not good:
                bad.setdefault(name)
    if bad:
        msg = (
            f"{source}: NaN or Inf in {len(bad)} of {len(layers)} modules ({', '.join(list(bad)[:5])}); the training "
            "diverged or the file is damaged. allow_nonfinite=True loads it all the same"
        )
        raise InvalidAdapterError(msg)
