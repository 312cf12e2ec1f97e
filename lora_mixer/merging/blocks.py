"""
B-LoRA (arXiv:2403.14572): the content of one adapter and the style of another, by two blocks of SDXL's UNet.

Layers of ``up_blocks.0.attentions.0`` carry content, those of ``up_blocks.0.attentions.1`` style; all others are left
out, in text encoders as well.
"""

from __future__ import annotations

CONTENT = "up_blocks.0.attentions.0."
STYLE = "up_blocks.0.attentions.1."


def b_lora_gains(path: str, content: float, style: float) -> tuple[float, float]:
    """
    Give the weights of a content and a style adapter on one layer of the UNet.

    Args:
        path: The layer's path in diffusers' names.
        content: The content adapter's weight.
        style: The style adapter's weight.

    Returns:
        Both weights; 0 where the adapter has no part.

    Example:
        >>> b_lora_gains("up_blocks.0.attentions.1.proj_in", 0.9, 0.7)
        (0.0, 0.7)
    """
    return content if path.startswith(CONTENT) else 0.0, style if path.startswith(STYLE) else 0.0
