"""The change of a layer that the live model keeps in several modules, where it depends on all of their bases."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from lora_mixer.algorithms.base import LayerWeights, Sliced, take_rows
from lora_mixer.algorithms.combined import Combined

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

    from lora_mixer.algorithms.base import Ranges


class WholeLayer:
    """
    The clean base of a fused layer, gathered from the kept bases of its modules, and the change computed from it.

    Args:
        parts: What gives each module's clean weight, and the rows of the file's layer that it has.
        total: Rows of the file's layer.
    """

    def __init__(self, parts: Sequence[tuple[Callable[[], torch.Tensor], Ranges]], total: int) -> None:
        """Gather nothing yet."""
        self._parts = parts
        self._total = total
        self._last: tuple[float, torch.dtype, torch.device, torch.Tensor] | None = None

    def base(self, like: torch.Tensor) -> torch.Tensor:
        """Return the clean base (total, in, *kernel) in the dtype of ``like``, where that lies."""
        whole = like.new_zeros(self._total, *like.shape[1:])  # (total, in, *kernel)
        for read, ranges in self._parts:
            clean, start = read(), 0
            for first, last in ranges:
                whole[first:last] = clean[start : start + last - first].reshape(-1, *like.shape[1:]).to(like)
                start += last - first
        return whole

    def change(self, inner: LayerWeights, gain: float, like: torch.Tensor) -> torch.Tensor:
        """Return the change of the whole layer; its modules are written one after the other and share it."""
        known = self._last
        if known is None or known[:3] != (gain, like.dtype, like.device):
            known = (gain, like.dtype, like.device, inner.delta(self.base(like), gain))
            self._last = known
        return known[3]

    def forget(self) -> None:
        """Let go of the change."""
        self._last = None


@dataclass(frozen=True)
class Gathered(LayerWeights):
    """
    Rows of a change that needs the whole layer.

    Attributes:
        rows_of: The rows, and the change of the whole layer.
        whole: Where the layer's base is.
        alpha: The alpha in force.
    """

    algorithm: ClassVar[str] = "rows"

    rows_of: Sliced
    whole: WholeLayer
    alpha: float | None

    @property
    def rank(self) -> int | None:
        """The rank of the whole change."""
        return self.rows_of.rank

    @property
    def algorithms(self) -> tuple[str, ...]:
        """Those of the whole change."""
        return self.rows_of.algorithms

    @property
    def in_width(self) -> int | None:
        """Input width."""
        return self.rows_of.in_width

    def misfit(self, shape: tuple[int, ...]) -> str | None:
        """Say why this cannot change a weight of ``shape``, or None."""
        return self.rows_of.misfit(shape)

    def delta(self, base: torch.Tensor, gain: float) -> torch.Tensor:
        """Return these rows of the change of the whole layer."""
        change = self.whole.change(self.rows_of.inner, gain, base)
        return take_rows(change, self.rows_of.ranges)

    def bias_delta(self, base: torch.Tensor | None, gain: float) -> torch.Tensor | None:
        """Return these rows of the bias's change."""
        return self.rows_of.bias_delta(base, gain)


def gathered(weights: LayerWeights, whole: WholeLayer, shape: tuple[int, ...]) -> LayerWeights:
    """Return the same with every part that needs the whole layer bound to it."""
    if isinstance(weights, Sliced) and weights.needs_whole(shape):
        return Gathered(weights, whole, weights.alpha)
    if isinstance(weights, Combined):
        return replace(weights, parts=tuple(gathered(part, whole, shape) for part in weights.parts))
    return weights
