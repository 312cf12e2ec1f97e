"""
Which ranks AdaLoRA keeps while it is trained (arXiv:2303.10512, sections 3.2 and 3.3), as PEFT does it.

Every entry of A, E and B has an importance, |value * gradient| smoothed over steps, times how much it varies, smoothed as
well. A triplet (a singular value, its row of A and its column of B) scores its value's importance plus the means over
row and column. A budget says how many triplets all modules together may keep; those that score least get the value 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True)
class RankSchedule:
    """
    How many ranks are kept at which step.

    Attributes:
        initial: Triplets of all modules at the start.
        target: Triplets of all modules in the end.
        warm_up: Steps during which all are kept (PEFT's ``tinit``).
        final: Steps at the end during which no more are chosen (``tfinal``).
        every: Steps between two choices (``deltaT``).
        total: Steps of the whole training (``total_step``).
    """

    initial: int
    target: int
    warm_up: int
    final: int
    every: int
    total: int

    def budget(self, step: int) -> int:
        """
        Return how many triplets may stay at a step: all, then a cubic fall, then the target.

        Example:
            >>> schedule = RankSchedule(initial=12, target=4, warm_up=2, final=2, every=1, total=10)
            >>> [schedule.budget(step) for step in (0, 2, 3, 5, 8, 9)]
            [12, 12, 8, 5, 4, 4]
        """
        if step <= self.warm_up:
            return self.initial
        if step > self.total - self.final:
            return self.target
        left = 1 - (step - self.warm_up) / (self.total - self.final - self.warm_up)
        return int((self.initial - self.target) * left**3 + self.target)

    def chooses(self, step: int) -> bool:
        """Say whether ranks are chosen after a step: every so many while the budget falls, and once at its end."""
        end = self.total - self.final
        return step == end or (self.warm_up < step < end and step % self.every == 0)


@dataclass(frozen=True)
class Importance:
    """
    How much a tensor's entries matter, smoothed over steps.

    Attributes:
        mean: Of |value * gradient|.
        spread: Of the difference of |value * gradient| from its mean.
    """

    mean: torch.Tensor
    spread: torch.Tensor

    @classmethod
    def start(cls, like: torch.Tensor) -> Importance:
        """Return that of a tensor before the first step."""
        return cls(torch.zeros_like(like), torch.zeros_like(like))

    def after(self, value: torch.Tensor, gradient: torch.Tensor, beta1: float, beta2: float) -> Importance:
        """Return that after another step; ``beta1`` and ``beta2`` are the shares that mean and spread keep of what was."""
        now = (value * gradient).abs()
        mean = beta1 * self.mean + (1 - beta1) * now
        spread = beta2 * self.spread + (1 - beta2) * (now - mean).abs()
        return Importance(mean, spread)

    def score(self) -> torch.Tensor:
        """Return the importance of every entry."""
        return self.mean * self.spread


def triplet_scores(down: Importance, values: Importance, up: Importance) -> torch.Tensor:
    """Return the score (rank,) of each triplet of A (rank, in), E (rank, 1) and B (out, rank)."""
    rows, columns = down.score().mean(dim=1), up.score().mean(dim=0)
    return values.score().flatten() + torch.stack((rows, columns), dim=1).sum(dim=1)


def kept(scores: Mapping[str, torch.Tensor], budget: int) -> dict[str, torch.Tensor]:
    """
    Choose the triplets that stay.

    Args:
        scores: Those of each module, (rank,).
        budget: How many may stay in all modules together; those that score as the last that goes go, too.

    Returns:
        A mask (rank,) for each module.

    Example:
        >>> table = kept({"a": torch.tensor([3.0, 1.0]), "b": torch.tensor([2.0, 4.0])}, 3)
        >>> {name: mask.tolist() for name, mask in table.items()}
        {'a': [True, False], 'b': [True, True]}
    """
    every = torch.cat([score.flatten() for score in scores.values()])
    going = every.numel() - budget
    if going < 1:
        return {name: torch.ones_like(score, dtype=torch.bool) for name, score in scores.items()}
    last = torch.kthvalue(every, going).values
    return {name: score > last for name, score in scores.items()}


def orthogonality(pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """
    Say how far the factors are from orthogonal: the mean of |A A^T - I| and |B^T B - I| (Frobenius) over all of them.

    Args:
        pairs: A (rank, in) and B (out, rank) of each module.

    Returns:
        One number, through which gradients flow; 0 where there are no pairs.
    """
    norms = [
        torch.linalg.matrix_norm(
            square - torch.eye(square.shape[0], dtype=square.dtype, device=square.device)
        )
        for down, up in pairs
        for square in (down @ down.T, up.T @ up)
        if square.numel()
    ]
    if not norms:
        return torch.zeros(())
    device = norms[0].device  # of a model on several devices
    return torch.stack([norm.to(device) for norm in norms]).mean()
