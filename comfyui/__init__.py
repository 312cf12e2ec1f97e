"""
Nodes for ComfyUI: models, adapters with block weights and schedules, mixes, and the base back bit for bit, by lora_mixer.

Put this folder (or a link to it) into ComfyUI's ``custom_nodes`` as ``lora_mixer``, and install lora_mixer into ComfyUI's Python.
"""

from __future__ import annotations

from .nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
