"""The base that an adapter was made for: what says so, and how it is loaded with the adapter on it."""

from lora_mixer.bases.loading import from_adapter

__all__ = ["from_adapter"]
