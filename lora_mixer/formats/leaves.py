"""
The ends of keys: which spelling stands for which part of which algorithm.

A key is ``<module><leaf>``. The rows of :mod:`lora_mixer.algorithms.table` map every leaf that trainers write to a role.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from lora_mixer.algorithms.table import ALGORITHMS

# PEFT leaves the adapter's name in: lora_A.default.weight
_NAME = r"(?:\.(?P<inner>(?!(?:weight|bias)$)[^.]+))?"


@dataclass(frozen=True)
class Leaf:
    """One matched leaf: the part it is, its algorithm, and PEFT's inner adapter name if there is one."""

    role: str
    algorithm: str
    inner: str | None = None
    attn_processor: bool = False
    """Whether the module is spelled as diffusers' old attention processors spell it."""


@cache
def _table() -> tuple[tuple[re.Pattern[str], str, str], ...]:
    """Return (pattern at the end of the key, role, algorithm) of all algorithms; the first match counts."""
    return tuple(
        (re.compile(pattern.replace("<name>", _NAME) + "$"), role, kind.name)
        for kind in ALGORITHMS.values()
        for pattern, role in kind.leaves
    )


_FAST = (  # plain suffixes that make up nearly all real files; the table handles the rest
    (".lora_down.weight", Leaf("down", "lora")),
    (".lora_up.weight", Leaf("up", "lora")),
    (".lora_A.weight", Leaf("down", "lora")),
    (".lora_B.weight", Leaf("up", "lora")),
    (".alpha", Leaf("alpha", "")),
)


def is_part(key: str) -> bool:
    """
    Say whether a key ends like a part of an algorithm; what any may have, such as an alpha, other files have too.

    Example:
        >>> is_part("unet.down.hra_u"), is_part("decoder.act.alpha"), is_part("decoder.conv_in.weight")
        (True, False, False)
    """
    split = split_key(key)
    return split is not None and bool(split[1].algorithm)


def split_key(key: str) -> tuple[str, Leaf] | None:
    """
    Split a key into its module spelling and its leaf.

    Returns:
        The text before the leaf and the leaf, or None where no known leaf ends the key.

    Example:
        >>> split_key("lora_unet_mid_block_attentions_0_proj_in.lora_up.weight")
        ('lora_unet_mid_block_attentions_0_proj_in', Leaf(role='up', algorithm='lora', inner=None, attn_processor=False))
    """
    for suffix, leaf in _FAST:
        if key.endswith(suffix):
            if suffix == ".alpha" and (".lora" in key or "_lora" in key):
                break  # it may be that of a half, which has more of an ending
            return key[: -len(suffix)], leaf
    for pattern, role, algorithm in _table():
        match = pattern.search(key)
        if match:
            groups = match.groupdict()
            part = (groups.get("part") or "").lstrip("_")
            full_role = f"{role}_{part}" if part else role
            old = match.group().startswith("_lora.")
            stream = groups.get("stream")
            spelling = key[: match.start()] + (f"_{stream}" if stream else "")
            if groups.get("modulation"):
                spelling += ".modulation"
            return spelling, Leaf(full_role, algorithm, groups.get("inner"), old)
    return None
