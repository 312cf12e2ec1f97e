"""LoKr: a Kronecker product of two matrices, large ones as pairs (arXiv:2309.14859)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch

from lora_mixer.fresh.config import AdapterConfig
from lora_mixer.fresh.draws import kaiming
from lora_mixer.fresh.kinds.kind import FreshKind, flags, number, one_of, ranks, whole

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lora_mixer.fresh.targets import Target
    from lora_mixer.problem import Problem


@dataclass(frozen=True, kw_only=True)
class LoKrConfig(AdapterConfig):
    """
    Two factors on each target, whose Kronecker product is the change.

    Attributes:
        r: The rank of factors that are pairs; a factor whose sides are small beside it is a whole matrix.
        alpha: The scale is ``alpha / r``.
        rank_pattern: Other ranks by pattern.
        alpha_pattern: Other alphas by pattern.
        decompose_both: Whether the smaller factor may be a pair, too.
        decompose_factor: Into which factor sides are split; -1 splits near the square root.
        use_effective_conv2d: Whether kernels above 1x1 have a core of their own (Tucker).
        init_weights: True begins with w1 = 0, ``"lycoris"`` with w2 = 0, False with neither.
        rank_dropout: Must be 0: rows are not dropped here.
        rank_dropout_scale: Has no meaning without ``rank_dropout``.
        module_dropout: Must be 0: layers are not left out here.

    Example:
        >>> import torch
        >>> from lora_mixer import LoraMixer
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4))
        >>> mixer = LoraMixer(model)
        >>> mixer.add_adapter(LoKrConfig(r=4, target_modules=["0"]), "mine").matched
        1
    """

    peft_type: ClassVar[str] = "LOKR"

    r: int = 8
    alpha: float = 8
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    decompose_both: bool = False
    decompose_factor: int = -1
    use_effective_conv2d: bool = False
    init_weights: bool | str = True
    rank_dropout: float = 0.0
    rank_dropout_scale: bool = False
    module_dropout: float = 0.0


def split(size: int, factor: int) -> tuple[int, int]:
    """
    Split a side into two factors, the smaller first: one of ``factor`` where it divides, else as near to a square as that allows.

    Example:
        >>> split(128, -1), split(127, -1), split(128, 4), split(250, 6), split(128, 64)
        ((8, 16), (1, 127), (4, 32), (5, 50), (64, 2))
    """
    if factor > 0 and size % factor == 0:
        return factor, size // factor
    most = size if factor == -1 else factor
    small, large = 1, size
    while small < large:
        candidate = next(n for n in range(small + 1, size + 1) if size % n == 0)
        if candidate + size // candidate > small + large or candidate > most:
            break
        small, large = candidate, size // candidate
    return min(small, large), max(small, large)


def _problems(config: LoKrConfig) -> Iterator[Problem]:
    yield from whole(config, "r")
    yield from number(config, "alpha")
    yield from number(config, "rank_dropout", "module_dropout", below=1.0)
    yield from ranks(config, "rank_pattern", "alpha_pattern")
    yield from flags(config, "use_effective_conv2d", "decompose_both", "rank_dropout_scale")
    yield from one_of(config, "init_weights", True, False, "lycoris")
    if config.decompose_factor != -1:
        yield from whole(config, "decompose_factor")


def _refuses(_: LoKrConfig, target: Target) -> str | None:
    if target.layer not in ("linear", "conv") or len(target.shape) > 4:
        return "has no place for it: LoKr is for linear layers and convolutions over lines and pictures"
    return None


def _start(config: LoKrConfig, target: Target) -> dict[str, torch.Tensor]:
    rank, shape = target.rank, target.shape
    kernel = shape[2:]
    (rows1, rows2), (columns1, columns2) = (split(side, config.decompose_factor) for side in shape[:2])
    sizes: dict[str, tuple[int, ...]] = {}
    if config.decompose_both and rank < max(rows1, columns1) / 2:
        sizes |= {"w1_a": (rows1, rank), "w1_b": (rank, columns1)}
    else:
        sizes["w1"] = (rows1, columns1)
    if rank >= max(rows2, columns2) / 2:
        sizes["w2"] = (rows2, columns2, *kernel)
    elif config.use_effective_conv2d and any(size > 1 for size in kernel):
        sizes |= {
            "t2": (rank, rank, *kernel, *[1] * (2 - len(kernel))),
            "w2_a": (rank, rows2),
            "w2_b": (rank, columns2),
        }
    else:
        count = columns2
        for size in kernel:
            count *= size
        sizes |= {"w2_a": (rows2, rank), "w2_b": (rank, count)}
    idle = {True: ("w1", "w1_a"), "lycoris": ("w2", "w2_b"), False: ()}[config.init_weights]
    return {
        f".lokr_{name}": torch.zeros(size) if name in idle else kaiming(*size) for name, size in sizes.items()
    }


LOKR = FreshKind(LoKrConfig, _problems, _refuses, _start)
