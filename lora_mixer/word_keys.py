"""Keys of textual inversions, in files of their own or beside a LoRA."""

from __future__ import annotations

import re

# <token> as key (diffusers, cloneofsimo), bundles of OneTrainer and Kohya, and what A1111 writes.
_PARTS = r"clip_l|clip_g|t5(?:xxl)?|emb_params|string_to_param(?:\..*)?"
WORD_KEY = re.compile(
    rf"bundle_emb\.(?P<token>.+?)\.(?:(?P<part>{_PARTS})|(?P<odd>.*))$|(?P<angle><[^>]*>)$"
    r"|(?P<bare>emb_params|string_to_param(?:\..*)?)$"
)
"""With the word (``token``, ``angle`` or ``bare``) and the text encoder or other ``part``."""


def token_of(key: str) -> str | None:
    """
    Say which word a key belongs to, or None for keys of another kind.

    Example:
        >>> token_of("bundle_emb.ohwx.clip_l"), token_of("<s1>"), token_of("lora_unet_conv_in.alpha")
        ('ohwx', '<s1>', None)
    """
    match = WORD_KEY.match(key)
    return next((g for g in match.group("token", "angle", "bare") if g), None) if match else None
