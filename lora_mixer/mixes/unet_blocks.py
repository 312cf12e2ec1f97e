"""Where a layer sits in a UNet or a transformer: its block, read from its dotted path; and which blocks a live model has."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, cast

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Side = Literal["down", "mid", "up"]

_PLACE = re.compile(r"(?:(down|up)_blocks\.(\d+)|(mid)_block)\.(\w+?)(?:\.(\d+))?(?:\.|$)")


@dataclass(frozen=True)
class BlockPosition:
    """
    The place of a layer in a UNet.

    Attributes:
        side: ``down``, ``mid`` or ``up``.
        block: The index of the block on its side.
        kind: ``attentions``, ``resnets``, ``downsamplers``, ...
        index: The index within its kind.
    """

    side: Side
    block: int
    kind: str
    index: int


@lru_cache(maxsize=8192)
def block_position(module: str) -> BlockPosition | None:
    """
    Find the block of a layer.

    Example:
        >>> block_position("up_blocks.1.attentions.2.proj_in")
        BlockPosition(side='up', block=1, kind='attentions', index=2)
        >>> block_position("conv_in") is None
        True
    """
    if not (match := _PLACE.match(module.removeprefix("_orig_mod."))):
        return None
    return BlockPosition(cast("Side", match[1] or match[3]), int(match[2] or 0), match[4], int(match[5] or 0))


_SINGLE = "single_transformer_blocks|single_stream_blocks"
_DOUBLE = (
    "transformer_blocks|joint_transformer_blocks|double_stream_blocks|visual_transformer_blocks|blocks|layers"
    r"|mode_blocks\.\w+"
)
_DEPTH = re.compile(rf"(?:({_SINGLE})|(?:{_DOUBLE}))\.(\d+)(?:\.|$)")


@lru_cache(maxsize=8192)
def depth_of(module: str) -> tuple[Literal["double", "single"], int] | None:
    """
    Find the block of a layer of a transformer.

    Example:
        >>> depth_of("single_transformer_blocks.3.proj_out"), depth_of("blocks.0.attn1.to_q"), depth_of("x_embedder")
        (('single', 3), ('double', 0), None)
    """
    if not (match := _DEPTH.match(module.removeprefix("_orig_mod."))):
        return None
    return ("single" if match[1] else "double"), int(match[2])


@dataclass(frozen=True)
class BlockShape:
    """
    What one block of a UNet holds.

    Attributes:
        attentions: How many transformers.
        resnets: How many residual blocks.

    Example:
        >>> BlockShape(attentions=3, resnets=4).slots
        3
    """

    attentions: int = 0
    resnets: int = 0

    @property
    def slots(self) -> int:
        """How many weights a list for this block has: one for each transformer, or each resnet where there is none."""
        return self.attentions or self.resnets


@dataclass(frozen=True)
class BlockLayout:
    """
    The blocks of a live UNet, against which block weights are checked.

    Attributes:
        down: The down blocks.
        mid: The middle block, or None.
        up: The up blocks.
        double: How many double blocks a transformer has, or blocks where it has one stack only.
        single: How many single blocks.

    Example:
        >>> BlockLayout.from_module_names(["mid_block.attentions.0.proj_in", "up_blocks.0.attentions.2.proj_in"]).up
        (BlockShape(attentions=3, resnets=0),)
    """

    down: tuple[BlockShape, ...] = ()
    mid: BlockShape | None = None
    up: tuple[BlockShape, ...] = ()
    double: int = 0
    single: int = 0

    @classmethod
    def from_module_names(cls, names: Iterable[str]) -> BlockLayout:
        """
        Read the layout off the names of a model's modules.

        Args:
            names: The dotted paths of all modules, as ``named_modules`` gives them.

        Returns:
            The layout; without any down, mid and up block where the model is not a UNet.
        """
        counts: dict[tuple[Side, int], dict[str, int]] = {}
        depth = {"double": 0, "single": 0}
        for name in names:
            if position := depth_of(name):
                depth[position[0]] = max(depth[position[0]], position[1] + 1)
            if place := block_position(name):
                kinds = counts.setdefault((place.side, place.block), {})
                kinds[place.kind] = max(kinds.get(place.kind, 0), place.index + 1)
        shapes = {
            key: BlockShape(kinds.get("attentions", 0), kinds.get("resnets", 0))
            for key, kinds in counts.items()
        }
        sides: dict[Side, tuple[BlockShape, ...]] = {}
        for side in ("down", "up"):
            last = max((block for of, block in shapes if of == side), default=-1)
            sides[side] = tuple(shapes.get((side, block), BlockShape()) for block in range(last + 1))
        return cls(sides["down"], shapes.get(("mid", 0)), sides["up"], depth["double"], depth["single"])

    @property
    def is_unet(self) -> bool:
        """Whether there is any block."""
        return bool(self.down or self.mid or self.up)


def block_layouts(components: Mapping[str, Any]) -> dict[str, BlockLayout]:
    """
    Return the blocks of each component of a pipeline, against which block weights are checked.

    Args:
        components: By name, a module, or the dotted paths of its modules.

    Returns:
        A layout for each component.

    Example:
        >>> block_layouts({"unet": ["mid_block.attentions.0.proj_in"]})["unet"].mid
        BlockShape(attentions=1, resnets=0)
    """
    return {part: BlockLayout.from_module_names(_paths(root)) for part, root in components.items()}


def _paths(root: Any) -> Iterable[str]:
    return (path for path, _ in root.named_modules()) if hasattr(root, "named_modules") else root
