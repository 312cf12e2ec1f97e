"""Where bases go when that is left to the mixer: beside their weights while there is room, else into host memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lora_mixer.engines.merged.kept_weight import KeptWeight

SPARE = 2 << 30
"""Bytes of a device that stay free for what pictures need."""


def find_room(slots: Iterable[KeptWeight]) -> None:
    """Settle for all bases that are about to be kept where they go, by device: all of them beside their weights, or none."""
    fresh: dict[torch.device, dict[int, KeptWeight]] = {}
    for slot in slots:
        if not slot.has_base:
            fresh.setdefault(slot.live.device, {})[id(slot)] = slot
    for device, of_device in fresh.items():
        free = free_bytes(device)
        needed = sum(slot.live.numel() * slot.live.element_size() for slot in of_device.values())
        for slot in of_device.values():
            slot.keep_on = "device" if free is None or needed + SPARE <= free else "host"


def free_bytes(device: torch.device) -> int | None:
    """Return what is free on a device, with what torch has of it and does not use; None where it has no memory of its own."""
    if device.type != "cuda":
        return None
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused
