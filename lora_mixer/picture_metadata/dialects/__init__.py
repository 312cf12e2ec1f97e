"""
The forms in which programs write settings into pictures, one file each, in the order in which they are looked for.

A dialect is a name and a function from a picture's texts to settings; it gives None where the picture is not its own,
and adds a note where it is and cannot be read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_mixer.picture_metadata.dialects import (
    a1111,
    comfyui,
    fooocus,
    invokeai,
    lora_manager,
    own,
    sdnext,
    swarm,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lora_mixer.picture_metadata.settings import PictureSettings

    Read = Callable[[Mapping[str, str], list[str]], PictureSettings | None]

# Pictures may have several: the more exact stand first, and infotext's special forms before the plain one.
DIALECTS: Mapping[str, Read] = {
    module.NAME: module.read
    for module in (own, invokeai, swarm, fooocus, lora_manager, sdnext, a1111, comfyui)
}
"""Readers by dialect, in the order of detection."""

__all__ = ["DIALECTS"]
