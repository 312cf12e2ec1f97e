"""Every engine by its name; a new one is a row here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_mixer.engines.dense.engine import DenseEngine
from lora_mixer.engines.side.engine import SideEngine
from lora_mixer.engines.trainable.engine import TrainableEngine

if TYPE_CHECKING:
    from collections.abc import Callable

    from lora_mixer.engines.engine import Engine
    from lora_mixer.engines.merged.engine import MergedEngine


@dataclass(frozen=True)
class House:
    """
    What the engines of one pipeline share.

    Attributes:
        bases: The engine that writes weights, which keeps their bases for all.
    """

    bases: MergedEngine


ENGINES: dict[str, Callable[[House], Engine]] = {
    "dense": lambda house: DenseEngine(
        house.bases
    ),  # before the weights: what is asked to stand beside them does
    "merged": lambda house: house.bases,
    "side": lambda _: SideEngine(),
    "trainable": lambda house: TrainableEngine(house.bases),
}
"""What makes each engine of a pipeline, in the order in which they are entered and shown a step."""
