"""
LoRA and LoCon: W' = W + gain * (alpha / rank) * up @ down.

LoRA (arXiv:2106.09685) on linear layers, LoCon (LyCORIS, arXiv:2309.14859) on convolutions, plain or with the
CP/Tucker core ``mid``: delta = einsum('mnkl,im,nj->ijkl', mid, up, down), which folds exactly into two factors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch

from lora_mixer.algorithms.base import Factored, LayerWeights, all_zero, squeezed, take_bias, take_rows
from lora_mixer.algorithms.outputs import Factors
from lora_mixer.errors import InvalidAdapterError, UnsupportedAdapterError

if TYPE_CHECKING:
    from lora_mixer.algorithms.base import ModuleTensors, Ranges

INPAINT_CHANNELS = (4, 9)
"""Latent channels that an adapter was trained on and those of an inpainting UNet's first convolution."""


def fold_core(mid: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """
    Fold a Tucker core (r, n, k, k) into ``down`` (n, in, 1, 1): the (r, in, k, k) of an ordinary LoCon.

    Computed in fp32, so that the fold adds no rounding of the file's dtype.
    """
    flat = down.flatten(1).float()
    return torch.einsum("mn...,nj->mj...", mid.float(), flat)


def groups_of(up: torch.Tensor, down: torch.Tensor) -> int:
    """Tell in how many groups PEFT's ``lora_B`` (out, rank / groups, ...) works on what ``lora_A`` (rank, in, ...) makes."""
    groups = down.shape[0] // max(up.shape[1], 1)
    apart = up.ndim > 2 and groups > 1 and down.shape[0] == groups * up.shape[1]
    return groups if apart and up.shape[0] % groups == 0 else 1


@dataclass(frozen=True)
class LowRank(Factored):
    """
    A LoRA or LoCon pair.

    Attributes:
        up: (out, rank) or (out, rank, 1, 1).
        down: (rank, in) or (rank, in, k, k); with a core (n, in, 1, 1).
        mid: The core (rank, n, k, k), or None.
        up_bias: (out,), PEFT's ``lora_B.bias``: scaled like the pair; or None.
        scale: What ``up @ down`` is multiplied by.
        alpha: The alpha in force, or None where the file has none (then scale is 1).
    """

    algorithm: ClassVar[str] = "lora"
    told_by_shapes: ClassVar[bool] = True

    up: torch.Tensor
    down: torch.Tensor
    mid: torch.Tensor | None
    up_bias: torch.Tensor | None
    scale: float
    alpha: float | None

    @classmethod
    def from_parts(cls, parts: ModuleTensors) -> LowRank:
        """
        Check the tensors of one module and take its scale.

        Raises:
            InvalidAdapterError: When a half is missing or shapes cannot belong together.
            UnsupportedAdapterError: When the pair is PEFT's for a convolution in groups.
        """
        tensors = dict(parts.tensors)
        if "embedding_down" in tensors or "embedding_up" in tensors:
            # PEFT on nn.Embedding: weight (tokens, width) changes by (B @ A).T with A (r, tokens), B (width, r)
            flipped = {"embedding_down": "up", "embedding_up": "down"}
            tensors = {
                flipped.get(role, role): tensor.T if role in flipped else tensor
                for role, tensor in tensors.items()
            }
        up, down, mid = tensors.get("up"), tensors.get("down"), tensors.get("mid")
        if up is None or down is None:
            there, missing = ("down", "up") if up is None else ("up", "down")
            raise InvalidAdapterError(
                f"has lora {there} but no lora {missing}; the file is incomplete", key=parts.label
            )
        if up.ndim < 2 or down.ndim < 2 or (mid is not None and mid.ndim < 3):
            raise parts.broken("expected matrices or convolution kernels")
        rank = mid.shape[0] if mid is not None else down.shape[0]
        inner = mid.shape[1] if mid is not None else rank
        groups = groups_of(up, down) if mid is None else 1
        if groups > 1:
            raise UnsupportedAdapterError(
                f"up {tuple(up.shape)} works in {groups} groups on all that down {tuple(down.shape)} makes of "
                "all inputs (PEFT on a convolution in groups): each output hears every input then, which no weight of "
                f"such a layer can hold, (out, in / {groups}, ...), nor what this file makes of it",
                key=parts.label,
            )
        if (
            0 in (rank, inner)
            or up.shape[1] != rank
            or math.prod(up.shape[2:]) != 1
            or down.shape[0] != inner
        ):
            raise parts.broken("do not multiply: expected up (out, rank[, 1, 1]), down (rank, in[, k, k])")
        if mid is not None and math.prod(down.shape[2:]) != 1:
            raise parts.broken("with a core, down must be (rank, in, 1, 1)")
        return cls(up, down, mid, tensors.get("up_bias"), parts.scale_for(down.shape[0]), parts.alpha)

    @property
    def rank(self) -> int:
        """The rank."""
        return self.up.shape[1]

    def is_zero(self) -> bool:
        """Say whether its scale is zero, or a half of the pair or its core is and no bias is there."""
        idle = all_zero(self.up) or all_zero(self.down) or all_zero(self.mid)
        return self.scale == 0 or (idle and (self.up_bias is None or all_zero(self.up_bias)))

    def limited(self, rank: int) -> LowRank:
        """Return the first ranks (DyLoRA, arXiv:2210.07558, trains each prefix to work by itself); the scale stays."""
        if self.mid is not None or rank >= self.rank:
            return self
        return replace(self, up=self.up[:, :rank], down=self.down[:rank])

    def take(self, ranges: Ranges, total: int) -> LayerWeights:
        """Return rows of ``up`` and of its bias, and the same ``down`` and scale."""
        if self.up_bias is None and ranges == ((0, total),) and self.up.shape[0] == total:
            return self
        bias = None if self.up_bias is None else take_bias(self.up_bias, ranges, total)
        return replace(self, up=take_rows(self.up, ranges), up_bias=bias)

    @property
    def in_width(self) -> int:
        """Input width."""
        return self.down.shape[1]

    @property
    def shape(self) -> tuple[int, ...]:
        """The weight shape that the pair is made for: (out, in, *kernel)."""
        kernel = self.down.shape[2:] if self.mid is None else self.mid.shape[2:]
        return (self.up.shape[0], self.down.shape[1], *kernel)

    def misfit(self, shape: tuple[int, ...]) -> str | None:
        """Say why this cannot change a weight of ``shape``, or None; 1x1 convolutions and linears are one."""
        made_for = self.shape
        if len(shape) > 1 and made_for[:2] == shape[:2] and math.prod(made_for[2:]) == math.prod(shape[2:]):
            return None
        if self._pads(shape):
            return None
        return f"made for a weight {squeezed(made_for)}, the module has {squeezed(shape)}"

    def _pads(self, shape: tuple[int, ...]) -> bool:
        made_for = self.shape
        if len(made_for) != 4 or len(shape) != 4:  # two kernel dimensions
            return False
        return (
            made_for[0] == shape[0]
            and made_for[2:] == shape[2:]
            and (made_for[1], shape[1]) == INPAINT_CHANNELS
        )

    def factors(self, shape: tuple[int, ...]) -> Factors:
        """Return ``up`` (out, rank) and ``down`` (rank, in * kernel); inpainting's extra channels get zeros."""
        down = self.down if self.mid is None else fold_core(self.mid, self.down)
        if self._pads(shape):
            down = torch.nn.functional.pad(down, (0, 0, 0, 0, 0, shape[1] - down.shape[1]))
        up = self.up  # a view of a matrix is one more object, of which there are thousands
        return Factors(
            up if up.ndim == 2 else up.flatten(1), down if down.ndim == 2 else down.flatten(1), self.scale
        )

    def bias_delta(self, base: torch.Tensor | None, gain: float) -> torch.Tensor | None:
        """Return the scaled ``up_bias``."""
        if self.up_bias is None:
            return None
        return self.up_bias.flatten().to(torch.float32 if base is None else base.dtype) * (gain * self.scale)
