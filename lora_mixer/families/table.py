"""
All base families, one row each.

A new family is one row here and one table of spellings in a file of this folder; nothing else has to know of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_mixer.families.flux import CHROMA, FLUX, OVIS
from lora_mixer.families.flux2 import FLUX2, FLUX3
from lora_mixer.families.hunyuan import HUNYUAN_DIT, HUNYUAN_IMAGE, HUNYUAN_VIDEO, HUNYUAN_VIDEO_15
from lora_mixer.families.images import (
    ACE_STEP,
    ANIMA,
    AURAFLOW,
    BRIA_FIBO,
    COSMOS,
    COSMOS3,
    ERNIE_IMAGE,
    GLM_IMAGE,
    HIDREAM,
    KREA2,
    MOTIF,
    OMNIGEN,
    PIXART,
    PRX,
    SANA,
    STABLE_CASCADE,
)
from lora_mixer.families.qwen_image import QWEN_IMAGE
from lora_mixer.families.sd3 import SD3
from lora_mixer.families.unets import SD1, SD2, SDXL, SDXL_REFINER
from lora_mixer.families.video import COGVIDEOX, COGVIEW4, KANDINSKY5, LTX, LTX2, MINIMAX_H3, MOCHI
from lora_mixer.families.wan import WAN
from lora_mixer.families.zimage import IDEOGRAM, LUMINA2, LUMINA_NEXT, ZIMAGE

if TYPE_CHECKING:
    from lora_mixer.families.family import Family

FAMILIES: tuple[Family, ...] = (
    # the first whose marks are found names a file, so the specific stand before those whose names others share
    *(SDXL, SD1, SD2, SDXL_REFINER, STABLE_CASCADE),
    *(
        SD3,
        AURAFLOW,
        CHROMA,
        HIDREAM,
        BRIA_FIBO,
        MOTIF,
        HUNYUAN_IMAGE,
        HUNYUAN_VIDEO_15,
        HUNYUAN_VIDEO,
        OVIS,
        FLUX3,
        FLUX2,
        FLUX,
    ),
    *(KREA2, ANIMA, COSMOS, COSMOS3, SANA, PIXART, MOCHI, MINIMAX_H3, HUNYUAN_DIT, WAN),
    *(
        LUMINA_NEXT,
        IDEOGRAM,
        LUMINA2,
        ZIMAGE,
        QWEN_IMAGE,
        LTX2,
        LTX,
        GLM_IMAGE,
        COGVIEW4,
        COGVIDEOX,
        KANDINSKY5,
    ),
    *(ACE_STEP, OMNIGEN, ERNIE_IMAGE, PRX),
)
"""Every family that is known."""


def family_of_class(name: str) -> Family | None:
    """
    Find the family of a denoiser's class.

    Example:
        >>> family_of_class("Flux2Transformer2DModel").name, family_of_class("Linear")
        ('Flux.2', None)
    """
    known = [
        (len(start), family) for family in FAMILIES for start in family.classes if name.startswith(start)
    ]
    return max(known, key=lambda entry: entry[0])[1] if known else None


def family_named(name: str) -> Family | None:
    """Find a family by its name."""
    return next((family for family in FAMILIES if family.name == name), None)
