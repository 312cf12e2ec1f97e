"""
PiSSA and OLoRA as they were trained: pairs that started from a part of the base, which training took out of it.

Training began with W - P beside the pair, P the pair's own product at the start, so what such a file does to the user's W
is s B A - P:

* PiSSA (arXiv:2404.02948): P = U_r S_r V_r^T, the largest singular values of W.
* OLoRA (arXiv:2406.01775): P = s Q_r R_r of W = Q R.

P is worked out from the base anew. At other weights than 1 PEFT scales the pair only, since P has left the base for good:
W + m s B A - P; at weight 0 it is the base, as for every adapter. Files that were converted when they were saved are plain
pairs and say so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from lora_mixer.algorithms.base import LayerWeights
from lora_mixer.algorithms.lora import LowRank

if TYPE_CHECKING:
    from lora_mixer.algorithms.base import ModuleTensors

Start = Literal["pissa", "olora"]


def started_from(
    start: Start, base: torch.Tensor, rank: int, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Return the part of a base that a pair starts from, as a product of (out, rank) and (rank, in).

    Args:
        start: Which part.
        base: The clean base (out, in), fp32 or fp64.
        rank: The rank of the pair.
        scale: What the pair's product is multiplied by.

    Example:
        >>> left, right = started_from("pissa", torch.diag(torch.tensor([3.0, 2.0, 1.0])), 2, 1.0)
        >>> torch.allclose(left @ right, torch.diag(torch.tensor([3.0, 2.0, 0.0])), atol=1e-5)
        True
    """
    if start == "pissa":
        left, values, right = torch.linalg.svd(base, full_matrices=False)
        return left[:, :rank] * values[:rank], right[:rank]
    left, right = torch.linalg.qr(base)
    return left[:, :rank] * scale, right[:rank]


@dataclass(frozen=True)
class Started(LayerWeights):
    """
    A pair, and the part of the base that it started from.

    Attributes:
        pair: The pair as trained.
        start: What the base's part is.
        alpha: The alpha in force.
    """

    algorithm: ClassVar[str] = "started"

    pair: LowRank
    start: Start
    alpha: float | None

    @classmethod
    def from_parts(cls, parts: ModuleTensors, start: Start) -> Started:
        """
        Take a pair.

        Raises:
            InvalidAdapterError: When its tensors do not belong together.
        """
        pair = LowRank.from_parts(parts)
        return cls(pair, start, pair.alpha)

    @property
    def algorithms(self) -> tuple[str, ...]:
        """The start's name and the pair's."""
        return (self.start, *self.pair.algorithms)

    @property
    def rank(self) -> int:
        """The rank of the pair."""
        return self.pair.rank

    @property
    def in_width(self) -> int:
        """Input width."""
        return self.pair.in_width

    def mixes_rows(self, shape: tuple[int, ...]) -> bool:  # noqa: ARG002 -- every row has a part in the start
        """Say that the start is that of the whole weight."""
        return True

    def misfit(self, shape: tuple[int, ...]) -> str | None:
        """Say why this cannot change a weight of ``shape``, or None."""
        if len(shape) != 2 and not self.pair.misfit(shape):
            return f"{self.start} starts from a matrix, the module has {shape}"
        return self.pair.misfit(shape)

    def delta(self, base: torch.Tensor, gain: float) -> torch.Tensor:
        """Return gain * s B A - P."""
        change = self.pair.delta(base, gain)
        if not gain:
            return change
        left, right = self.taken(base)
        return change.sub_(left @ right)

    def taken(self, base: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return P, what training took out of a base (out, in), as a product of (out, rank) and (rank, in)."""
        return started_from(self.start, base, self.rank, self.pair.scale)

    def bias_delta(self, base: torch.Tensor | None, gain: float) -> torch.Tensor | None:
        """Return the pair's own."""
        return self.pair.bias_delta(base, gain)
