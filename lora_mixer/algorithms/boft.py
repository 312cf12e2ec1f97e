"""
BOFT: a butterfly of block rotations (arXiv:2311.06243), so that few numbers turn every channel into every other.

LyCORIS: ``oft_blocks`` (stages, n, b, b) on the outputs, Q and the constraint as in OFT; stage i shuffles the outputs so
that channels 2^i * b / 2 apart share a block, and each stage is gain * R + (1 - gain) * I.
PEFT: ``boft_R`` (stages, n, b, b) on the inputs, Q = (B - B^T) / 2, R = (I - Q)(I + Q)^-1, and ``boft_s`` multiplies the
outputs. PEFT knows no weights but 1; here its stages go as LyCORIS' and s as 1 + gain * (s - 1).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch

from lora_mixer.algorithms.base import LayerWeights, all_equal, all_zero, rows_and_columns
from lora_mixer.algorithms.oft import OFT, rescaled, rows_misfit
from lora_mixer.algorithms.rotation import cayley, constrained, skew, toward_identity
from lora_mixer.algorithms.rows import Chunks

if TYPE_CHECKING:
    from lora_mixer.algorithms.base import ModuleTensors


_STAGES_AT_MOST = 32


def _checked(blocks: torch.Tensor, parts: ModuleTensors) -> torch.Tensor:
    if blocks.ndim != 4 or blocks.shape[2] != blocks.shape[3]:
        raise parts.broken("expected blocks (stages, n, b, b)")
    stages, number, size = blocks.shape[:3]
    if stages > _STAGES_AT_MOST:
        raise parts.broken(
            f"{stages} butterfly stages, no model is wide enough for more than {_STAGES_AT_MOST}"
        )
    if stages > 1 and (size % 2 or number % 2 ** (stages - 1)):
        raise parts.broken(
            f"{stages} butterfly stages need an even block size and a multiple of {2 ** (stages - 1)} blocks"
        )
    return blocks


@dataclass(frozen=True)
class BOFT(LayerWeights):
    """
    LyCORIS' butterfly of the outputs.

    Attributes:
        blocks: (stages, n, b, b) with n * b outputs.
        rescale: One factor for each output, or None.
        constraint: The stored alpha, as in OFT.
    """

    algorithm: ClassVar[str] = "boft"

    blocks: torch.Tensor
    rescale: torch.Tensor | None
    constraint: float

    @classmethod
    def from_parts(cls, parts: ModuleTensors) -> BOFT:
        """
        Check the tensors of one module.

        Raises:
            InvalidAdapterError: When the blocks are not square or too few for their stages.
        """
        (blocks,) = parts.need("oft_blocks")
        if blocks.shape[-1] % 2:
            raise parts.broken("butterflies need an even block size")
        return cls(_checked(blocks, parts), parts.tensors.get("rescale"), parts.alpha or 0.0)

    def mixes_rows(self, shape: tuple[int, ...]) -> bool:  # noqa: ARG002
        """Rows of a block are rotated into each other."""
        return True

    def misfit(self, shape: tuple[int, ...]) -> str | None:
        """Say why this cannot change a weight of ``shape``, or None."""
        return rows_misfit(self.blocks.shape[1] * self.blocks.shape[2], self.rescale, shape)

    def is_zero(self) -> bool:
        """Say whether nothing is turned or rescaled."""
        return all_zero(self.blocks) and all_equal(self.rescale, 1.0)

    def delta(self, base: torch.Tensor, gain: float) -> torch.Tensor:
        """Return W'(gain) - W."""
        if not gain:
            return base.new_zeros(base.shape)
        blocks = self.blocks.to(base)
        rotations = toward_identity(cayley(constrained(skew(blocks), self.constraint * base.shape[0])), gain)
        rows = base.reshape(base.shape[0], -1)  # (out, in * kernel)
        columns = rows.shape[1]
        for stage, rotation in enumerate(rotations):  # (n, b, b)
            half = 2**stage * rotation.shape[-1] // 2
            # rows (c, 2, half) -> (c, half, 2): partners of the butterfly side by side
            shuffled = rows.view(-1, 2, half, columns).transpose(1, 2).reshape(rows.shape)
            turned = (rotation @ shuffled.view(*rotation.shape[:2], columns)).view(-1, half, 2, columns)
            rows = turned.transpose(1, 2).reshape(rows.shape)
        return rescaled(rows.reshape(base.shape), self.rescale) - base


@dataclass(frozen=True)
class PeftBOFT(LayerWeights):
    """
    PEFT's butterfly of the inputs.

    Attributes:
        blocks: (stages, n, b, b) with n * b inputs (times the kernel).
        multiplier: One factor for each output, or None.
    """

    algorithm: ClassVar[str] = "boft"

    blocks: torch.Tensor
    multiplier: torch.Tensor | None

    @classmethod
    def from_parts(cls, parts: ModuleTensors) -> PeftBOFT:
        """
        Check the tensors of one module.

        Raises:
            InvalidAdapterError: When the blocks are missing, not square or too few for their stages.
        """
        (blocks,) = parts.need("boft_R")
        return cls(_checked(blocks, parts), parts.tensors.get("boft_s"))

    def misfit(self, shape: tuple[int, ...]) -> str | None:
        """Say why this cannot change a weight of ``shape``, or None."""
        rows, columns = rows_and_columns(shape)
        size = self.blocks.shape[1] * self.blocks.shape[2]
        if size != columns:
            return f"rotates {size} inputs, the module has {columns}"
        return rows_misfit(rows, self.multiplier, shape)

    def is_zero(self) -> bool:
        """Say whether nothing is turned or rescaled."""
        return all_zero(self.blocks) and all_equal(self.multiplier, 1.0)

    def delta(self, base: torch.Tensor, gain: float) -> torch.Tensor:
        """Return s * (W @ M^T) - W, with M the product of all stages."""
        rotations = toward_identity(cayley(-0.5 * skew(self.blocks.to(base))), gain)
        columns = base.reshape(base.shape[0], -1).T  # (in * kernel, out): M acts on W^T
        for stage, rotation in enumerate(rotations):  # (n, b, b)
            order = _permutation(columns.shape[0], stage, rotation, len(rotations)).to(columns.device)
            # P @ blockdiag(R) @ P^T, where P is a permutation with P[i, order[i]] = 1
            inner = torch.empty_like(columns)
            inner[order] = columns
            turned = (rotation @ inner.view(*rotation.shape[:2], -1)).flatten(0, 1)
            columns = turned[order]
        factor = None if self.multiplier is None else 1 + gain * (self.multiplier.to(base) - 1)
        return rescaled(columns.T.reshape(base.shape), factor) - base


def _permutation(channels: int, stage: int, rotation: torch.Tensor, stages: int) -> torch.Tensor:
    """Return PEFT's shuffle of a stage: within groups of 2^stage * b channels, half-blocks at even places come first."""
    indices = torch.arange(channels)
    if stages == 1:
        return indices
    number, size = rotation.shape[:2]
    group, half = channels // (number // 2**stage), size // 2
    halves = indices.view(-1, group // half, half)  # (groups, half-blocks, half)
    return torch.cat([halves[:, 0::2], halves[:, 1::2]], dim=1).flatten()


def diagonal_or_butterfly(parts: ModuleTensors) -> LayerWeights:
    """
    Tell LyCORIS' OFT from its BOFT: both say ``oft_blocks``, the butterfly has an axis of stages.

    Kohya's OFT of a fused layer has numbered ones, a rotation for each part.
    """
    numbered = sorted((role for role in parts.tensors if role.startswith("oft_blocks_")), key=len)
    if numbered:
        tensors = parts.need(*(f"oft_blocks_{number}" for number in range(len(numbered))))
        rotations = tuple(OFT.from_parts(replace(parts, tensors={"oft_blocks": t})) for t in tensors)
        sizes = tuple(tensor.shape[0] * tensor.shape[1] for tensor in tensors)
        return rotations[0] if len(rotations) == 1 else Chunks(rotations, sizes, None)
    blocks = parts.tensors.get("oft_blocks")
    return BOFT.from_parts(parts) if blocks is not None and blocks.ndim == 4 else OFT.from_parts(parts)
