"""
Names that modules had in code of an earlier day, from their live paths.

diffusers' first attention processors called a text encoder's projections as a UNet's; AnimateDiff's own code has other
names for the parts of a motion module than diffusers.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_TEXT = {"q_proj": ("to_q",), "k_proj": ("to_k",), "v_proj": ("to_v",), "out_proj": ("to_out.0", "to_out")}
_MOTION = re.compile(r"(.*motion_modules\.\d+)\.(.*)")
_PARTS = (
    (
        re.compile(r"(transformer_blocks\.\d+)\.attn([12])\."),
        lambda m: f"{m[1]}.attention_blocks.{int(m[2]) - 1}.",
    ),
    (re.compile(r"(transformer_blocks\.\d+)\.norm3$"), lambda m: f"{m[1]}.ff_norm"),
    (re.compile(r"(transformer_blocks\.\d+)\.norm([12])$"), lambda m: f"{m[1]}.norms.{int(m[2]) - 1}"),
)


def earlier_names(path: str) -> Iterator[str]:
    """
    Return the earlier names of one live path.

    Example:
        >>> list(earlier_names("down_blocks.0.motion_modules.1.transformer_blocks.0.attn2.to_k"))
        ['down_blocks.0.motion_modules.1.temporal_transformer.transformer_blocks.0.attention_blocks.1.to_k']
        >>> list(earlier_names("encoder.layers.3.self_attn.q_proj"))
        ['encoder.layers.3.self_attn.to_q']
    """
    head, _, last = path.rpartition(".")
    if last in _TEXT and head.endswith("self_attn"):
        yield from (f"{head}.{name}" for name in _TEXT[last])
    motion = _MOTION.fullmatch(path)
    if motion:
        inside = motion[2]
        for pattern, spell in _PARTS:
            inside = pattern.sub(spell, inside)
        yield f"{motion[1]}.temporal_transformer.{inside}"
