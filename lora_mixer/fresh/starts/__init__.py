"""How fresh pairs start: a file for each idea, a row for each name that ``init_lora_weights`` has for it."""

from __future__ import annotations

from typing import Any

from lora_mixer.fresh.starts.drawn import BOTH, GAUSSIAN, USUAL
from lora_mixer.fresh.starts.eva import EVA
from lora_mixer.fresh.starts.of_base import OLORA, PISSA
from lora_mixer.fresh.starts.orthogonal import ORTHOGONAL
from lora_mixer.fresh.starts.start import Spread, Start

__all__ = ["STARTS", "Spread", "Start", "start_named", "start_of"]

STARTS: dict[bool | str, Start] = {
    row.name: row for row in (USUAL, BOTH, GAUSSIAN, PISSA, OLORA, ORTHOGONAL, EVA)
}
"""All starts, by what ``init_lora_weights`` calls them."""


def start_named(name: object) -> Start | None:
    """
    Return a start; None where there is no such one.

    Example:
        >>> start_named("pissa").only_linear, start_named(1)
        (True, None)
    """
    return STARTS.get(name) if isinstance(name, bool | str) else None


def start_of(config: Any) -> Start | None:
    """Return the start that a configuration asks for; None where its kind has none of these."""
    return start_named(getattr(config, "init_lora_weights", None))
