"""Ways of mixing that engines carry out: Composite's passes, K-LoRA's contest."""
