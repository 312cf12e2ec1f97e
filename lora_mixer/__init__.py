"""Load, mix and remove LoRA adapters on diffusers pipelines; the base always comes back bit for bit."""

from __future__ import annotations

import lazy_loader

__version__ = "0.1.0"

# The names stand in __init__.pyi. Each is imported at the first look, so that `lora-mixer --help` does not wait for torch.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
