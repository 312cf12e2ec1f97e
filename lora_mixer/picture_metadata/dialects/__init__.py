"""
The forms in which programs write settings into pictures, one file each, in the order in which they are looked for.

A file has a ``DIALECT``, which says all that others know of it.
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
from lora_mixer.picture_metadata.dialects.dialect import Dialect

if TYPE_CHECKING:
    from collections.abc import Mapping

# Pictures may have several: the more exact stand first, and infotext's special forms before the plain one.
DIALECTS: Mapping[str, Dialect] = {
    module.DIALECT.name: module.DIALECT
    for module in (own, invokeai, swarm, fooocus, lora_manager, sdnext, a1111, comfyui)
}
"""All dialects by name, in the order of detection."""

__all__ = ["DIALECTS", "Dialect"]
