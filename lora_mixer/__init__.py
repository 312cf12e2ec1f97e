"""Load, mix and remove LoRA adapters on diffusers pipelines; the base always comes back bit for bit."""
