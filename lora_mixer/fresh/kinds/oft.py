"""OFT: the inputs of a target are rotated block by block (arXiv:2306.07280)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from lora_mixer.fresh.config import AdapterConfig
from lora_mixer.fresh.draws import divisor_near, normal
from lora_mixer.fresh.kinds.kind import FreshKind, flags, number, one_of, whole
from lora_mixer.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lora_mixer.fresh.targets import Target


@dataclass(frozen=True, kw_only=True)
class OFTConfig(AdapterConfig):
    """
    Rotations of blocks of inputs on each target.

    Attributes:
        r: How many blocks; 0 where ``oft_block_size`` says how large they are.
        oft_block_size: Inputs in a block; 0 where ``r`` is given. Where it does not divide, the nearest that does is taken.
        coft: Whether rotations are kept small.
        eps: How small.
        block_share: Whether one rotation serves all blocks.
        use_cayley_neumann: Whether rotations are the polynomial that PEFT trains through, else exact.
        num_cayley_neumann_terms: Terms of the polynomial.
        bias: ``"none"``, ``"oft_only"`` (biases of targets are trained) or ``"all"``.
        init_weights: Whether it begins without an effect.
        module_dropout: Must be 0: layers are not left out here.
        fan_in_fan_out: Whether weights lie as (in, out); found out where an adapter is made.

    Example:
        >>> import torch
        >>> from lora_mixer import LoraMixer
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4))
        >>> mixer = LoraMixer(model)
        >>> mixer.add_adapter(OFTConfig(oft_block_size=2, target_modules=["0"]), "mine").matched
        1
    """

    peft_type: ClassVar[str] = "OFT"

    r: int = 0
    oft_block_size: int = 32
    coft: bool = False
    eps: float = 6e-5
    block_share: bool = False
    use_cayley_neumann: bool = True
    num_cayley_neumann_terms: int = 5
    bias: str = "none"
    init_weights: bool = True
    module_dropout: float = 0.0
    fan_in_fan_out: bool = False


def _problems(config: OFTConfig) -> Iterator[Problem]:
    yield from whole(config, "r", "oft_block_size", least=0)
    yield from whole(config, "num_cayley_neumann_terms")
    yield from number(config, "eps")
    yield from number(config, "module_dropout", below=1.0)
    yield from flags(config, "coft", "block_share", "use_cayley_neumann", "init_weights", "fan_in_fan_out")
    yield from one_of(config, "bias", "none", "oft_only", "all")
    if bool(config.r) == bool(config.oft_block_size):
        yield Problem(
            "r",
            "give the number of blocks (r) or their size (oft_block_size) and set the other to 0, got "
            f"r = {config.r}, oft_block_size = {config.oft_block_size}.",
        )


def _refuses(_: OFTConfig, target: Target) -> str | None:
    if target.layer not in ("linear", "conv"):
        return "has no place for it: OFT is for linear layers and convolutions"
    if target.groups > 1:
        return f"is a convolution in {target.groups} groups, whose inputs have no common blocks"
    return None


def _start(config: OFTConfig, target: Target) -> dict[str, torch.Tensor]:
    columns = target.matrix[1]
    if config.oft_block_size:
        size = divisor_near(columns, config.oft_block_size)
        count = columns // size
    else:
        count = divisor_near(columns, config.r)
        size = columns // count
    shape = (1 if config.block_share else count, size * (size - 1) // 2)
    return {".oft_R.weight": torch.zeros(shape) if config.init_weights else normal(*shape, std=0.1)}


OFT = FreshKind(OFTConfig, _problems, _refuses, _start)
