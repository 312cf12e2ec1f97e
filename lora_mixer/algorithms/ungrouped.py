"""
A pair over a convolution in groups that hears all inputs: no weight of the layer can hold it, so it runs beside.

A convolution in g groups has a weight (out, in / g, *kernel): each output hears the inputs of its group. PEFT's ``lora_A`` on
such a layer is a convolution of all inputs, and its ``lora_B`` (out, rank / g) one in g groups of what ``lora_A`` makes;
Kohya's pair has no groups at all. Either is a pair of a convolution without groups, (out, in, *kernel), whose output is added.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from lora_mixer.algorithms.base import LayerWeights, Wrapped
from lora_mixer.algorithms.lora import LowRank, groups_of
from lora_mixer.errors import UnsupportedAdapterError

if TYPE_CHECKING:
    import torch

    from lora_mixer.algorithms.base import ModuleTensors, Ranges
    from lora_mixer.algorithms.outputs import Factors


@dataclass(frozen=True)
class Ungrouped(Wrapped):
    """
    A pair over all inputs of a convolution in groups.

    Attributes:
        inner: The pair, for a weight (out, in, *kernel) without groups.
        groups: The groups of the layer.
        alpha: The alpha in force.
    """

    algorithm: ClassVar[str] = "ungrouped"
    beside_only: ClassVar[bool] = True

    inner: LayerWeights
    groups: int
    alpha: float | None

    def whole_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of a weight over all inputs, for that of the layer's (out, in / groups, *kernel)."""
        return (shape[0], shape[1] * self.groups, *shape[2:])

    def misfit(self, shape: tuple[int, ...]) -> str | None:
        """Say why this cannot stand beside a convolution with a weight of ``shape`` (out, in / groups, *kernel), or None."""
        if len(shape) < 3:
            return f"made for a convolution in {self.groups} groups, the module has a weight {shape}"
        if self.inner.bias_delta(None, 1.0) is not None:
            return "a pair over all inputs of a convolution in groups runs beside the layer, where it can have no bias"
        return self.inner.misfit(self.whole_shape(shape))

    def take(self, ranges: Ranges, total: int) -> LayerWeights:
        """Return the pair of some rows."""
        return Ungrouped(self.inner.take(ranges, total), self.groups, self.alpha)

    def factors(self, shape: tuple[int, ...]) -> Factors | None:
        """Return ``up`` (out, rank) and ``down`` (rank, in * kernel), with all inputs of the layer."""
        return self.inner.factors(self.whole_shape(shape))

    def delta(self, base: torch.Tensor, gain: float) -> torch.Tensor:  # noqa: ARG002 -- there is none
        """
        Refuse: there is no such change of a weight.

        Raises:
            UnsupportedAdapterError: Always.
        """
        raise UnsupportedAdapterError(
            f"a pair over all inputs of a convolution in {self.groups} groups: no weight of such a layer, (out, in / "
            f"{self.groups}, ...), can hold it; it runs beside the layer only"
        )


def without_groups(up: torch.Tensor, groups: int) -> torch.Tensor:
    """
    Return PEFT's ``lora_B`` (out, rank / groups, ...) in groups as one without, (out, rank, ...): zeros between groups.

    Example:
        >>> import torch
        >>> without_groups(torch.tensor([[1.0], [2.0]]), 2)
        tensor([[1., 0.],
                [0., 2.]])
    """
    out, rank = up.shape[0] // groups, up.shape[1]
    whole = up.new_zeros(up.shape[0], rank * groups, *up.shape[2:])
    for n in range(groups):
        whole[n * out : (n + 1) * out, n * rank : (n + 1) * rank] = up[n * out : (n + 1) * out]
    return whole


def pair_of_any_groups(parts: ModuleTensors) -> LayerWeights:
    """
    Take a pair; PEFT's for a convolution in groups as one for the layer without groups.

    Raises:
        InvalidAdapterError: When a half is missing or shapes cannot belong together.
    """
    up, down = parts.tensors.get("up"), parts.tensors.get("down")
    plain = up is None or down is None or min(up.ndim, down.ndim) < 3 or "mid" in parts.tensors
    groups = 1 if up is None or down is None or plain else groups_of(up, down)
    if groups == 1 or up is None:
        return LowRank.from_parts(parts)
    whole = replace(parts, tensors={**parts.tensors, "up": without_groups(up, groups)})
    return Ungrouped(LowRank.from_parts(whole), groups, parts.alpha)
