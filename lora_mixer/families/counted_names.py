"""
Counting modules as cloneofsimo/lora did (2022-23): the N-th Linear inside the target classes.

The order is that of the models of that time: down, up, then mid blocks; in a block ``attn1``, the GEGLU, ``attn2`` in 2022,
``attn1``, ``attn2``, the GEGLU since 2023 (shapes tell which); in a text encoder k, v, q, out.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

_ATTENTION = frozenset({"CrossAttention", "Attention"})
_CLIP_ATTENTION = frozenset({"CLIPAttention", "CLIPSdpaAttention", "CLIPFlashAttention2"})
ORDERS: tuple[tuple[str, ...], ...] = (("attn1", "ff", "attn2"), ("attn1", "attn2", "ff"))
"""The orders of a block's parts in which files are counted; the older first."""
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


def count_modules(
    paths: Iterable[str], classes: Collection[str], order: Collection[str] = ORDERS[0]
) -> list[str] | None:
    """
    List the Linear modules inside ``classes`` in the order of that time.

    Args:
        paths: Dotted paths of all live modules.
        classes: Class names of that time, such as ``CrossAttention``, ``GEGLU``, ``CLIPAttention``.
        order: The order of the parts of a block, one of ``ORDERS``.

    Returns:
        Paths by number, or None where a class name is unknown.
    """
    named = set(classes)
    if not named <= _ATTENTION | _CLIP_ATTENTION | {"GEGLU"}:
        return None
    attention, geglu, clip = bool(_ATTENTION & named), "GEGLU" in named, bool(_CLIP_ATTENTION & named)
    blocks: list[tuple[tuple[int, ...], str]] = []
    layers: list[tuple[int, str]] = []
    for path in paths:
        block, layer = _BLOCK.match(path), _CLIP.match(path)
        if block:
            place = (_SIDE[block[1]], int(block[2] or 0), int(block[3]), int(block[4]))
            blocks.append((place, path))
        elif layer and clip:
            layers.append((int(layer[2]), path))
    modules: list[str] = []
    for _, path in sorted(blocks):
        for part in order:
            if part == "ff" and geglu:
                modules.append(f"{path}.ff.net.0.proj")
            elif part != "ff" and attention:
                modules += [f"{path}.{part}.{name}" for name in _QKV]
    for _, path in sorted(layers):
        modules += [f"{path}.{name}" for name in ("k_proj", "v_proj", "q_proj", "out_proj")]
    return modules
