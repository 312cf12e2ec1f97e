"""How strongly an adapter changes each layer: the Frobenius norm of its weight change at weight 1, without any model."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import singledispatch
from typing import TYPE_CHECKING, Any

from lora_mixer.algorithms.adalora import AdaLora
from lora_mixer.algorithms.frobenius import Product, core_norm, hadamard_norm, hadamard_work, pair_norm
from lora_mixer.algorithms.full import Full
from lora_mixer.algorithms.loha import LoHa
from lora_mixer.algorithms.lokr import LoKr
from lora_mixer.algorithms.lora import LowRank
from lora_mixer.families.telling import TRANSFORMERS
from lora_mixer.formats import check_held, read_source
from lora_mixer.sources import resolve_source

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from lora_mixer.formats.fronts import KeyTarget

_BLOCK = re.compile(
    r"(?:^|[._])(?:(down|up)_blocks[._](\d+)|(mid)_block|(input|output)_blocks[._](\d+)|(middle)_block"
    r"|((?:[a-z]+_){0,8}blocks|layers|(?:[a-z]+_){0,8}refiner)[._](\d+))(?=[._]|$)"
)


WORK_AT_LEAST, WORK_A_NUMBER = 1 << 33, 1 << 12
"""Multiplications that the norms of one file may take: so many, and so many for each number in it."""


@dataclass(frozen=True)
class LayerNorms:
    """
    Norms of an adapter's weight changes.

    Attributes:
        layers: By layer, as the file spells it, with its component before it.
        blocks: By block, such as ``unet down 1`` or ``text_encoder layers 3``: the root of the sum of squares.
        unknown: Layers whose change depends on the base (DoRA, OFT, ...), or whose norm would take longer than its file's
            size allows, by algorithm.

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
    adapter = read_source(resolve_source(source, **options))
    check_held(adapter)
    denoiser = "transformer" if adapter.info.base in TRANSFORMERS else "unet"
    adapter_layers = adapter.layers
    work = WORK_AT_LEAST + WORK_A_NUMBER * sum(
        t.numel() for layer in adapter_layers for t in layer.weights.tensors()
    )
    for layer in adapter_layers:
        norm = change_norm(layer.weights, work)
        if norm is None:
            name = ", ".join(layer.weights.algorithms)
            unknown[name] = unknown.get(name, 0) + 1
            continue
        work -= _norm_work(layer.weights)
        component = _component(layer.target, denoiser)
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


@singledispatch
def change_norm(weights: Any, work: float = math.inf) -> float | None:
    """
    Return the norm of a layer's change at weight 1.

    Args:
        weights: The layer's part of an adapter.
        work: How many multiplications there is time for.

    Returns:
        The norm; None where the change depends on the base, or would take longer than that.
    """
    del weights, work
    return None


@change_norm.register
def _(weights: LowRank, work: float = math.inf) -> float:
    del work
    if weights.mid is not None:
        return core_norm(weights.up.flatten(1), weights.mid, weights.down.flatten(1), weights.scale)
    return pair_norm(weights.up.flatten(1), weights.down.flatten(1), weights.scale)


@change_norm.register
def _(weights: AdaLora, work: float = math.inf) -> float:
    del work
    pair = weights.factors((weights.up.shape[0], weights.down.shape[1]))
    return pair_norm(pair.up, pair.down, pair.scale)


@change_norm.register
def _(weights: Full, work: float = math.inf) -> float:
    del work
    return 0.0 if weights.weight is None else abs(weights.scale) * float(weights.weight.double().norm())


@change_norm.register
def _(weights: LoHa, work: float = math.inf) -> float | None:
    norm = hadamard_norm(*_products(weights), work)
    return None if norm is None else abs(weights.scale) * norm


@change_norm.register
def _(weights: LoKr, work: float = math.inf) -> float:
    del work
    # The norm of a Kronecker product is the product of the norms.
    sides = [
        (weights.w1, weights.w1_a, weights.w1_b, None),
        (weights.w2, weights.w2_a, weights.w2_b, weights.t2),
    ]
    return abs(weights.scale) * math.prod(_factor_norm(*side) for side in sides)


def _factor_norm(
    whole: torch.Tensor | None,
    left: torch.Tensor | None,
    right: torch.Tensor | None,
    core: torch.Tensor | None,
) -> float:
    if whole is not None or left is None or right is None:
        return 0.0 if whole is None else float(whole.double().norm())
    return pair_norm(left, right, 1.0) if core is None else core_norm(left.T, core, right, 1.0)


def _products(weights: LoHa) -> tuple[Product, Product]:
    if weights.t1 is None or weights.t2 is None:
        return Product(weights.w1_a, weights.w1_b), Product(weights.w2_a, weights.w2_b)
    return (
        Product(weights.w1_a.T, weights.w1_b, weights.t1.flatten(2)),
        Product(weights.w2_a.T, weights.w2_b, weights.t2.flatten(2)),
    )


@singledispatch
def _norm_work(weights: Any) -> int:
    """Return what a norm costs beyond what its tensors do."""
    del weights
    return 0


@_norm_work.register
def _(weights: LoHa) -> int:
    return hadamard_work(*_products(weights))


def _component(target: KeyTarget, denoiser: str) -> str:
    return denoiser if target.hint in (None, "denoiser") else target.hint or denoiser
