"""
LoRA and LoCon: W' = W + gain * (alpha / rank) * up @ down.

LoRA (arXiv:2106.09685) on linear layers, LoCon (LyCORIS, arXiv:2309.14859) on convolutions, plain or with the
CP/Tucker core ``mid``: delta = einsum('mnkl,im,nj->ijkl', mid, up, down), which folds exactly into two factors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from lora_mixer.algorithms.base import Factors, LayerWeights
from lora_mixer.errors import InvalidAdapterError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lora_mixer.algorithms.base import Parts

INPAINT_CHANNELS = (4, 9)
"""Latent channels that an adapter was trained on and those of an inpainting UNet's first convolution."""


def fold_core(mid: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """
    Fold a Tucker core (r, n, k, k) into ``down`` (n, in, 1, 1): the (r, in, k, k) of an ordinary LoCon.

    Computed in fp32, so that the fold adds no rounding of the file's dtype.
    """
    flat = down.flatten(1).float()
    return torch.einsum("mn...,nj->mj...", mid.float(), flat)


@dataclass(frozen=True)
class LowRank(LayerWeights):
    """
    A LoRA or LoCon pair.

    Attributes:
        up: (out, rank) or (out, rank, 1, 1).
        down: (rank, in) or (rank, in, k, k); with a core (n, in, 1, 1).
        mid: The core (rank, n, k, k), or None.
        up_bias: (out,), PEFT's ``lora_B.bias``: scaled like the pair; or None.
        set_bias: (out,), a trained bias that replaces the module's own (PEFT ``bias="lora_only"``); or None.
        scale: What ``up @ down`` is multiplied by.
        alpha: The alpha in force, or None where the file has none (then scale is 1).
    """

    algorithm: ClassVar[str] = "lora"

    up: torch.Tensor
    down: torch.Tensor
    mid: torch.Tensor | None
    up_bias: torch.Tensor | None
    set_bias: torch.Tensor | None
    scale: float
    alpha: float | None

    @classmethod
    def from_parts(cls, parts: Parts) -> LowRank:
        """
        Check the tensors of one module and take its scale.

        Raises:
            InvalidAdapterError: When a half is missing or shapes cannot belong together.
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
            msg = f"{parts.label}: has lora {there} but no lora {missing}; the file is incomplete"
            raise InvalidAdapterError(msg)
        shapes = f"up {tuple(up.shape)}, down {tuple(down.shape)}" + (
            f", mid {tuple(mid.shape)}" if mid is not None else ""
        )
        if up.ndim < 2 or down.ndim < 2 or (mid is not None and mid.ndim < 3):
            msg = f"{parts.label}: {shapes}: expected matrices or convolution kernels"
            raise InvalidAdapterError(msg)
        rank = mid.shape[0] if mid is not None else down.shape[0]
        inner = mid.shape[1] if mid is not None else rank
        if (
            0 in (rank, inner)
            or up.shape[1] != rank
            or math.prod(up.shape[2:]) != 1
            or down.shape[0] != inner
        ):
            msg = f"{parts.label}: {shapes} do not multiply: expected up (out, rank[, 1, 1]), down (rank, in[, k, k])"
            raise InvalidAdapterError(msg)
        if mid is not None and math.prod(down.shape[2:]) != 1:
            msg = f"{parts.label}: {shapes}: with a core, down must be (rank, in, 1, 1)"
            raise InvalidAdapterError(msg)
        divisor = math.sqrt(down.shape[0]) if parts.rank_stabilised else down.shape[0]
        # No alpha means alpha = rank in every tool; with rsLoRA a configuration always carries it.
        scale = 1.0 if parts.alpha is None else parts.alpha / divisor
        if parts.scale is not None:
            scale = parts.scale
        return cls(up, down, mid, tensors.get("up_bias"), tensors.get("set_bias"), scale, parts.alpha)

    @property
    def rank(self) -> int:
        """The rank."""
        return self.up.shape[1]

    def tensors(self) -> Iterator[torch.Tensor]:
        """Yield every tensor held."""
        yield from (t for t in (self.up, self.down, self.mid, self.up_bias, self.set_bias) if t is not None)

    @property
    def shape(self) -> tuple[int, ...]:
        """The weight shape that the pair is made for: (out, in, *kernel)."""
        kernel = self.down.shape[2:] if self.mid is None else self.mid.shape[2:]
        return (self.up.shape[0], self.down.shape[1], *kernel)

    def misfit(self, shape: tuple[int, ...]) -> str | None:
        """Say why this cannot change a weight of ``shape``, or None; 1x1 convolutions and linears are one."""
        own = self.shape
        for bias in (self.up_bias, self.set_bias):
            if bias is not None and bias.numel() != shape[0]:
                return f"bias of {bias.numel()} values, the module has {shape[0]} outputs"
        if own[0] == shape[0] and math.prod(own[1:]) == math.prod(shape[1:]) and own[1] == shape[1]:
            return None
        if self._pads(shape):
            return None
        return f"made for a weight {_squeezed(own)}, the module has {_squeezed(shape)}"

    def _pads(self, shape: tuple[int, ...]) -> bool:
        own = self.shape
        return (
            len(own) == 4
            and own[0] == shape[0]
            and own[2:] == shape[2:]
            and (own[1], shape[1]) == INPAINT_CHANNELS
        )

    def factors(self, shape: tuple[int, ...]) -> Factors:
        """Give ``up`` (out, rank) and ``down`` (rank, in * kernel); inpainting's extra channels get zeros."""
        down = self.down if self.mid is None else fold_core(self.mid, self.down)
        if self._pads(shape):
            down = torch.nn.functional.pad(down, (0, 0, 0, 0, 0, shape[1] - down.shape[1]))
        return Factors(self.up.flatten(1), down.flatten(1), self.scale)

    def delta(self, base: torch.Tensor, gain: float) -> torch.Tensor:
        """Give gain * scale * up @ down in the base's dtype and shape."""
        pair = self.factors(tuple(base.shape))
        up, down = pair.up.to(base), pair.down.to(base)
        return (up @ down).mul_(gain * pair.scale).reshape(base.shape)

    def bias_delta(self, base: torch.Tensor | None, gain: float) -> torch.Tensor | None:
        """
        Give the change of the bias: the scaled ``up_bias``, and the whole way to ``set_bias``.

        A trained bias is a value, not a change: PEFT puts it in place at any weight, and so does this for any weight
        but 0. A bias that the base lacks counts as zeros.
        """
        total: torch.Tensor | None = None
        if self.up_bias is not None:
            total = self.up_bias.float() * (gain * self.scale)
        if self.set_bias is not None and gain:
            target = self.set_bias.float()
            change = target if base is None else target - base.to(target)
            total = change if total is None else total + change
        return total


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[:2] if math.prod(shape[2:]) == 1 else shape
