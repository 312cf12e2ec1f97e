"""
LoRA on a bare parameter (PEFT's ``target_parameters``): the experts of a layer in one tensor, or a router's weight.

For a weight (E, out, in) there is one A of (E r, in), its rows by expert, and one B of (out, r E), its columns by rank:

    delta[e] = s * B.view(out, r, E)[:, :, e] @ A.view(E, r, in)[e]

A weight (out, in) has an ordinary pair. Which parameter a pair is for is not in its key: the pairs of one module are
wrapped around each other, and the module's own order of parameters tells (:mod:`lora_mixer.binding.parameters`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch

from lora_mixer.algorithms.lora import LowRank

if TYPE_CHECKING:
    from lora_mixer.algorithms.base import LayerWeights, ModuleTensors, Ranges
    from lora_mixer.algorithms.outputs import Factors


@dataclass(frozen=True)
class ParameterPair(LowRank):
    """
    A pair for one of a module's parameters.

    Attributes:
        scales: The scale and the alpha for each parameter that it may be for, by the parameter's name.
        transposed: Whether a weight of three dimensions is stored (E, in, out).
    """

    algorithm: ClassVar[str] = "lora"

    scales: tuple[tuple[str, float, float | None], ...] = ()
    transposed: bool = False

    @classmethod
    def from_parts_for(
        cls, parts: ModuleTensors, scales: tuple[tuple[str, float, float | None], ...]
    ) -> ParameterPair:
        """
        Take a pair whose parameter is not known yet.

        Raises:
            InvalidAdapterError: When a half is missing or shapes cannot belong together.
        """
        pair = LowRank.from_parts(parts)
        return cls(pair.up, pair.down, pair.mid, pair.up_bias, pair.scale, pair.alpha, scales)

    def on(self, name: str, *, transposed: bool) -> ParameterPair:
        """Return the pair with the scale of one of its parameters."""
        scale, alpha = next(
            ((s, a) for known, s, a in self.scales if known == name), (self.scale, self.alpha)
        )
        return replace(self, scale=scale, alpha=alpha, transposed=transposed)

    def is_zero(self) -> bool:
        """Say whether the pair is zero for every parameter that it may be for."""
        scales = [scale for _, scale, _ in self.scales] or [self.scale]
        return (
            all(replace(self, scale=scale, scales=()).is_zero() for scale in scales)
            if self.scales
            else super().is_zero()
        )

    def take(self, ranges: Ranges, total: int) -> LayerWeights:
        """Return rows of an ordinary pair; experts are never in pieces."""
        return self if ranges == ((0, total),) else super().take(ranges, total)

    def misfit(self, shape: tuple[int, ...]) -> str | None:
        """Say why this cannot change a parameter of ``shape``, or None."""
        if len(shape) != 3:
            return super().misfit(shape)
        experts, out, width = (shape[0], shape[2], shape[1]) if self.transposed else shape
        if self.rank % experts or (self.up.shape[0], self.down.shape[1]) != (out, width):
            return (
                f"a pair of {self.rank} ranks, {self.up.shape[0]} outputs and {self.down.shape[1]} inputs; the parameter has "
                f"{experts} experts of {out} x {width}"
            )
        return None

    def factors(self, shape: tuple[int, ...]) -> Factors | None:  # type: ignore[override]  # experts are not a pair
        """Return the ordinary pair; that of experts is none."""
        return None if len(shape) == 3 else super().factors(shape)

    def delta(self, base: torch.Tensor, gain: float) -> torch.Tensor:
        """Return the change of each expert."""
        if base.ndim != 3:
            return super().delta(base, gain)
        experts = base.shape[0]
        down = self.down.to(base).reshape(experts, -1, self.down.shape[1])  # (E, r, in)
        up = self.up.to(base).reshape(self.up.shape[0], -1, experts)  # (out, r, E)
        form = "ore,eri->eio" if self.transposed else "ore,eri->eoi"
        return torch.einsum(form, up, down).mul_(gain * self.scale)
