"""
DoRA: the change of a low-rank adapter turns the weight, and a trained magnitude says how long it is (arXiv:2402.09353).

With V = W + scale * delta, n = |V| along one axis and d the trained magnitude, the full-strength weight is V * d / n.
At other weights m the programs part ways; there are three strengths by name:

* ``linear``: W + m (V d / n - W), as ComfyUI, A1111, SD.Next and InvokeAI do; for LyCORIS', Kohya's and OneTrainer's
  files (``dora_scale``). Only this one grows with the weight, and so composes with schedules, blocks and negatives.
* ``peft``: V_m d / |V_m| with V_m = W + m scale delta; for PEFT's, diffusers' and ai-toolkit's files
  (``lora_magnitude_vector``, ``magnitude``), as these do.
* ``lycoris``: V (1 + m (d / n - 1)), LyCORIS' own forward: at small m the whole turn without its length. Only when asked.

All are the trained weight at 1, and weight 0 is the base, exactly, as for every adapter. The axis is told by the magnitude's
shape: (out, 1, ...) and plain (out,) hold one length for each output, (1, in, ...) one for each input. PEFT's
(1, out, 1, 1) on convolutions is one for each output, too. A plain vector counts for outputs where both would fit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple, get_args

import torch

from lora_mixer.algorithms.base import LayerWeights, Sliced, take_rows
from lora_mixer.algorithms.columns import Padded
from lora_mixer.algorithms.combined import Combined
from lora_mixer.algorithms.outputs import Factors, OutputChange
from lora_mixer.algorithms.rows import Placed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from lora_mixer.algorithms.base import ModuleTensors, Ranges


class RankParts(NamedTuple):
    """
    What the lengths of the rows of W + s U D are worked out of without any matrix as large as W.

    Attributes:
        squares: |w|^2 of each row, (out,).
        met: W D^T, (out, rank).
        up: U, (out, rank).
        down: D, (rank, in * kernel).
        scale: s.
    """

    squares: torch.Tensor
    met: torch.Tensor
    up: torch.Tensor
    down: torch.Tensor
    scale: float


def lengths_in_ranks(layers: Sequence[RankParts]) -> list[torch.Tensor]:
    """
    Return the lengths (out,) of the turned rows of layers, those of one size in operations that they share.

    n^2 = |w|^2 + 2 s ((W D^T) * U) + s^2 ((U D D^T) * U), summed over the ranks.

    Example:
        >>> up, down, weight = torch.randn(4, 2), torch.randn(2, 3), torch.randn(4, 3)
        >>> parts = RankParts(weight.square().sum(1), weight @ down.T, up, down, 0.5)
        >>> first, second = lengths_in_ranks([parts, parts])
        >>> torch.allclose(first, (weight + 0.5 * up @ down).norm(dim=1), atol=1e-5), torch.equal(first, second)
        (True, True)
    """
    crosses: dict[int, torch.Tensor] = {}
    for places in alike([(one.down.shape, one.down.dtype, one.down.device) for one in layers]):
        downs = _stack([layers[place].down for place in places])  # (layers, rank, in * kernel)
        crosses |= dict(zip(places, torch.bmm(downs, downs.mT), strict=True))
    lengths: dict[int, torch.Tensor] = {}
    for places in alike([(one.up.shape, one.up.dtype, one.up.device, one.scale) for one in layers]):
        members = [layers[place] for place in places]
        ups = _stack([one.up for one in members])  # (layers, out, rank)
        mets = _stack([one.met for one in members]).to(ups.dtype)
        scale = members[0].scale
        inner = torch.baddbmm(mets, ups, _stack([crosses[place] for place in places]), beta=2.0, alpha=scale)
        squares = torch.add(_stack([one.squares for one in members]), (inner * ups).sum(2), alpha=scale)
        lengths |= dict(zip(places, squares.clamp_min_(0.0).sqrt_(), strict=True))
    return [lengths[place] for place in range(len(layers))]


def alike(keys: Sequence[object]) -> Iterable[list[int]]:
    """
    Return the places of equal keys, together.

    Example:
        >>> list(alike(["a", "b", "a"]))
        [[0, 2], [1]]
    """
    if len(keys) == 1:
        return [[0]]
    places: dict[object, list[int]] = {}
    for place, key in enumerate(keys):
        places.setdefault(key, []).append(place)
    return places.values()


def _stack(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return tensors of one shape as one; a single one is not copied."""
    return tensors[0].unsqueeze(0) if len(tensors) == 1 else torch.stack(tuple(tensors))


DoraStrength = Literal["linear", "peft", "lycoris"]
"""What a weight other than 1 means for a DoRA."""
DORA_STRENGTHS: tuple[str, ...] = get_args(DoraStrength)


@dataclass(frozen=True)
class Dora(LayerWeights):
    """
    A magnitude over another adapter's change.

    Attributes:
        inner: The change that turns the weight.
        magnitude: One length for each output or input.
        by_output: Whether for each output; None where only the live module can tell (a vector without axes).
        strength: What weights other than 1 mean: ``linear``, ``peft`` or ``lycoris``.
    """

    algorithm: ClassVar[str] = "dora"
    told_by_shapes: ClassVar[bool] = True

    inner: LayerWeights
    magnitude: torch.Tensor
    by_output: bool | None
    strength: DoraStrength
    alpha: float | None

    @classmethod
    def wrap(cls, inner: LayerWeights, parts: ModuleTensors) -> Dora:
        """
        Put the magnitude of one module over its change.

        Raises:
            InvalidAdapterError: When the magnitude is not a vector along one axis.
        """
        scaled = "dora_scale" in parts.tensors
        (magnitude,) = parts.need("dora_scale" if scaled else "magnitude")
        if magnitude.numel() != max(magnitude.shape, default=0):
            raise parts.broken("expected a magnitude along one axis: (out, 1), (1, in) or (out,)")
        by_output: bool | None = None
        if magnitude.ndim > 1 and magnitude.numel() > 1:
            by_output = (
                not scaled or magnitude.shape[0] != 1
            )  # PEFT's (1, out, 1, 1) looks like (1, in, 1, 1)
        return cls(inner, magnitude, by_output, "linear" if scaled else "peft", inner.alpha)

    @property
    def rank(self) -> int | None:
        """The rank of the change."""
        return self.inner.rank

    @property
    def in_width(self) -> int | None:
        """Input width of the change."""
        return self.inner.in_width

    def is_by_output(self, shape: tuple[int, ...]) -> bool:
        """Say whether there is a length for each output of a weight of ``shape``, or for each input."""
        if self.by_output is not None:
            return self.by_output
        # Who writes a plain vector writes outputs, but PEFT on embeddings, whose weight lies the other way round.
        return self.magnitude.numel() == shape[0]

    def take(self, ranges: Ranges, total: int) -> LayerWeights:
        """Return rows of the change and of the magnitude; lengths of inputs need the whole layer."""
        if self.by_output is False or self.magnitude.numel() != total:
            return super().take(ranges, total)
        lengths = take_rows(self.magnitude.flatten(), ranges)
        return replace(self, inner=self.inner.take(ranges, total), magnitude=lengths, by_output=True)

    def mixes_rows(self, shape: tuple[int, ...]) -> bool:
        """Say whether lengths are those of inputs, over all rows, or the change itself mixes rows."""
        return not self.is_by_output(shape) or self.inner.mixes_rows(shape)

    def needs_whole(self, shape: tuple[int, ...]) -> bool:
        """Say whether the change does."""
        return self.inner.needs_whole(shape)

    def misfit(self, shape: tuple[int, ...]) -> str | None:
        """Say why this cannot change a weight of ``shape``, or None."""
        inner = self.inner.misfit(shape)
        if inner:
            return inner
        if len(shape) < 2:
            return "a magnitude needs a matrix or a convolution, the module has a vector"
        rows = self.is_by_output(shape)
        width = shape[0] if rows else shape[1]
        if self.magnitude.numel() == width:
            return None
        return f"magnitude of {self.magnitude.numel()} values, the module has {width} {'outputs' if rows else 'inputs'}"

    def delta(self, base: torch.Tensor, gain: float) -> torch.Tensor:
        """Return W'(gain) - W."""
        if not gain:
            return base.new_zeros(base.shape)
        turned = base + self.inner.delta(base, gain if self.strength == "peft" else 1.0)
        axis = 0 if self.is_by_output(tuple(base.shape)) else 1
        others = [dim for dim in range(base.ndim) if dim != axis]
        ratio = self._ratio(turned, others)
        if self.strength == "lycoris":
            ratio = 1 + gain * (ratio - 1)
        change = turned.mul_(ratio).sub_(base)
        return change.mul_(gain) if self.strength == "linear" else change

    def on_outputs(
        self, base: Callable[[], torch.Tensor], shape: tuple[int, ...], gain: float
    ) -> OutputChange:
        """Return what lengths of outputs and the pair within do; others as a matrix."""
        pair = self.inner.factors(shape)
        if not gain or pair is None or not self.is_by_output(shape):
            return super().on_outputs(base, shape, gain)
        at = gain if self.strength == "peft" else 1.0
        weight = base()
        turned = weight + self.inner.delta(weight, at)
        ratio = self._ratio(turned, [1]).flatten()
        if self.strength == "lycoris":
            ratio = 1 + gain * (ratio - 1)
        share = gain if self.strength == "linear" else 1.0
        up = pair.up.to(ratio) * ratio[:, None]  # (out, r)
        return OutputChange(rows=share * (ratio - 1), pair=Factors(up, pair.down, share * at * pair.scale))

    def is_of_outputs(self, shape: tuple[int, ...]) -> bool:
        """Say whether this is a pair with a length for each output, so that outputs can be multiplied beside a layer."""
        return len(shape) > 1 and self.is_by_output(shape) and self.inner.factors(shape) is not None

    def shares(self, gain: float) -> tuple[float, float]:
        """Return the weight at which the change turns, and the share that the turned weight has at weight ``gain``."""
        return (gain, 1.0) if self.strength == "peft" else (1.0, gain)

    def length_in_ranks(
        self,
        squares: torch.Tensor,
        met: torch.Tensor,
        up: torch.Tensor,
        down: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        """
        Return the lengths of the rows of W + s U D without any matrix as large as W.

        n^2 = |w|^2 + 2 s ((W D^T) * U) + s^2 ((U D D^T) * U), summed over the ranks.

        Args:
            squares: |w|^2 of each row, (out,).
            met: W D^T, (out, rank).
            up: U, (out, rank).
            down: D, (rank, in * kernel).
            scale: s.

        Example:
            >>> up, down, weight = torch.randn(4, 2), torch.randn(2, 3), torch.randn(4, 3)
            >>> pair = Dora(None, torch.ones(4), True, "peft", None)
            >>> found = pair.length_in_ranks(weight.square().sum(1), weight @ down.T, up, down, 0.5)
            >>> torch.allclose(found, (weight + 0.5 * up @ down).norm(dim=1), atol=1e-5)
            True
        """
        return lengths_in_ranks([RankParts(squares, met, up, down, scale)])[0]

    def divisor_of(self, length: torch.Tensor) -> torch.Tensor:
        """Return what a magnitude is divided by where rows have a length; LyCORIS adds eps, and a row of zeros stays one either way."""
        info = torch.finfo(length.dtype)
        return length.clamp_min(info.tiny) if self.strength == "peft" else length + info.eps

    def ratio_to(self, length: torch.Tensor) -> torch.Tensor:
        """Return what outputs are multiplied by: the magnitude over the length that the turned weight has, (out,)."""
        ratio: torch.Tensor = self.magnitude.flatten().to(length) / self.divisor_of(length)
        return ratio

    def _ratio(self, turned: torch.Tensor, others: list[int]) -> torch.Tensor:
        """Return the magnitude over the length that the turned weight has, which is a constant where it is trained."""
        length = torch.linalg.vector_norm(turned.detach(), dim=others)
        return self.ratio_to(length).view([1 if dim in others else -1 for dim in range(turned.ndim)])

    def bias_delta(self, base: torch.Tensor | None, gain: float) -> torch.Tensor | None:
        """Return the change's own; a magnitude has no part in biases."""
        return self.inner.bias_delta(base, gain)


def with_dora_strength(weights: LayerWeights, strength: DoraStrength) -> LayerWeights:
    """Return the same with another strength in every DoRA of it; itself where there is none."""
    if isinstance(weights, Dora):
        return replace(weights, strength=strength)
    if isinstance(weights, Combined):
        return replace(weights, parts=tuple(with_dora_strength(part, strength) for part in weights.parts))
    if isinstance(weights, Sliced | Placed | Padded):
        return replace(weights, inner=with_dora_strength(weights.inner, strength))
    return weights
