"""The forms of block weights: a preset's name, an LBW list, diffusers' nested dict, or layer patterns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from lora_mixer.mixes._reading import list_of, shown
from lora_mixer.mixes.blocks import TREE_KEYS, Blocks, read_tree
from lora_mixer.mixes.lbw import read_lbw
from lora_mixer.mixes.patterns import B_LORA, looks_like_patterns, read_patterns

if TYPE_CHECKING:
    from lora_mixer.mixes._reading import Reading


def read_blocks(spec: object, where: str, reading: Reading) -> Blocks | None:
    """
    Read block weights in any form.

    Args:
        spec: Block weights, a text, a list or a dict.
        where: The path of the entry, for messages.
        reading: Where problems are noted.

    Returns:
        The weights, or None where there was a problem.

    Example:
        >>> from lora_mixer.mixes._reading import Reading
        >>> read_blocks("b-lora:style", "", Reading()).weight("unet", "mid_block.resnets.0.conv1")
        0.0
    """
    if isinstance(spec, Blocks):
        return spec
    if isinstance(spec, (str, list, tuple)):
        name = spec.strip() if isinstance(spec, str) else ""
        return B_LORA[name] if name in B_LORA else read_lbw(spec, where, reading)
    if isinstance(spec, Mapping):
        return _read_dict(spec, where, reading)
    reading.problem(
        where,
        f"expected a preset's name, an LBW list, a dict with {list_of(TREE_KEYS)} or a dict of layer patterns, "
        f"got {shown(spec)}.",
    )
    return None


def _read_dict(spec: Mapping[object, object], where: str, reading: Reading) -> Blocks | None:
    if set(spec) == {"patterns"}:
        return read_patterns(spec["patterns"], f"{where}.patterns", reading)
    if looks_like_patterns(spec):
        return read_patterns(spec, where, reading)
    return read_tree(spec, where, reading)
