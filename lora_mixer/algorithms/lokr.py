"""
LoKr: W' = W + gain * scale * kron(w1, w2), each factor full or a low-rank product.

LyCORIS (arXiv:2309.14859), PEFT and ai-toolkit. w1 is (a, c), w2 is (b, d, *kernel), out = a * b, in = c * d. The
earliest LyCORIS factorised in * kernel instead of in, so that w2 is a matrix for 3x3 convolutions and w1 may be the
larger one; row-major reshaping makes both one formula.

PEFT's product of a full w2 for kernels of one axis (Conv1d) is another: torch.kron puts axes that w1 lacks in front of it, so
that what comes out is w2[b, d, k] w1[a, c] at output b * a's size + a and input d * c's size + c.

The scale is alpha / rank, the rank that of w2, else of w1. With both factors full LyCORIS does not scale and ai-toolkit
writes a placeholder (9999220736.0), so alpha is ignored; PEFT scales by alpha / r of its configuration all the same.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch

from lora_mixer.algorithms.base import LayerWeights, flat_misfit, take_rows, wide
from lora_mixer.algorithms.loha import pair_is_cheaper, tucker_pair
from lora_mixer.algorithms.outputs import Factors

if TYPE_CHECKING:
    from lora_mixer.algorithms.base import ModuleTensors, Ranges


@dataclass(frozen=True)
class LoKr(LayerWeights):
    """
    A Kronecker product.

    Attributes:
        w1: (a, c), or None when it is ``w1_a @ w1_b``.
        w1_a: (a, rank), or None.
        w1_b: (rank, c), or None.
        w2: (b, d) or (b, d, *kernel), or None when it is ``w2_a @ w2_b``.
        w2_a: (b, rank); with a core (rank, b); or None.
        w2_b: (rank, d * kernel); with a core (rank, d); or None.
        t2: The core (rank, rank, *kernel), or None.
        scale: What the product is multiplied by.
        alpha: The alpha in force; None where there is none or it does not scale.
        is_turned: Whether w2 is the outer factor, as PEFT's are for kernels of one axis; w1 is a matrix or two, w2 (b, d, k) then.
    """

    algorithm: ClassVar[str] = "lokr"
    factors_of_all: ClassVar[tuple[str, ...]] = ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2", "scale")
    told_by_shapes: ClassVar[bool] = True
    needs_base: ClassVar[bool] = False

    w1: torch.Tensor | None
    w1_a: torch.Tensor | None
    w1_b: torch.Tensor | None
    w2: torch.Tensor | None
    w2_a: torch.Tensor | None
    w2_b: torch.Tensor | None
    t2: torch.Tensor | None
    scale: float
    alpha: float | None
    is_turned: bool = False

    @classmethod
    def from_parts(cls, parts: ModuleTensors) -> LoKr:
        """
        Check the tensors of one module and take its scale.

        Raises:
            InvalidAdapterError: When a part is missing or shapes cannot belong together.
        """
        get = parts.tensors.get
        w1, w2, t2 = get("lokr_w1"), get("lokr_w2"), get("lokr_t2")
        w1_a, w1_b = (None, None) if w1 is not None else parts.need("lokr_w1_a", "lokr_w1_b")
        w2_a, w2_b = (None, None) if w2 is not None else parts.need("lokr_w2_a", "lokr_w2_b")
        for pair, core in (((w1_a, w1_b), None), ((w2_a, w2_b), t2)):
            if pair[0] is not None and pair[1] is not None and not _multiply(pair[0], pair[1], core):
                raise parts.broken("do not multiply: expected w_a (n, rank) and w_b (rank, m)")
        if (w1 is not None and w1.ndim != 2) or (w2 is not None and w2.ndim < 2):
            raise parts.broken("expected w1 a matrix and w2 a matrix or a kernel")
        inner = w2_b if w2_b is not None else w1_b
        if inner is not None:
            scale, alpha = parts.scale_for(inner.shape[0]), parts.alpha
        elif parts.rank is not None:
            scale, alpha = parts.scale_for(parts.rank), parts.alpha
        else:
            scale, alpha = (1.0 if parts.scale is None else parts.scale) * parts.scalar, None
        is_turned = w2 is not None and w2.ndim == 3 and parts.config.get("peft_type") == "LOKR"
        return cls(w1, w1_a, w1_b, w2, w2_a, w2_b, t2, scale, alpha, is_turned)

    @property
    def rank(self) -> int | None:
        """The rank of w2's product, else that of w1's; None with both factors full."""
        inner = self.w2_b if self.w2_b is not None else self.w1_b
        return None if inner is None else inner.shape[0]

    def lycoris_tensors(self) -> dict[str, torch.Tensor]:
        """
        Return the factors and an alpha; nothing where LyCORIS has no such product.

        Two full factors have no rank that an alpha could be over, so the first takes the scale.
        """
        if self.is_turned:
            return {}
        names = ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")
        tensors = {f".lokr_{name}": half for name in names if (half := getattr(self, name)) is not None}
        rank = self.rank
        if rank is None and self.w1 is not None and self.scale != 1:
            tensors[".lokr_w1"] = self.w1 * self.scale
        alpha = 1.0 if rank is None else self.scale * rank
        return tensors | {".alpha": torch.tensor(alpha, dtype=torch.float32)}

    def _outer(self) -> tuple[int, int]:
        left, right = (self.w1, self.w1) if self.w1 is not None else (self.w1_a, self.w1_b)
        assert left is not None and right is not None  # noqa: S101, PT018 -- from_parts has seen to it
        return left.shape[0], right.shape[1]

    def _inner_size(self) -> tuple[int, int]:
        if self.w2 is not None:
            return self.w2.shape[0], self.w2[0].numel()
        assert self.w2_a is not None and self.w2_b is not None  # noqa: S101, PT018
        if self.t2 is None:
            return self.w2_a.shape[0], self.w2_b.shape[1]
        return self.w2_a.shape[1], self.w2_b.shape[1] * self.t2[0, 0].numel()

    @property
    def in_width(self) -> int:
        """Input width (times the kernel, for convolutions)."""
        return self._outer()[1] * self._inner_size()[1]

    def take(self, ranges: Ranges, total: int) -> LayerWeights:
        """Return rows of ``w1`` where they are whole blocks of the product; other rows are cut after it."""
        block = self._inner_size()[0]
        if self.is_turned or any(edge % block for span in ranges for edge in span):
            return super().take(ranges, total)
        blocks = tuple((start // block, stop // block) for start, stop in ranges)
        if self.w1 is not None:
            return replace(self, w1=take_rows(self.w1, blocks))
        assert self.w1_a is not None  # noqa: S101
        return replace(self, w1_a=take_rows(self.w1_a, blocks))

    def misfit(self, shape: tuple[int, ...]) -> str | None:
        """Say why this cannot change a weight of ``shape``, or None."""
        (a, c), (b, d) = self._outer(), self._inner_size()
        return flat_misfit((a * b, c * d), shape)

    def _left(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        if self.w1 is not None:
            return self.w1, None
        assert self.w1_a is not None  # noqa: S101
        return self.w1_a, self.w1_b

    def _right(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return w2 as a matrix (b, d * kernel), or as two whose product it is."""
        if self.w2 is not None:
            return self.w2.flatten(1), None
        assert self.w2_a is not None and self.w2_b is not None  # noqa: S101, PT018
        return (self.w2_a, self.w2_b) if self.t2 is None else tucker_pair(self.t2, self.w2_a, self.w2_b)

    def factors(self, shape: tuple[int, ...]) -> Factors | None:
        """Return kron(u1, u2) @ kron(v1, v2), exact for w1 = u1 @ v1 and w2 = u2 @ v2, where that is cheaper."""
        u1, v1 = self._left()
        u2, v2 = self._right()
        if self.is_turned or not pair_is_cheaper(min(u1.shape) * min(u2.shape), shape):
            return None
        return Factors(
            kronecker(wide(_up(u1, v1)), wide(_up(u2, v2))),
            kronecker(wide(_down(u1, v1)), wide(_down(u2, v2))),
            self.scale,
        )

    def delta(self, base: torch.Tensor, gain: float) -> torch.Tensor:
        """Return gain * scale * kron(w1, w2) in the base's dtype and shape."""
        left, right = (
            u.to(base) if v is None else u.to(base) @ v.to(base) for u, v in (self._left(), self._right())
        )
        # the smaller factor takes the scale; it is a product or a copy by now
        if self.is_turned and self.w2 is not None:
            kernels = self.w2.to(base).movedim(2, 0)  # (k, b, d)
            each = torch.stack([torch.kron(kernel, left) for kernel in kernels], dim=-1)
            return each.mul_(gain * self.scale).reshape(base.shape)
        return kronecker(left * (gain * self.scale), right).reshape(base.shape)


def kronecker(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Return the Kronecker product of two matrices in any memory layout, in the wider of their dtypes."""
    dtype = torch.promote_types(left.dtype, right.dtype)
    return torch.kron(left.to(dtype).contiguous(), right.to(dtype).contiguous())  # it takes views of both


def _multiply(left: torch.Tensor, right: torch.Tensor, core: torch.Tensor | None) -> bool:
    if left.ndim != 2 or right.ndim != 2:
        return False
    if core is None:
        return left.shape[1] == right.shape[0]
    return core.ndim > 2 and core.shape[:2] == (left.shape[0], right.shape[0])


def _up(left: torch.Tensor, right: torch.Tensor | None) -> torch.Tensor:
    """Return u of a factor u @ v; a full factor is itself times the identity, on its narrower side."""
    if right is not None or left.shape[1] <= left.shape[0]:
        return left
    return torch.eye(left.shape[0], device=left.device, dtype=left.dtype)


def _down(left: torch.Tensor, right: torch.Tensor | None) -> torch.Tensor:
    """Return v of a factor u @ v."""
    if right is not None:
        return right
    return (
        left
        if left.shape[1] > left.shape[0]
        else torch.eye(left.shape[1], device=left.device, dtype=left.dtype)
    )
