"""
Curves in time: ramps as in ComfyUI's hook keyframes, and keyframes as in sd-webui-loractl.

They read a fraction of the run as ``step / (steps - 1)``, so that both ends are met exactly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_mixer.mixes._reading import Reading, list_of, number_text, shown
from lora_mixer.mixes.schedule import Constant, Schedule, Unit, position_text, read_positions

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

EASES: dict[str, Callable[[float], float]] = {
    "linear": lambda t: t,
    "ease_in": lambda t: t * t,
    "ease_out": lambda t: 1.0 - (1.0 - t) * (1.0 - t),
    "ease_in_out": lambda t: (1.0 - math.cos(math.pi * t)) / 2.0,
}
"""How a ramp gets from its first value to its last one, as a map of [0, 1] onto itself."""


@dataclass(frozen=True)
class Ramp(Schedule):
    """
    From one value to another.

    Attributes:
        first: The value up to ``start``.
        last: The value from ``stop`` on.
        start: Where the ramp begins.
        stop: Where it ends.
        ease: ``linear``, ``ease_in`` (t^2), ``ease_out`` (1 - (1 - t)^2) or ``ease_in_out`` ((1 - cos(pi t)) / 2).
        unit: What positions count; where None is given, fractions if none is above 1, else steps.

    Example:
        >>> [Ramp(1, 0, ease="ease_in").at(step, 3) for step in range(3)]
        [1.0, 0.75, 0.0]
    """

    first: float = 0.0
    last: float = 1.0
    start: float = 0.0
    stop: float = 1.0
    ease: str = "linear"
    unit: Unit | None = None

    def __post_init__(self) -> None:
        """Check values and positions."""
        reading = Reading()
        object.__setattr__(self, "first", reading.number("first", self.first))
        object.__setattr__(self, "last", reading.number("last", self.last))
        (start, stop), unit = read_positions([self.start, self.stop], self.unit, reading)
        if start >= stop:
            reading.problem("", f"expected a start below the stop, got {self.start} and {self.stop}.")
        if self.ease not in list(EASES):  # a list, as what was given may not be hashable
            reading.problem("ease", f"expected one of {list_of(EASES)}, got {shown(self.ease)}.")
        reading.finish("schedule")
        object.__setattr__(self, "start", start)
        object.__setattr__(self, "stop", stop)
        object.__setattr__(self, "unit", unit)

    def _at(self, step: int, steps: int, timestep: float | None) -> float:
        del timestep
        position = _position(step, steps, self.unit)
        if position <= self.start:
            return self.first
        if position >= self.stop:
            return self.last
        return _between(
            self.first, self.last, EASES[self.ease]((position - self.start) / (self.stop - self.start))
        )

    def to_text(self) -> str:
        """Write ``linear(first, last, start, stop)``, without positions where they are the whole run."""
        values = [number_text(self.first), number_text(self.last)]
        if (self.start, self.stop, self.unit) != (0.0, 1.0, "fraction"):
            values += [position_text(position, self.unit) for position in (self.start, self.stop)]
        return f"{self.ease}({', '.join(values)})"

    def simplest(self) -> Schedule:
        """Give a constant for a level ramp, and keyframes for a linear one."""
        if self.first == self.last:
            return Constant(self.first)
        if self.ease == "linear":
            return Keyframes(((self.start, self.first), (self.stop, self.last)), self.unit)
        return self


@dataclass(frozen=True)
class Keyframes(Schedule):
    """
    Values at positions, with straight lines between them; before the first its value, after the last its value.

    Two keyframes at one position are a jump, and the later one has the position.

    Attributes:
        points: Pairs (position, value); they are sorted by position.
        unit: What positions count; where None is given, fractions if none is above 1, else steps.

    Example:
        >>> frames = Keyframes([(0, 0), (0.5, 1)])
        >>> [frames.at(step, 5) for step in range(5)], frames.to_text()
        ([0.0, 0.5, 1.0, 1.0, 1.0], '0@0,1@0.5')
    """

    points: Sequence[tuple[float, float]]
    unit: Unit | None = None

    def __post_init__(self) -> None:
        """Check and sort the points."""
        reading = Reading()
        pairs: list[tuple[float, float]] = []
        for index, point in enumerate(
            self.points if isinstance(self.points, (list, tuple)) else [self.points]
        ):
            if isinstance(point, (list, tuple)) and len(point) == 2:
                pairs.append((point[0], reading.number(f"points[{index}][1]", point[1])))
            else:
                reading.problem(f"points[{index}]", f"expected a pair (position, value), got {shown(point)}.")
        positions, unit = read_positions([position for position, _ in pairs], self.unit, reading)
        points = sorted(
            zip(positions, (value for _, value in pairs), strict=True), key=lambda point: point[0]
        )
        for position in sorted({position for position in positions if positions.count(position) > 2}):
            reading.problem(
                "points", f"expected at most two keyframes at {number_text(position)} (a jump), got more."
            )
        if not points:
            reading.problem("points", "expected at least one keyframe, got none.")
        reading.finish("schedule")
        object.__setattr__(self, "points", tuple(points))
        object.__setattr__(self, "unit", unit)

    def _at(self, step: int, steps: int, timestep: float | None) -> float:
        del timestep
        position = _position(step, steps, self.unit)
        if position < self.points[0][0]:
            return self.points[0][1]
        # The last keyframe at or before the position, so that the later one of a jump has it.
        index = max(i for i, (at, _) in enumerate(self.points) if at <= position)
        at, value = self.points[index]
        if at == position or index == len(self.points) - 1:
            return value
        next_at, next_value = self.points[index + 1]
        return _between(value, next_value, (position - at) / (next_at - at))

    def to_text(self) -> str:
        """Write ``value@position,...``; steps have an "s" where they would be taken for fractions."""
        ambiguous = self.unit == "step" and self.points[-1][0] <= 1.0
        unit: Unit = "step" if ambiguous else "fraction"
        return ",".join(f"{number_text(value)}@{position_text(at, unit)}" for at, value in self.points)

    def simplest(self) -> Schedule:
        """Give a constant where all values are the same."""
        values = {value for _, value in self.points}
        return Constant(values.pop()) if len(values) == 1 else self


def _position(step: int, steps: int, unit: Unit | None) -> float:
    if unit == "step":
        return float(step)
    return step / (steps - 1) if steps > 1 else 0.0


def _between(first: float, last: float, share: float) -> float:
    if first == last:
        return first
    low, high = min(first, last), max(first, last)
    return min(max(first * (1.0 - share) + last * share, low), high)
