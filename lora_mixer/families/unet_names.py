"""
The names that the original Stable Diffusion code gives to a UNet's modules, derived from the live UNet.

Kohya's SDXL files, ComfyUI and OneTrainer use them. Walking the live blocks in order gives every name exactly, for any
number of blocks and layers, without tables per model.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_TOP = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
_BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)")


def block_prefixes(paths: Iterable[str]) -> dict[str, str]:
    """
    Map each block part of a diffusers UNet to its LDM prefix.

    Args:
        paths: Dotted paths of the live UNet's modules.

    Returns:
        Diffusers prefix to LDM prefix, such as ``down_blocks.1.attentions.0`` to ``input_blocks.4.1``.

    Example:
        >>> block_prefixes(["down_blocks.0.resnets.0.conv1", "down_blocks.0.downsamplers.0.conv"])[
        ...     "down_blocks.0.downsamplers.0.conv"]
        'input_blocks.2.0.op'
    """
    counts: dict[tuple[str, int, str], int] = {}
    for path in paths:
        match = _BLOCK.match(path)
        if match:
            side, block, kind, number = match[1], int(match[2]), match[3], int(match[4])
            key = (side, block, kind)
            counts[key] = max(counts.get(key, 0), number + 1)
    table = dict(_TOP)
    position = 1  # input_blocks.0 is conv_in
    for block in sorted({b for side, b, _ in counts if side == "down"}):
        for i in range(counts.get(("down", block, "resnets"), 0)):
            table[f"down_blocks.{block}.resnets.{i}"] = f"input_blocks.{position}.0"
            table[f"down_blocks.{block}.attentions.{i}"] = f"input_blocks.{position}.1"
            position += 1
        if ("down", block, "downsamplers") in counts:
            table[f"down_blocks.{block}.downsamplers.0.conv"] = f"input_blocks.{position}.0.op"
            position += 1
    position = 0
    for block in sorted({b for side, b, _ in counts if side == "up"}):
        resnets = counts.get(("up", block, "resnets"), 0)
        for i in range(resnets):
            table[f"up_blocks.{block}.resnets.{i}"] = f"output_blocks.{position + i}.0"
            table[f"up_blocks.{block}.attentions.{i}"] = f"output_blocks.{position + i}.1"
        # the upsampler stands behind the attention of the block's last layer, or behind its resnet
        behind = 2 if ("up", block, "attentions") in counts else 1
        table[f"up_blocks.{block}.upsamplers.0.conv"] = (
            f"output_blocks.{position + resnets - 1}.{behind}.conv"
        )
        position += resnets
    return table


def ldm_name(path: str, prefixes: dict[str, str]) -> str | None:
    """Spell one live path as LDM does, or None where LDM has no such module."""
    parts = path.split(".")
    for end in range(len(parts), 0, -1):
        head = prefixes.get(".".join(parts[:end]))
        if head is None:
            continue
        rest = parts[end:]
        if rest and len(parts) > 1 and "resnets" in parts[:end]:
            rest = [_RESNET.get(rest[0], rest[0]), *rest[1:]]
        return ".".join([head, *rest])
    return None
