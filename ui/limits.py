"""What the page takes: less than a script may ask for, since one machine serves all who have it open."""

from __future__ import annotations

from lora_mixer.pictures import PICTURE_FIELDS

MAX_COUNT = 64
MAX_STEPS = 500
MIN_SIDE = 16
MAX_SIDE = 4096
"""Of pictures, and of what they start from and are masked by."""
MAX_SEED = int(PICTURE_FIELDS["seed"].high or 0) - MAX_COUNT
"""Several pictures have seeds that follow each other."""
MAX_GUIDANCE = 100
