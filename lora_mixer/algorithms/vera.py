"""
VeRA: W' = W + gain * diag(b) @ B @ diag(d) @ A, with random A and B that all modules share (arXiv:2310.11454).

PEFT saves A (r, widest in) and B (widest out, r) once for the whole file with ``save_projection``; a module uses the
first columns of A and the first rows of B. Without them the file holds only the two vectors and cannot be applied.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lora_mixer.algorithms.base import Factored, rows_and_columns, wide
from lora_mixer.algorithms.outputs import Factors
from lora_mixer.errors import UnsupportedAdapterError

if TYPE_CHECKING:
    import torch

    from lora_mixer.algorithms.base import ModuleTensors


@dataclass(frozen=True)
class Vera(Factored):
    """
    Two vectors and the shared matrices.

    Attributes:
        lambda_b: (out,).
        lambda_d: (rank,).
        up: The shared B (widest out, rank).
        down: The shared A (rank, widest in).
    """

    algorithm: ClassVar[str] = "vera"
    factors_of_all: ClassVar[tuple[str, ...]] = ("lambda_b", "lambda_d", "up", "down")

    lambda_b: torch.Tensor
    lambda_d: torch.Tensor
    up: torch.Tensor
    down: torch.Tensor

    @classmethod
    def from_parts(cls, parts: ModuleTensors) -> Vera:
        """
        Check the tensors of one module and those that all share.

        Raises:
            UnsupportedAdapterError: When the shared matrices were not saved.
            InvalidAdapterError: When a part is missing or shapes cannot belong together.
        """
        lambda_b, lambda_d = parts.need("vera_lambda_b", "vera_lambda_d")
        if not {"vera_A", "vera_B"} <= set(parts.tensors):
            raise UnsupportedAdapterError(
                "VeRA without its shared matrices vera_A and vera_B; save it again with PEFT's save_projection, only "
                "then does the file hold the whole adapter",
                key=parts.label,
            )
        down, up = parts.need("vera_A", "vera_B")
        rank = lambda_d.numel()
        if up.ndim != 2 or down.ndim != 2 or (down.shape[0], up.shape[1]) != (rank, rank):
            raise parts.broken("do not multiply: expected vera_B (out, r), lambda_d (r,), vera_A (r, in)")
        return cls(lambda_b.flatten(), lambda_d.flatten(), up, down)

    @property
    def rank(self) -> int:
        """The rank of the shared matrices."""
        return self.lambda_d.numel()

    def misfit(self, shape: tuple[int, ...]) -> str | None:
        """Say why this cannot change a weight of ``shape``, or None."""
        if len(shape) < 2:
            return "made for a matrix, the module has a vector"
        rows, columns = rows_and_columns(shape)
        if self.lambda_b.numel() != rows:
            return f"made for {self.lambda_b.numel()} outputs, the module has {rows}"
        if self.up.shape[0] < rows or self.down.shape[1] < columns:
            return f"the shared matrices reach to {self.up.shape[0]} x {self.down.shape[1]}, the module has {rows} x {columns}"
        return None

    def factors(self, shape: tuple[int, ...]) -> Factors:
        """Return diag(b) @ B and diag(d) @ A, cut to the weight."""
        rows, columns = rows_and_columns(shape)
        up = wide(self.lambda_b)[:, None] * wide(self.up[:rows])
        down = wide(self.lambda_d)[:, None] * wide(self.down[:, :columns])
        return Factors(up, down, 1.0)
