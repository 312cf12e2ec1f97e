"""
Counting modules as cloneofsimo/lora did (2022-23): the N-th Linear inside the target classes.

The order is that of the models of that time: down, up, then mid blocks; in a block first ``attn1``, then the GEGLU,
then ``attn2``; in a text encoder k, v, q, out.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

_ATTENTION = frozenset({"CrossAttention", "Attention"})
CANDIDATES: tuple[tuple[str, ...], ...] = (
    ("CrossAttention",),
    ("CrossAttention", "GEGLU"),
    ("CLIPAttention",),
)
"""The class lists that a file without any may have been made with."""

_BLOCK = re.compile(
    r"(down_blocks|up_blocks|mid_block)\.(?:(\d+)\.)?attentions\.(\d+)\.transformer_blocks\.(\d+)$"
)
_CLIP = re.compile(r"(.*)layers\.(\d+)\.self_attn$")
_SIDE = {"down_blocks": 0, "up_blocks": 1, "mid_block": 2}
_QKV = ("to_q", "to_k", "to_v", "to_out.0")


def count_modules(paths: Iterable[str], classes: Collection[str]) -> list[str] | None:
    """
    List the Linear modules inside ``classes`` in the order of that time.

    Args:
        paths: Dotted paths of all live modules.
        classes: Class names of that time, such as ``CrossAttention``, ``GEGLU``, ``CLIPAttention``.

    Returns:
        Paths by number, or None where a class name is unknown.
    """
    if not set(classes) <= _ATTENTION | {"GEGLU", "CLIPAttention"}:
        return None
    attention, geglu, clip = bool(_ATTENTION & set(classes)), "GEGLU" in classes, "CLIPAttention" in classes
    blocks: list[tuple[tuple[int, ...], str]] = []
    layers: list[tuple[int, str]] = []
    for path in paths:
        block, layer = _BLOCK.match(path), _CLIP.match(path)
        if block:
            order = (_SIDE[block[1]], int(block[2] or 0), int(block[3]), int(block[4]))
            blocks.append((order, path))
        elif layer and clip:
            layers.append((int(layer[2]), path))
    found: list[str] = []
    for _, path in sorted(blocks):
        if attention:
            found += [f"{path}.attn1.{name}" for name in _QKV]
        if geglu:
            found.append(f"{path}.ff.net.0.proj")
        if attention:
            found += [f"{path}.attn2.{name}" for name in _QKV]
    for _, path in sorted(layers):
        found += [f"{path}.{name}" for name in ("k_proj", "v_proj", "q_proj", "out_proj")]
    return found
