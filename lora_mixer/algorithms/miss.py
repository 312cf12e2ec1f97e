"""
MiSS: the rows of one small matrix are added to the weight again and again (arXiv:2409.15371), as PEFT writes it.

``miss_block`` (r, out): W'[o, i] = W[o, i] + gain * block[i mod r, o]; in the "mini" form the block's columns repeat over
the outputs, too. In the "bat" form ``miss_block`` is (out / r, r, r) and a block of rows changes by itself as well:
W'_b = W_b + gain * (W_b @ block_b + block_b) for each tile W_b of r rows and r columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lora_mixer.algorithms.base import LayerWeights

if TYPE_CHECKING:
    import torch

    from lora_mixer.algorithms.base import ModuleTensors


@dataclass(frozen=True)
class MiSS(LayerWeights):
    """
    A shared shard.

    Attributes:
        block: (r, out), (r, part of out) or (out / r, r, r).
    """

    algorithm: ClassVar[str] = "miss"
    factors_of_all: ClassVar[tuple[str, ...]] = ("block",)

    block: torch.Tensor

    @classmethod
    def from_parts(cls, parts: ModuleTensors) -> MiSS:
        """
        Check the tensor of one module.

        Raises:
            InvalidAdapterError: When it is missing or has other axes.
        """
        (block,) = parts.need("miss_block")
        if block.ndim not in (2, 3) or (block.ndim == 3 and block.shape[1] != block.shape[2]):
            raise parts.broken("expected (r, out) or (out / r, r, r)")
        return cls(block)

    @property
    def rank(self) -> int:
        """The height of the shard."""
        return self.block.shape[-2]

    def mixes_rows(self, shape: tuple[int, ...]) -> bool:  # noqa: ARG002
        """Tiles of W @ block have as many rows as columns; the shard alone does not look at the base."""
        return self.block.ndim == 3

    def misfit(self, shape: tuple[int, ...]) -> str | None:
        """Say why this cannot change a weight of ``shape``, or None."""
        if len(shape) != 2:
            return f"made for a linear, the module has {shape}"
        if self.block.ndim == 3:
            rows = self.block.shape[0] * self.rank
            fits = rows == shape[0] and shape[1] % self.rank == 0
            return (
                None if fits else f"made for {rows} outputs in tiles of {self.rank}, the module has {shape}"
            )
        width = self.block.shape[1]
        return None if shape[0] % width == 0 else f"made for {width} outputs, the module has {shape[0]}"

    def delta(self, base: torch.Tensor, gain: float) -> torch.Tensor:
        """Return the shard over all columns, or W @ block + block tile by tile."""
        block = self.block.to(base) * gain
        rows, columns = base.shape
        if block.ndim == 3:
            tiles = base.reshape(-1, self.rank, columns // self.rank, self.rank).transpose(
                1, 2
            )  # (n, m, r, r)
            change = tiles @ block.unsqueeze(1) + block.unsqueeze(1)
            return change.transpose(1, 2).reshape(base.shape)
        repeats = -(-columns // self.rank)
        return block.repeat(repeats, rows // block.shape[1])[:columns].T
