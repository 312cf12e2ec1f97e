"""Several parts in one module: what is added up, and the sparse remainder that LyCORIS' extraction leaves."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch

from lora_mixer.algorithms.base import LayerWeights, wide
from lora_mixer.algorithms.outputs import Factors, OutputChange

if TYPE_CHECKING:
    from collections.abc import Callable

    from lora_mixer.algorithms.base import ModuleTensors, Ranges


@dataclass(frozen=True)
class Combined(LayerWeights):
    """
    ModuleTensors of one module that each change it by itself: a pair and a bias difference, a rotation and a trained bias.

    Attributes:
        parts: The parts, each computed from the clean base; their changes add up.
    """

    algorithm: ClassVar[str] = "stack"
    told_by_shapes: ClassVar[bool] = True

    parts: tuple[LayerWeights, ...]
    alpha: float | None

    @property
    def algorithms(self) -> tuple[str, ...]:
        """The names of the parts; the stack has none of its own."""
        return tuple(name for part in self.parts for name in part.algorithms)

    @property
    def rank(self) -> int | None:
        """The rank of the first part that has one."""
        return next((part.rank for part in self.parts if part.rank is not None), None)

    @property
    def in_width(self) -> int | None:
        """The input width of the first part that tells one."""
        return next((part.in_width for part in self.parts if part.in_width is not None), None)

    def is_zero(self) -> bool:
        """Say whether every part is zero."""
        return all(part.is_zero() for part in self.parts)

    def limited(self, rank: int) -> Combined:
        """Limit every part."""
        return replace(self, parts=tuple(part.limited(rank) for part in self.parts))

    def take(self, ranges: Ranges, total: int) -> LayerWeights:
        """Return rows of every part."""
        return replace(self, parts=tuple(part.take(ranges, total) for part in self.parts))

    def mixes_rows(self, shape: tuple[int, ...]) -> bool:
        """Say whether any part does."""
        return any(part.mixes_rows(shape) for part in self.parts)

    def needs_whole(self, shape: tuple[int, ...]) -> bool:
        """Say whether any part does."""
        return any(part.needs_whole(shape) for part in self.parts)

    def factors(self, shape: tuple[int, ...]) -> Factors | None:
        """Return all parts' pairs as one, where each has one; what changes the bias alone needs none."""
        pairs = [part.factors(shape) for part in self.parts if part.changes_weight]
        if len(pairs) == 1:
            return pairs[0]
        ups = [wide(pair.up) * pair.scale for pair in pairs if pair is not None]
        downs = [wide(pair.down) for pair in pairs if pair is not None]
        whole = bool(ups) and len(ups) == len(pairs)
        return (
            Factors(torch.cat(ups, 1), torch.cat(downs), 1.0) if whole else None
        )  # (out, R), (R, in * kernel)

    def misfit(self, shape: tuple[int, ...]) -> str | None:
        """Return the first part's reason, or None."""
        return next((why for part in self.parts if (why := part.misfit(shape))), None)

    def delta(self, base: torch.Tensor, gain: float) -> torch.Tensor:
        """Return the sum of the parts' changes."""
        total = self.parts[0].delta(base, gain)
        for part in self.parts[1:]:
            total = total + part.delta(base, gain)
        return total

    def bias_delta(self, base: torch.Tensor | None, gain: float) -> torch.Tensor | None:
        """Return the sum of the parts' changes, or None where none has any."""
        changes = [change for part in self.parts if (change := part.bias_delta(base, gain)) is not None]
        return torch.stack(changes).sum(0) if changes else None  # (out,)

    def on_outputs(
        self, base: Callable[[], torch.Tensor], shape: tuple[int, ...], gain: float
    ) -> OutputChange:
        """Return the sum of what the parts do."""
        changes = [part.on_outputs(base, shape, gain) for part in self.parts]
        return functools.reduce(OutputChange.plus, changes)


@dataclass(frozen=True)
class Sparse(LayerWeights):
    """
    A sparse change: W' = W + gain * scale * S, S given by coordinates.

    LyCORIS' extraction writes what a low-rank pair leaves out as ``bias_indices``, ``bias_values``, ``bias_size`` (a
    name from history, it is not a bias); it is scaled with the pair.

    Attributes:
        indices: (axes, n) coordinates.
        values: (n,).
        size: The shape that the coordinates refer to: the weight's, or a flattening of it; empty where it is not told.
        scale: That of the pair.
    """

    algorithm: ClassVar[str] = "sparse"
    factors_of_all: ClassVar[tuple[str, ...]] = ("values", "scale")
    needs_base: ClassVar[bool] = False

    indices: torch.Tensor
    values: torch.Tensor
    size: tuple[int, ...]
    scale: float

    @classmethod
    def from_parts(cls, parts: ModuleTensors) -> Sparse:
        """
        Check the coordinates.

        Raises:
            InvalidAdapterError: When a part is missing or a coordinate lies outside.
        """
        indices, values, stored = parts.need("bias_indices", "bias_values", "bias_size")
        numbers = stored.flatten().tolist()
        if not all(0 <= n < 2**31 for n in numbers):
            raise parts.broken(f"a size of {numbers}")
        size = tuple(int(n) for n in numbers)
        wide = indices.long()
        if not size or wide.ndim != 2 or values.ndim != 1 or wide.shape != (len(size), values.shape[0]):
            raise parts.broken("expected indices (axes, n), values (n,) and one size for each axis")
        limits = torch.tensor(size).unsqueeze(1)
        if ((wide < 0) | (wide >= limits)).any():
            raise parts.broken(f"coordinates outside of {size}")
        rank = parts.tensors["down"].shape[0] if "down" in parts.tensors else 0
        return cls(wide, values, size, parts.scale_for(rank) if rank else 1.0)

    @classmethod
    def of_shira(cls, parts: ModuleTensors) -> Sparse:
        """
        Read PEFT's SHiRA (arXiv:2406.13175): trained values at coordinates chosen once, not scaled.

        Raises:
            InvalidAdapterError: When a part is missing or they do not belong together.
        """
        values, indices = parts.need("shira_weight", "shira_indices")
        wide = indices.long()
        if wide.ndim != 2 or values.ndim != 1 or wide.shape != (2, values.shape[0]) or (wide < 0).any():
            raise parts.broken("expected shira_weight (n,) and shira_indices (2, n)")
        return cls(wide, values, (), 1.0)

    def misfit(self, shape: tuple[int, ...]) -> str | None:
        """Say why this cannot change a weight of ``shape``, or None."""
        if not self.size:
            last = [int(n) for n in self.indices.amax(dim=1)] if self.values.numel() else [0, 0]
            fits = len(shape) == 2 and last[0] < shape[0] and last[1] < shape[1]
            return None if fits else f"changes element {tuple(last)}, the module has {shape}"
        fits = self.size[0] == shape[0] and math.prod(self.size) == math.prod(shape)
        return None if fits else f"made for a weight {self.size}, the module has {shape}"

    def delta(self, base: torch.Tensor, gain: float) -> torch.Tensor:
        """Return gain * scale * S; coordinates that stand twice add up."""
        change = base.new_zeros(self.size or base.shape)
        change.index_put_(tuple(self.indices.to(base.device)), self.values.to(base), accumulate=True)
        return change.mul_(gain * self.scale).reshape(base.shape)
