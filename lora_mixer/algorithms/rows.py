"""
Rows of a change: what one live module gets of a layer that the file keeps fused, or of a layer that is a part of it.

A file may hold one layer where the live model has several (``qkv`` is ``to_q``, ``to_k`` and ``to_v``), or several
where it has one (``up_proj`` and ``gate_proj`` are the halves of one ``proj``). With D the change of the file's layer,
a live module gets ``D[rows]``. Pairs are sliced (``up[rows]`` beside the same ``down``); everything else is computed on
the whole layer and cut. Where a row's change depends on *other* rows of the base (DoRA with lengths of inputs,
rotations of outputs), the whole layer's base has to be handed in: :meth:`~lora_mixer.algorithms.base.Sliced.delta_of`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from lora_mixer.algorithms.base import LayerWeights, Wrapped, count_rows, spread_rows, take_rows
from lora_mixer.algorithms.outputs import Factors

if TYPE_CHECKING:
    from lora_mixer.algorithms.base import Ranges


@dataclass(frozen=True)
class Placed(Wrapped):
    """
    A change of some rows of a live module; the others stay.

    Attributes:
        inner: The change.
        ranges: The live module's rows, in the order in which the change has them.
        total: Rows of the live module.
        alpha: The alpha in force.
    """

    algorithm: ClassVar[str] = "placed"
    told_by_shapes: ClassVar[bool] = True

    inner: LayerWeights
    ranges: Ranges
    total: int
    alpha: float | None

    def misfit(self, shape: tuple[int, ...]) -> str | None:
        """Say why this cannot change rows of a weight of ``shape``, or None."""
        if self.total != shape[0]:
            return f"rows of a layer of {self.total} outputs, the module has {shape[0]}"
        return self.inner.misfit((count_rows(self.ranges), *shape[1:]))

    def needs_whole(self, shape: tuple[int, ...]) -> bool:
        """Say whether the change does."""
        return self.inner.needs_whole((count_rows(self.ranges), *shape[1:]))

    def factors(self, shape: tuple[int, ...]) -> Factors | None:
        """Return ``up`` with zeros for the rows that stay."""
        pair = self.inner.factors((count_rows(self.ranges), *shape[1:]))
        return (
            None
            if pair is None
            else Factors(spread_rows(pair.up, self.ranges, self.total), pair.down, pair.scale)
        )

    def delta(self, base: torch.Tensor, gain: float) -> torch.Tensor:
        """Return the change, zeros where rows stay."""
        return spread_rows(self.inner.delta(take_rows(base, self.ranges), gain), self.ranges, self.total)

    def bias_delta(self, base: torch.Tensor | None, gain: float) -> torch.Tensor | None:
        """Return the bias's change, zeros where rows stay."""
        change = self.inner.bias_delta(None if base is None else take_rows(base, self.ranges), gain)
        return None if change is None else spread_rows(change, self.ranges, self.total)


@dataclass(frozen=True)
class Chunks(LayerWeights):
    """
    A layer that the file keeps in one piece, with a change of its own for each part (Kohya's OFT on fused layers).

    Attributes:
        parts: The changes, from the first rows to the last.
        sizes: Rows of each.
        alpha: The alpha in force.
    """

    algorithm: ClassVar[str] = "chunks"

    parts: tuple[LayerWeights, ...]
    sizes: tuple[int, ...]
    alpha: float | None

    @property
    def algorithms(self) -> tuple[str, ...]:
        """Those of the first part; all are alike."""
        return self.parts[0].algorithms

    @property
    def _spans(self) -> tuple[tuple[int, int], ...]:
        ends = [sum(self.sizes[: number + 1]) for number in range(len(self.sizes))]
        return tuple((end - size, end) for end, size in zip(ends, self.sizes, strict=True))

    def misfit(self, shape: tuple[int, ...]) -> str | None:
        """Say why this cannot change a weight of ``shape``, or None."""
        if sum(self.sizes) != shape[0]:
            return f"made for parts of {' + '.join(map(str, self.sizes))} outputs, the module has {shape[0]}"
        return next(
            (
                why
                for part, size in zip(self.parts, self.sizes, strict=True)
                if (why := part.misfit((size, *shape[1:])))
            ),
            None,
        )

    def is_zero(self) -> bool:
        """Say whether every part is zero."""
        return all(part.is_zero() for part in self.parts)

    def mixes_rows(self, shape: tuple[int, ...]) -> bool:
        """Say whether any part does."""
        return any(
            part.mixes_rows((size, *shape[1:])) for part, size in zip(self.parts, self.sizes, strict=True)
        )

    def take(self, ranges: Ranges, total: int) -> LayerWeights:
        """Return the part that has exactly these rows, where there is one."""
        spans = self._spans
        if len(ranges) == 1 and ranges[0] in spans:
            return self.parts[spans.index(ranges[0])]
        return super().take(ranges, total)

    def delta(self, base: torch.Tensor, gain: float) -> torch.Tensor:
        """Return each part's change of its own rows."""
        pieces = [
            part.delta(base[start:stop], gain)
            for part, (start, stop) in zip(self.parts, self._spans, strict=True)
        ]
        return torch.cat(pieces)  # (out, in, *kernel)


@dataclass(frozen=True)
class RowCut:
    """
    Which rows of a layer of a file go to which rows of a live module.

    Attributes:
        file_rows: The rows that the module gets, in the order in which it has them.
        total: Rows of the file's layer.
        live_rows: Which of its own rows these are; None for all.
        height: How many rows the module has.

    Example:
        >>> from lora_mixer.algorithms.full import Full
        >>> fused = Full(torch.arange(6.0).reshape(3, 2), None, 1.0)
        >>> RowCut(((2, 3), (0, 1)), 3, None, 2).of(fused).delta(torch.zeros(2, 2), 1.0)
        tensor([[4., 5.],
                [0., 1.]])
    """

    file_rows: Ranges
    total: int
    live_rows: Ranges | None
    height: int

    def of(self, whole: LayerWeights) -> LayerWeights:
        """Return the module's part of the change of a file's layer."""
        weights = whole.take(self.file_rows, self.total)
        if self.live_rows is None:
            return weights
        return Placed(weights, self.live_rows, self.height, weights.alpha)
