"""
Full: W' = W + gain * diff, b' = b + gain * diff_b, the trained change itself; no alpha.

LyCORIS ``full`` and ``norm`` (``w_norm``, ``b_norm`` of normalisation layers), extracted differences, Wan's ``diff_b``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from lora_mixer.algorithms.base import LayerWeights, all_zero, squeezed, take_bias, take_rows

if TYPE_CHECKING:
    import torch

    from lora_mixer.algorithms.base import ModuleTensors, Ranges


@dataclass(frozen=True)
class WeightAndBias(LayerWeights):
    """
    Tensors in a layer's own shapes: its change, or what takes its place.

    Attributes:
        weight: Of the weight's shape, or None when there is a bias alone.
        bias: (out,), or None.
    """

    weight: torch.Tensor | None
    bias: torch.Tensor | None

    @property
    def in_width(self) -> int | None:
        """Input width."""
        return self.weight.shape[1] if self.weight is not None and self.weight.ndim > 1 else None

    def take(self, ranges: Ranges, total: int) -> LayerWeights:
        """Return rows of the weight and of the bias."""
        weight = None if self.weight is None else take_rows(self.weight, ranges)
        return replace(
            self, weight=weight, bias=None if self.bias is None else take_bias(self.bias, ranges, total)
        )

    @property
    def changes_weight(self) -> bool:
        """Whether there is a weight, and not a bias alone."""
        return self.weight is not None

    def misfit(self, shape: tuple[int, ...]) -> str | None:
        """Say why this is not for a weight of ``shape``, or None."""
        return value_misfit(self.weight, shape)


@dataclass(frozen=True)
class Full(WeightAndBias):
    """
    A dense change.

    Attributes:
        scale: 1 unless the file has a ``scale`` for the module.
    """

    algorithm: ClassVar[str] = "full"
    told_by_shapes: ClassVar[bool] = True
    needs_base: ClassVar[bool] = False
    _roles: ClassVar[tuple[str, str]] = ("diff", "diff_b")

    scale: float

    @classmethod
    def from_parts(cls, parts: ModuleTensors) -> Full:
        """Take the tensors; what they fit is for the live module to say."""
        weight, bias = (parts.tensors.get(role) for role in cls._roles)
        return cls(weight, bias, (1.0 if parts.scale is None else parts.scale) * parts.scalar)

    def is_zero(self) -> bool:
        """Say whether all that it holds is zero."""
        return self.scale == 0 or all(part is None or all_zero(part) for part in (self.weight, self.bias))

    def delta(self, base: torch.Tensor, gain: float) -> torch.Tensor:
        """Return gain * diff, or zeros where only the bias changes."""
        if self.weight is None:
            return base.new_zeros(base.shape)
        return self.weight.to(base).reshape(base.shape) * (gain * self.scale)

    def bias_delta(self, base: torch.Tensor | None, gain: float) -> torch.Tensor | None:
        """Return gain * diff_b; a bias that the base lacks counts as zeros."""
        if self.bias is None:
            return None
        change = self.bias.flatten()
        return (change.float() if base is None else change.to(base.dtype)) * (gain * self.scale)


@dataclass(frozen=True)
class Norm(Full):
    """A dense change of a normalisation layer's weight and bias."""

    algorithm: ClassVar[str] = "norm"
    told_by_shapes: ClassVar[bool] = True
    _roles: ClassVar[tuple[str, str]] = ("norm_w", "norm_b")


def value_misfit(weight: torch.Tensor | None, shape: tuple[int, ...]) -> str | None:
    """Say why a tensor of a weight's shape does not belong to a weight of ``shape``, or None; biases are for who has the module."""
    if weight is not None and squeezed(tuple(weight.shape)) != squeezed(shape):
        return f"made for a weight {squeezed(tuple(weight.shape))}, the module has {squeezed(shape)}"
    return None
