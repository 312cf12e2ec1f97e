"""
Weights in time: frozen curves over the steps of the denoiser. Their values multiply the weight that they are given to.

A position is a step (counted from 0) or a fraction of the run. Curves read the fraction as ``step / (steps - 1)``, so
that the first step has exactly the first value and the last step exactly the last one (SD.Next divides by
``steps - 2``, which reaches the end one step early). Windows read it as ``step / steps``, so that [0, 0.5) and [0.5, 1)
share the steps without gap or overlap. Ramps follow ComfyUI's hook keyframes, the slider's start arXiv 2311.12092,
keyframes sd-webui-loractl.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

from lora_mixer.parsing.problems import Problems
from lora_mixer.wording import list_of, number_text, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Unit = Literal["fraction", "step"]


class Schedule(ABC):
    """
    A curve over the steps of the denoiser.

    Example:
        >>> from lora_mixer import Mix
        >>> ramp = Mix.of("ink:1,schedule=linear(0, 1)")["ink"].schedule
        >>> ramp.to_text(), [ramp.simplest().at(step, 3) for step in range(3)]
        ('linear(0, 1)', [0.0, 0.5, 1.0])
    """

    unit: Unit | None = None

    def at(
        self, step: int, steps: int, timestep: float | None = None, level: tuple[int, int] | None = None
    ) -> float:
        """
        Return the value at one step.

        Args:
            step: The step, from 0; a step past the end counts as the last one.
            steps: How many steps there are.
            timestep: The scheduler's timestep, which ``SliderStart`` is exact with.
            level: Which noise level of the run it is, from 0, and how many there are, where a scheduler has levels
                between steps (DPM2, PNDM's warm-up): fractions go by it, steps by ``step``.

        Returns:
            The value.

        Raises:
            MixError: The step is negative, or there are no steps.

        Example:
            >>> [Window(0.5).at(step, 4) for step in range(4)]
            [0.0, 0.0, 1.0, 1.0]
        """
        if step < 0 or steps < 1:
            reading = Problems()
            reading.problem("", f"expected a step from 0 and at least one step, got step {step} of {steps}.")
            reading.finish("step")
        if level is not None and self.unit != "step":
            step, steps = level
        return self._at(min(step, steps - 1), steps, timestep)

    @abstractmethod
    def _at(self, step: int, steps: int, timestep: float | None) -> float:
        """Return the value at a step that exists."""

    @abstractmethod
    def to_text(self) -> str:
        """
        Write the schedule as one line.

        Returns:
            The text, which ``read_schedule`` reads back as the same value.
        """

    def simplest(self) -> Schedule:
        """
        Return the simplest schedule with the same values.

        Returns:
            A constant where nothing changes, keyframes for linear ramps, else the schedule itself.
        """
        return self


@dataclass(frozen=True)
class Constant(Schedule):
    """
    The same value at all steps.

    Attributes:
        value: The value.

    Example:
        >>> Constant(0.5).at(3, 10)
        0.5
    """

    value: float = 1.0

    def __post_init__(self) -> None:
        """Check the value."""
        reading = Problems()
        object.__setattr__(self, "value", reading.number("value", self.value))
        reading.finish("schedule")

    def _at(self, step: int, steps: int, timestep: float | None) -> float:
        del step, steps, timestep
        return self.value

    def to_text(self) -> str:
        """Write the number."""
        return number_text(self.value)


@dataclass(frozen=True)
class Window(Schedule):
    """
    On (1) from ``start`` up to, not including, ``stop``; off (0) outside.

    Attributes:
        start: The first position that is on.
        stop: The first position that is off again, or None for never.
        unit: What positions count; where None is given, fractions if none is above 1, else steps.

    Example:
        >>> [Window(0.5).at(step, 4) for step in range(4)]
        [0.0, 0.0, 1.0, 1.0]
    """

    start: float = 0.0
    stop: float | None = None
    unit: Unit | None = None

    def __post_init__(self) -> None:
        """Check the positions."""
        reading = Problems()
        positions = [self.start] if self.stop is None else [self.start, self.stop]
        numbers, unit = read_positions(positions, self.unit, reading)
        if len(numbers) > 1 and numbers[0] >= numbers[1]:
            reading.problem("", f"expected a start below the stop, got {self.start} and {self.stop}.")
        reading.finish("schedule")
        object.__setattr__(self, "start", numbers[0])
        object.__setattr__(self, "stop", numbers[1] if len(numbers) > 1 else None)
        object.__setattr__(self, "unit", unit)

    def _at(self, step: int, steps: int, timestep: float | None) -> float:
        del timestep
        position = step / steps if self.unit == "fraction" else step
        return float(self.start <= position and (self.stop is None or position < self.stop))

    def to_text(self) -> str:
        """Write ``window(start, stop)``; steps have an "s"."""
        positions = [self.start] if self.stop is None else [self.start, self.stop]
        return f"window({', '.join(position_text(p, self.unit) for p in positions)})"

    def simplest(self) -> Schedule:
        """Return 1 where the window is always open."""
        stop = None if self.unit == "fraction" and self.stop == 1.0 else self.stop
        return Constant(1.0) if (self.start, stop) == (0.0, None) else Window(self.start, stop, self.unit)


@dataclass(frozen=True)
class SliderStart(Schedule):
    """
    Off while there is more noise than ``start_noise``, on afterwards: Concept Sliders' way to keep the layout.

    The scheduler's timestep decides. Without it, timesteps are taken as spaced evenly from ``train_steps`` down.
    (arXiv 2311.12092; its notebooks use 800 for SD 1.x and 700 for SDXL.)

    Attributes:
        start_noise: The timestep above which the adapter is off.
        train_steps: How many timesteps the model was trained with.

    Example:
        >>> [SliderStart(800).at(step, 10) for step in range(4)], SliderStart(800).at(0, 10, timestep=799)
        ([0.0, 0.0, 1.0, 1.0], 1.0)
    """

    start_noise: float = 800.0
    train_steps: float = 1000.0

    def __post_init__(self) -> None:
        """Check the numbers."""
        reading = Problems()
        object.__setattr__(self, "train_steps", reading.number("train_steps", self.train_steps, low=1))
        noise = reading.number("start_noise", self.start_noise, low=0, high=max(self.train_steps, 1))
        object.__setattr__(self, "start_noise", noise)
        reading.finish("schedule")

    def _at(self, step: int, steps: int, timestep: float | None) -> float:
        noise = self.train_steps * (steps - step) / steps if timestep is None else timestep
        return float(noise <= self.start_noise)

    def to_text(self) -> str:
        """Write ``slider(start_noise)``."""
        values = (
            [self.start_noise]
            if self.train_steps == SliderStart.train_steps
            else [self.start_noise, self.train_steps]
        )
        return f"slider({', '.join(map(number_text, values))})"


def read_positions(positions: Sequence[object], unit: object, reading: Problems) -> tuple[list[float], Unit]:
    """
    Read positions, and tell what they count.

    Args:
        positions: Numbers from 0.
        unit: "fraction", "step", or None for fractions if none is above 1, else steps.
        reading: Where problems are noted.

    Returns:
        The numbers and the unit.
    """
    if unit not in (None, "fraction", "step"):
        reading.problem("unit", f'expected "fraction" or "step", got {shown(unit)}.')
    highest = 1.0 if unit == "fraction" else math.inf
    numbers = [reading.number("position", position, low=0.0, high=highest) for position in positions]
    told = "step" if unit == "step" or max(numbers, default=0.0) > 1.0 else "fraction"
    return numbers, cast("Unit", told)


def position_text(position: float, unit: Unit | None) -> str:
    """
    Write a position.

    Args:
        position: The number.
        unit: What it counts.

    Returns:
        The number, with an "s" for steps.

    Example:
        >>> position_text(5, "step"), position_text(0.5, "fraction")
        ('5s', '0.5')
    """
    return number_text(position) + ("s" if unit == "step" else "")


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
        reading = Problems()
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
        """Return a constant for a level ramp, and keyframes for a linear one."""
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
        reading = Problems()
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
        """Return a constant where all values are the same."""
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
