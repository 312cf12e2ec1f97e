"""What every adapter algorithm offers to the engines: shapes, exact low-rank factors or a weight change."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import torch


@dataclass(frozen=True)
class Parts:
    """
    The tensors that a file holds for one module, by role, before an algorithm makes sense of them.

    Attributes:
        tensors: Role to tensor, as :mod:`lora_mixer.formats.leaves` names roles.
        alpha: The stored alpha, or that of the file's configuration; None where there is none.
        scale: A scale that overrides alpha / rank; None where there is none.
        rank_stabilised: Whether the scale is alpha / sqrt(rank) (rsLoRA, arXiv:2312.03732).
        label: The module's spelling, for messages.
    """

    tensors: Mapping[str, torch.Tensor]
    alpha: float | None
    scale: float | None
    rank_stabilised: bool
    label: str


@dataclass(frozen=True)
class Factors:
    """
    An exact low-rank form of a weight change: ``scale * up @ down``.

    Attributes:
        up: Shape (out, rank), the file's dtype.
        down: Shape (rank, in * kernel), the file's dtype.
        scale: alpha / rank, or what the file says instead.
    """

    up: torch.Tensor
    down: torch.Tensor
    scale: float


class LayerWeights(abc.ABC):
    """
    One module's part of an adapter: tensors as they lie in the file, and what they mean.

    A new algorithm is a frozen dataclass with these methods and a ``from_parts``; it is listed in
    :data:`lora_mixer.algorithms.ALGORITHMS` and needs nothing else.
    """

    algorithm: ClassVar[str]
    """The name that reports show."""

    alpha: float | None
    """The alpha in force, or None where the file has none."""

    @property
    @abc.abstractmethod
    def rank(self) -> int | None:
        """The rank, or None for an algorithm that has none."""

    @abc.abstractmethod
    def tensors(self) -> Iterator[torch.Tensor]:
        """Yield every tensor held."""

    @abc.abstractmethod
    def misfit(self, shape: tuple[int, ...]) -> str | None:
        """Say why this cannot change a weight of ``shape`` (out, in, *kernel), or None if it can."""

    @abc.abstractmethod
    def factors(self, shape: tuple[int, ...]) -> Factors | None:
        """Give the exact low-rank form for a weight of ``shape``, or None if there is none worth using."""

    @abc.abstractmethod
    def delta(self, base: torch.Tensor, gain: float) -> torch.Tensor:
        """
        Give the weight change at weight ``gain``, computed from the clean base.

        Args:
            base: The base weight in fp32 or fp64, (out, in, *kernel).
            gain: The user's weight.

        Returns:
            A tensor of the base's shape and dtype; all zeros for a gain of 0.
        """

    def bias_delta(self, base: torch.Tensor | None, gain: float) -> torch.Tensor | None:  # noqa: ARG002
        """Give the change of the bias (out,) at weight ``gain``, or None where the adapter has none."""
        return None
