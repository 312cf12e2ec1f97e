"""What a start of fresh pairs says of itself: one row of the table of starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from lora_mixer.algorithms.peft_starts import is_from_base, peft_start
from lora_mixer.fresh.draws import normal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from torch import nn

    from lora_mixer.fresh.targets import Target

    Pair = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Spread:
    """
    How the inputs of a model's layers spread ranks and directions over its pairs.

    Attributes:
        downs: By path A (rank, in), of rank 0 where all ranks went to others.
        alpha_follows_rank: Whether a layer's alpha grows with its rank, so that its scale stays.
    """

    downs: Mapping[str, torch.Tensor]
    alpha_follows_rank: bool


def zero_lookup(target: Target) -> Pair:
    """Return a pair of a lookup table that changes nothing: A (rank, rows) of zeros, B (width, rank) drawn."""
    return torch.zeros(target.rank, target.shape[0]), normal(target.shape[1], target.rank)


@dataclass(frozen=True)
class Start:
    """
    One way in which a pair starts.

    Attributes:
        name: What ``init_lora_weights`` calls it.
        pair: Returns A (rank, in, *kernel) and B (out, rank, 1, ...) of a linear layer or a convolution.
        lookup: The same of a lookup table: A (rank, rows) and B (width, rank).
        only_linear: Whether it is for linear layers alone.
        even_rank: Whether its rank has to be even.
        by_data: Spreads ranks and directions by what the model says to some data; None where none is needed.
        settings: The configuration's field that has its settings, and their class; None where it has none.
    """

    name: bool | str
    pair: Callable[[Target], Pair]
    lookup: Callable[[Target], Pair] = zero_lookup
    only_linear: bool = False
    even_rank: bool = False
    by_data: Callable[[Any, nn.Module, Sequence[Target], Iterable[Any]], Spread] | None = None
    settings: tuple[str, type] | None = None

    @property
    def from_base(self) -> bool:
        """
        Whether its product is a part of the base's weight, which ``algorithms/started.py`` takes off again.

        It has to know the scale, shares no weight with other modules, and has no magnitude beside it.
        """
        return is_from_base(self.name)

    @property
    def is_peft(self) -> bool:
        """Whether PEFT has it by this name; files of others say that they are pairs like any, which they are once drawn."""
        return isinstance(self.name, bool) or peft_start(self.name) is not None

    def refuses(self, target: Target) -> str | None:
        """Say why a module cannot start so, or None."""
        if self.only_linear and target.layer != "linear":
            return f"is not a linear layer, which init_lora_weights={self.name!r} needs"
        if self.from_base and target.live.tied:
            return (
                "shares its weight with other modules, from all of which PEFT takes what "
                f"init_lora_weights={self.name!r} starts from"
            )
        if self.even_rank and target.rank % 2:
            return f"has rank {target.rank}; init_lora_weights={self.name!r} needs an even one"
        return None
