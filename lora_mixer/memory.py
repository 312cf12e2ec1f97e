"""What a mixer holds in memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_mixer.engines import KeepBase


@dataclass(frozen=True)
class MemoryReport:
    """
    What a mixer holds, in bytes.

    Attributes:
        adapters: Tensors of each loaded adapter.
        base: Kept base weights by device; ``cpu`` is host memory.
        keep_base: Where bases are kept by choice, as ``LoraMixer(keep_base=...)`` has it; ``base`` says where they are.
        whole: With ``keep_base="patch"``, the weights of which a copy is kept all the same, by name, each with the reason.

    Example:
        >>> MemoryReport({"ink": 16}, {"cpu": 64}, "device").total
        80
    """

    adapters: Mapping[str, int]
    base: Mapping[str, int]
    keep_base: KeepBase
    whole: Mapping[str, str] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self.adapters.values()) + sum(self.base.values())
