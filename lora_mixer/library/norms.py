"""
How strongly an adapter changes each layer: the Frobenius norm of its weight change at weight 1, without any model.

Of a low-rank pair only the small core is computed: ||s B A||^2 = s^2 tr((B^T B)(A A^T)), r x r instead of out x in.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import singledispatch
from typing import TYPE_CHECKING, Any

from lora_mixer.algorithms.adalora import AdaLora
from lora_mixer.algorithms.full import Full
from lora_mixer.algorithms.loha import LoHa
from lora_mixer.algorithms.lokr import LoKr
from lora_mixer.algorithms.lora import LowRank, fold_core
from lora_mixer.formats import read_source
from lora_mixer.sources import resolve_source

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from lora_mixer.formats.names import Target

_BLOCK = re.compile(
    r"(?:^|[._])(?:(down|up)_blocks[._](\d+)|(mid)_block|(input|output)_blocks[._](\d+)|(middle)_block"
    r"|((?:[a-z]+_)*blocks|layers|(?:[a-z]+_)*refiner)[._](\d+))(?=[._]|$)"
)


@dataclass(frozen=True)
class LayerNorms:
    """
    Norms of an adapter's weight changes.

    Attributes:
        layers: By layer, as the file spells it, with its component before it.
        blocks: By block, such as ``unet down 1`` or ``text_encoder layers 3``: the root of the sum of squares.
        unknown: Layers whose change depends on the base (DoRA, OFT, ...), by algorithm.

    Example:
        >>> LayerNorms({"unet.conv_in": 0.5}, {"unet in": 0.5}, {}).blocks
        {'unet in': 0.5}
    """

    layers: Mapping[str, float]
    blocks: Mapping[str, float]
    unknown: Mapping[str, int]


def layer_norms(source: Any, **options: Any) -> LayerNorms:
    """
    Compute how strongly an adapter changes each layer; unlike a description this reads the tensors.

    Args:
        source: As for :func:`lora_mixer.read_adapter`.
        options: The same.

    Returns:
        Norms by layer and by block, in the file's order.

    Raises:
        SourceError: When there is no such file, or several.
        FormatError: When it holds no adapter that can be used.

    Example:
        >>> import torch
        >>> pair = {"lora_unet_mid_block_x.lora_down.weight": torch.eye(2), "lora_unet_mid_block_x.lora_up.weight": torch.eye(2)}
        >>> {block: round(norm, 4) for block, norm in layer_norms(pair).blocks.items()}
        {'unet mid': 1.4142}
    """
    layers: dict[str, float] = {}
    squares: dict[str, float] = {}
    unknown: dict[str, int] = {}
    for layer in read_source(resolve_source(source, **options)).layers:
        norm = change_norm(layer.weights)
        if norm is None:
            name = ", ".join(layer.weights.algorithms)
            unknown[name] = unknown.get(name, 0) + 1
            continue
        component = _component(layer.target)
        layers[f"{component}.{layer.target.module}"] = norm
        block = f"{component} {block_of(layer.target.module)}"
        squares[block] = squares.get(block, 0.0) + norm * norm
    return LayerNorms(layers, {block: math.sqrt(total) for block, total in squares.items()}, unknown)


def block_of(module: str) -> str:
    """
    Name the block of a layer, from any spelling.

    Example:
        >>> block_of("down_blocks.1.attentions.0.proj_in"), block_of("output_blocks_5_1_proj_in"), block_of("conv_in")
        ('down 1', 'output 5', 'other')
        >>> block_of("single_stream_blocks.3.block.attn1.to_q"), block_of("double_stream_blocks.3.block.attn1.to_q")
        ('single_stream_blocks 3', 'double_stream_blocks 3')
    """
    match = _BLOCK.search(module)
    if match is None:
        return "other"
    side, number, mid, half, place, middle, kind, index = match.groups()
    if mid or middle:
        return "mid"
    return f"{side or half or kind} {number or place or index}"


def pair_norm(up: torch.Tensor, down: torch.Tensor, scale: float) -> float:
    """
    Return the Frobenius norm of ``scale * up @ down`` from its core.

    Args:
        up: (out, rank).
        down: (rank, in).
        scale: The factor.

    Example:
        >>> import torch
        >>> up, down = torch.randn(9, 2).double(), torch.randn(2, 7).double()
        >>> math.isclose(pair_norm(up, down, 0.5), (0.5 * up @ down).norm())
        True
    """
    left, right = up.double(), down.double()
    if left.shape[0] * right.shape[1] <= left.shape[1] ** 2:  # the product is smaller than what stands for it
        return abs(scale) * float((left @ right).norm())
    core = ((left.T @ left) * (right @ right.T).T).sum()  # (r, r): the trace of a product
    return abs(scale) * math.sqrt(max(float(core), 0.0))


@singledispatch
def change_norm(weights: Any) -> float | None:
    """
    Return the norm of a layer's change at weight 1.

    Args:
        weights: The layer's part of an adapter.

    Returns:
        The norm; None where the change depends on the base.
    """
    del weights
    return None


@change_norm.register
def _(weights: LowRank) -> float:
    down = weights.down if weights.mid is None else fold_core(weights.mid, weights.down)
    return pair_norm(weights.up.flatten(1), down.flatten(1), weights.scale)


@change_norm.register
def _(weights: AdaLora) -> float:
    pair = weights.factors((weights.up.shape[0], weights.down.shape[1]))
    return pair_norm(pair.up, pair.down, pair.scale)


@change_norm.register
def _(weights: Full) -> float:
    return 0.0 if weights.weight is None else abs(weights.scale) * float(weights.weight.double().norm())


@change_norm.register
def _(weights: LoHa) -> float:
    (a, b), (c, d) = weights._pairs()  # noqa: SLF001 -- its two products
    return abs(weights.scale) * float(((a.double() @ b.double()) * (c.double() @ d.double())).norm())


@change_norm.register
def _(weights: LoKr) -> float:
    # The norm of a Kronecker product is the product of the norms.
    norms = [
        pair_norm(left, right, 1.0) if right is not None else float(left.double().norm())
        for left, right in (weights._left(), weights._right())  # noqa: SLF001
    ]
    return abs(weights.scale) * math.prod(norms)


def _component(target: Target) -> str:
    return "unet" if target.hint in (None, "denoiser") else target.hint or "unet"
