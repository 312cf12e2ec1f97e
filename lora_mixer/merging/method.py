"""A merging method by name, with its settings, checked once and applied layer by layer."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from lora_mixer.errors import MixError
from lora_mixer.merging.breadcrumbs import breadcrumbs
from lora_mixer.merging.dare import dare
from lora_mixer.merging.della import della
from lora_mixer.merging.knots import knots
from lora_mixer.merging.magnitude import magnitude_prune
from lora_mixer.merging.orthogonal import orthogonal_sum
from lora_mixer.merging.ties import ties
from lora_mixer.merging.weighted_sum import concatenate
from lora_mixer.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_mixer.merging.ties import Majority
    from lora_mixer.merging.weighted_sum import Pair

LOW_RANK = ("sum", "knots", "orthogonal", "b-lora")
"""Methods that work on low-rank pairs and give one, at most of the sum of the ranks."""

DENSE = ("ties", "dare", "dare-ties", "della", "breadcrumbs", "magnitude")
"""Methods that work on full matrices, layer by layer; a rank must be asked for."""


@dataclass(frozen=True)
class MergeMethod:
    """
    How several adapters become one.

    Attributes:
        name: One of ``LOW_RANK`` and ``DENSE``.
        density: Share of the entries that sparse methods keep.
        seed: Of the draws of ``dare``, ``dare-ties`` and ``della``; each layer draws by itself, so neither the order
            of layers nor other layers matter.
        epsilon: The reach of DELLA's probabilities.
        outliers: Share of the largest entries that Breadcrumbs drops.
        majority: How TIES elects signs: ``total`` or ``frequency``.

    Raises:
        MixError: When the name is unknown or a setting is impossible.

    Example:
        >>> MergeMethod("ties", density=0.2).is_dense
        True
    """

    name: str = "sum"
    density: float = 0.5
    seed: int = 0
    epsilon: float = 0.1
    outliers: float = 0.01
    majority: Majority = "total"

    def __post_init__(self) -> None:
        """Check everything."""
        problems = []
        if self.name not in LOW_RANK + DENSE:
            problems.append(f"method {self.name!r} is unknown; there are {', '.join(LOW_RANK + DENSE)}")
        if not 0 < self.density <= 1:
            problems.append(f"density must be above 0 and at most 1, got {self.density}")
        spread = (self.density - self.epsilon, self.density + self.epsilon)
        if self.name == "della" and not (self.epsilon >= 0 and spread[0] > 0 and spread[1] <= 1):
            problems.append(
                f"della draws between density - epsilon and density + epsilon, got {spread[0]:g} to {spread[1]:g}"
            )
        if self.name == "breadcrumbs" and not (self.outliers >= 0 and self.density + self.outliers <= 1):
            problems.append(f"outliers must be from 0 to {1 - self.density:g} here, got {self.outliers}")
        if self.majority not in ("total", "frequency"):
            problems.append(f"majority must be total or frequency, got {self.majority!r}")
        if problems:
            raise MixError("; ".join(problems), problems=tuple(Problem("", text) for text in problems))

    @property
    def is_dense(self) -> bool:
        """Whether it works on full matrices, so that a rank must be asked for."""
        return self.name in DENSE

    def merge_pairs(self, pairs: Sequence[Pair], weights: Sequence[float]) -> Pair:
        """
        Merge one layer's low-rank pairs; for the methods in ``LOW_RANK``.

        Args:
            pairs: (up, down) of each adapter, alpha / rank multiplied in.
            weights: One for each; those of ``b-lora`` have the blocks in them already.

        Returns:
            The merged pair.
        """
        if self.name == "knots":
            return knots(pairs, weights, self.density, self.majority)
        if self.name == "orthogonal":
            return orthogonal_sum(pairs, weights)
        return concatenate(pairs, weights)

    def merge_deltas(
        self, deltas: Sequence[torch.Tensor], weights: Sequence[float], place: str
    ) -> torch.Tensor:
        """
        Merge one layer's full weight changes; for the methods in ``DENSE``.

        Args:
            deltas: The change of each adapter at weight 1.
            weights: One for each.
            place: The layer's name, which its draw is seeded with besides the seed.

        Returns:
            The merged change.
        """
        if self.name == "ties":
            return ties(deltas, weights, self.density, self.majority)
        if self.name == "breadcrumbs":
            return breadcrumbs(deltas, weights, self.density, self.outliers)
        if self.name == "magnitude":
            return magnitude_prune(deltas, weights, self.density)
        generator = layer_generator(self.seed, place)
        if self.name == "della":
            return della(deltas, weights, self.density, self.epsilon, generator=generator)
        return dare(deltas, weights, self.density, generator=generator, elect=self.name == "dare-ties")

    def to_text(self) -> str:
        """
        Give the method as one word with the settings that it uses.

        Example:
            >>> MergeMethod("dare", seed=7).to_text()
            'dare(density=0.5, seed=7)'
        """
        used = {
            "knots": ("density", "majority"),
            "ties": ("density", "majority"),
            "dare": ("density", "seed"),
            "dare-ties": ("density", "seed"),
            "della": ("density", "epsilon", "seed"),
            "breadcrumbs": ("density", "outliers"),
            "magnitude": ("density",),
        }.get(self.name, ())
        settings = ", ".join(f"{name}={getattr(self, name)}" for name in used)
        return f"{self.name}({settings})" if settings else self.name


def layer_generator(seed: int, place: str) -> torch.Generator:
    """
    Give the source of draws of one layer, the same for a seed and a name everywhere.

    Example:
        >>> layer_generator(0, "a").initial_seed() == layer_generator(0, "b").initial_seed()
        False
    """
    digest = hashlib.sha256(f"{seed}\n{place}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
