"""The components of a pipeline that a mix knows by name."""

from __future__ import annotations

TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3", "text_encoder_4")
"""The components that ``te`` stands for; they run once, before the denoiser."""

DENOISERS = ("unet", "transformer", "transformer_2", "prior", "model")
"""The components that make pictures step by step; ``model`` is a bare module's name."""

TE = "te"
"""The alias for every text encoder; a component's own name wins over it."""

TEXT_HINTS = frozenset((*TEXT_ENCODERS, "clip_g", "t5", "prior_text_encoder"))
"""What a file says of where a layer is, where it means a text encoder."""

COUNTED = "ordinal:"
"""How spellings begin that count modules instead of naming them: ``ordinal:<classes>:<number>``."""
