"""Small UNets with the blocks of SD 1.5 and SDXL, for the tests of block weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from lora_mixer.mixes import BlockLayout, BlockShape, Mix

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SD15 = BlockLayout(
    down=(*[BlockShape(2, 2)] * 3, BlockShape(0, 2)),
    mid=BlockShape(1, 2),
    up=(BlockShape(0, 3), *[BlockShape(3, 3)] * 3),
)
SDXL = BlockLayout(
    down=(BlockShape(0, 2), *[BlockShape(2, 2)] * 2),
    mid=BlockShape(1, 2),
    up=(*[BlockShape(3, 3)] * 2, BlockShape(0, 3)),
)


def build(layout: BlockLayout) -> Any:
    """Build a narrow UNet with the blocks of a layout."""
    torch.manual_seed(0)
    model: Any = UNet2DConditionModel
    return model(
        block_out_channels=(8,) * len(layout.down),
        norm_num_groups=4,
        layers_per_block=2,
        down_block_types=[
            "CrossAttnDownBlock2D" if shape.attentions else "DownBlock2D" for shape in layout.down
        ],
        up_block_types=["CrossAttnUpBlock2D" if shape.attentions else "UpBlock2D" for shape in layout.up],
        cross_attention_dim=8,
        attention_head_dim=4,
        sample_size=8,
    )


def layers(model: torch.nn.Module) -> Iterator[str]:
    """Name the layers that adapters train."""
    for name, module in model.named_modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)):
            yield name


def gain_of(blocks: object, layout: BlockLayout | None = None) -> Callable[[str], float]:
    """Give the function from a layer to its block weight."""
    mix = Mix.of({"a": {"blocks": blocks}})
    return lambda module: mix.gain("a", "unet", module, layout)
