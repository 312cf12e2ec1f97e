"""LoRA Switch: adapters take turns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lora_mixer.mixes.methods.method import Method, call_text, not_in_mix
from lora_mixer.mixes.reading import Reading
from lora_mixer.wording import shown

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class Switch(Method):
    """
    LoRA Switch (arXiv 2402.16843): one adapter at a time, number ``floor(step / tau) mod k``.

    Attributes:
        tau: How many steps each adapter has; the paper found 5 best.
        adapters: The adapters that take turns, in this order; all of the mix where none are named. Others are not
            switched.

    Example:
        >>> [Switch(2).share("a", ("a", "b"), step) for step in range(5)]
        [1.0, 1.0, 0.0, 0.0, 1.0]
    """

    name: ClassVar[str] = "switch"
    example: ClassVar[str] = "switch(tau=5)"
    goes_by_steps: ClassVar[bool] = True
    tau: int = 5
    adapters: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the parameters."""
        reading = Reading()
        tau = reading.number("tau", self.tau, low=1)
        if tau != int(tau):
            reading.problem("tau", f"expected a whole number of steps, got {self.tau}.")
        given: object = self.adapters
        adapters = given if isinstance(given, (list, tuple)) else (given,)
        if not all(isinstance(name, str) for name in adapters) or len(set(adapters)) < len(adapters):
            reading.problem("adapters", f"expected different names, got {shown(self.adapters)}.")
        reading.finish("method")
        object.__setattr__(self, "tau", int(tau))
        object.__setattr__(self, "adapters", tuple(adapters))

    def misfits(self, names: Sequence[str]) -> list[str]:
        """Tell adapters that are not in the mix."""
        return not_in_mix(self.adapters, names)

    def share(self, name: str, names: Sequence[str], step: int) -> float:
        """Return 1 to the adapter whose turn it is."""
        turns = self.adapters or tuple(names)
        return float(name not in turns or turns[step // self.tau % len(turns)] == name)

    def to_spec(self) -> dict[str, object]:
        """Return the parameters."""
        spec: dict[str, object] = {"name": self.name, "tau": self.tau}
        return {**spec, "adapters": list(self.adapters)} if self.adapters else spec

    def to_text(self) -> str:
        """Write ``switch(tau=5, adapters=["a", "b"])``."""
        return call_text(self.to_spec())

    def meaning(self, names: Sequence[str]) -> object:
        """Return the order of the turns, too."""
        return {**self.to_spec(), "adapters": list(self.adapters or names)}
