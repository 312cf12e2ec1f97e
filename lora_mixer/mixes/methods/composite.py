"""LoRA Composite: a forward of the denoiser for each adapter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lora_mixer.mixes.methods.method import Method

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class Composite(Method):
    """
    LoRA Composite (arXiv 2402.16843): one forward for each adapter, and the mean of the guided results.

    Example:
        >>> Composite().passes(("ink", "oil"))
        2
    """

    name: ClassVar[str] = "composite"
    example: ClassVar[str] = "composite"

    def passes(self, names: Sequence[str]) -> int:
        """Return one forward for each adapter."""
        return max(1, len(names))
