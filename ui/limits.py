"""What the page takes: less than a script may ask for, since one machine serves all who have it open."""

from __future__ import annotations

from typing import Any

from lora_mixer.pictures import PICTURE_FIELDS

MAX_COUNT = 64
MAX_STEPS = 500
MIN_SIDE = 16
MAX_SIDE = 4096
"""Of pictures, and of what they start from and are masked by."""
MAX_SEED = int(PICTURE_FIELDS["seed"].high or 0) - MAX_COUNT
"""Several pictures have seeds that follow each other."""
MAX_GUIDANCE = 100
NO_SKIP = PICTURE_FIELDS["clip_skip"].infotext_plus
"""People count as AUTOMATIC1111 does: at this no layer is left out."""
NOTHING_MORE: dict[str, Any] = {
    "sampler": "",
    "schedule": "",
    "clip_skip": NO_SKIP,
    "start": "",
    "inpaint": "",
    "strength": 0.6,
    "guide": "",
    "guide_scale": 0.6,
}
"""What the browser keeps beside Gradio's fields, where nothing is said."""


def range_of(name: str) -> tuple[int, int]:
    """Return the least and the largest number that a field of a picture has, of which the page takes all."""
    field = PICTURE_FIELDS[name]
    return int(field.low or 0), int(field.high or 0)
