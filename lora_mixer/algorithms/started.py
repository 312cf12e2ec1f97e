"""
PiSSA and OLoRA as they were trained: pairs that started from a part of the base, which training took out of it.

Training began with W - P beside the pair, P the pair's own product at the start, so what such a file does to the user's W
is s B A - P:

* PiSSA (arXiv:2404.02948): P = U_r S_r V_r^T, the largest singular values of W.
* OLoRA (arXiv:2406.01775): P = s Q_r R_r of W = Q R.
* KaSA (arXiv:2412.06071): P = the r smallest singular values' part of W, given up for good; the pair has a trained diagonal between.

P is worked out from the base anew, unless the file holds W - P, as PEFT's do for heads and lookup tables. At other weights than 1 PEFT scales the pair only, since P has left the base for good:
W + m s B A - P; at weight 0 it is the base, as for every adapter. Files that were converted when they were saved are plain
pairs and say so.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch

from lora_mixer.algorithms.base import LayerWeights
from lora_mixer.algorithms.lora import LowRank
from lora_mixer.algorithms.outputs import Factors, OutputChange
from lora_mixer.errors import UnsupportedAdapterError

if TYPE_CHECKING:
    from collections.abc import Callable

    from lora_mixer.algorithms.base import ModuleTensors

Start = Literal["pissa", "olora", "kasa"]


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
    # in fp32, as PEFT has taken it out: where singular values lie close together, its rounding decides which directions went
    if start == "pissa":
        left, values, right = torch.linalg.svd(base.float(), full_matrices=False)
        return (left[:, :rank] * values[:rank]).to(base), right[:rank].to(base)
    if start == "kasa":
        left, values, right = torch.linalg.svd(base.float(), full_matrices=False)
        first = len(values) - rank
        return (left[:, first:] * values[first:]).to(base), right[first:].to(base)
    left, right = torch.linalg.qr(base.float())
    return (left[:, :rank] * scale).to(base), right[:rank].to(base)


def _mark(base: torch.Tensor) -> int:
    """
    Return a number of a base's values and their places, which another base hardly ever has.

    Identity would not do: a base comes as a copy in a wide type, and its memory may hold another one's by now.

    Example:
        >>> one = torch.tensor([[1.0, 2.0]])
        >>> _mark(one) == _mark(one.clone()), _mark(one) == _mark(one.flip(1))
        (True, False)
    """
    bits = base.detach().contiguous().view(torch.int64 if base.dtype.itemsize == 8 else torch.int32).flatten()
    places = torch.arange(1, 2 * bits.numel(), 2, device=bits.device)
    places = places * places + 0x9E3779B9
    return int((bits.long() * places).sum())


@dataclass(frozen=True)
class Started(LayerWeights):
    """
    A pair, and the part of the base that it started from.

    Attributes:
        pair: The pair as trained.
        start: What the base's part is.
        alpha: The alpha in force.
        kept: What was last worked out of a base, by that base's values: mixes are written many times, bases change hardly ever.
    """

    algorithm: ClassVar[str] = "started"

    pair: LowRank
    start: Start
    alpha: float | None
    kept: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def from_parts(cls, parts: ModuleTensors, start: Start) -> Started:
        """
        Take a pair.

        Raises:
            InvalidAdapterError: When its tensors do not belong together.
        """
        pair = LowRank.from_parts(parts)
        return cls(pair, start, pair.alpha)

    @classmethod
    def with_diagonal(cls, parts: ModuleTensors) -> Started:
        """
        Take a pair with a diagonal between its halves (KaSA).

        Raises:
            InvalidAdapterError: When its tensors do not belong together.
            UnsupportedAdapterError: When the configuration does not say that it is KaSA.
        """
        (diagonal,) = parts.need("diag")
        pair = LowRank.from_parts(parts)
        if not parts.config.get("kasa_config"):
            raise UnsupportedAdapterError(
                "a diagonal between the halves of a pair (KaSA), and no configuration with kasa_config",
                key=parts.label,
            )
        if diagonal.shape != (pair.rank,):
            raise parts.broken("expected one value for each rank")
        scaled = pair.down * diagonal.to(pair.down).view(-1, *[1] * (pair.down.ndim - 1))
        return cls(replace(pair, down=scaled), "kasa", pair.alpha)

    @property
    def algorithms(self) -> tuple[str, ...]:
        """The start's name and the pair's."""
        return (self.start, *self.pair.algorithms)

    @property
    def took_from_base(self) -> bool:
        """Yes."""
        return True

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
        if self.start == "kasa" and self.rank >= min(shape[:2]):
            return f"KaSA of rank {self.rank} would take all of a weight {shape}"
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
        key = (_mark(base), self.start, self.rank, self.pair.scale, base.dtype, base.device)
        if key not in self.kept:
            halves = started_from(self.start, base, self.rank, self.pair.scale)
            self.kept.clear()
            self.kept[key] = tuple(half.contiguous() for half in halves)
        left, right = self.kept[key]
        return left, right

    def on_outputs(
        self, base: Callable[[], torch.Tensor], shape: tuple[int, ...], gain: float
    ) -> OutputChange:
        """Return the pair, and what it started from as another."""
        if not gain:
            return OutputChange()
        left, right = self.taken(base())
        trained = self.pair.on_outputs(base, shape, gain)
        return trained.plus(OutputChange(pair=Factors(-left, right, 1.0)))

    def bias_delta(self, base: torch.Tensor | None, gain: float) -> torch.Tensor | None:
        """Return the pair's own."""
        return self.pair.bias_delta(base, gain)
