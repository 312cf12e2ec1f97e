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

from lora_mixer.mixes._reading import Reading, number_text, shown

if TYPE_CHECKING:
    from collections.abc import Sequence

Unit = Literal["fraction", "step"]


class Schedule(ABC):
    """A curve over the steps of the denoiser."""

    def at(self, step: int, steps: int, timestep: float | None = None) -> float:
        """
        Give the value at one step.

        Args:
            step: The step, from 0; a step past the end counts as the last one.
            steps: How many steps there are.
            timestep: The scheduler's timestep, which ``SliderStart`` is exact with.

        Returns:
            The value.

        Raises:
            MixError: The step is negative, or there are no steps.

        Example:
            >>> [Window(0.5).at(step, 4) for step in range(4)]
            [0.0, 0.0, 1.0, 1.0]
        """
        if step < 0 or steps < 1:
            reading = Reading()
            reading.problem("", f"expected a step from 0 and at least one step, got step {step} of {steps}.")
            reading.finish("step")
        return self._at(min(step, steps - 1), steps, timestep)

    @abstractmethod
    def _at(self, step: int, steps: int, timestep: float | None) -> float:
        """Give the value at a step that exists."""

    @abstractmethod
    def to_text(self) -> str:
        """
        Write the schedule as one line.

        Returns:
            The text, which ``read_schedule`` reads back as the same value.
        """

    @staticmethod
    def of(spec: object) -> Schedule:
        """
        Read a schedule in any form; ``docs/mixes.md`` lists them.

        Args:
            spec: A schedule, a number, a text or a dict.

        Returns:
            The schedule.

        Raises:
            MixError: With everything that is wrong.

        Example:
            >>> Schedule.of("ease_in(0, 1, 0.2, 0.8)").at(9, 10)
            1.0
        """
        from lora_mixer.mixes._schedule_forms import read_schedule

        reading = Reading()
        schedule = read_schedule(spec, "", reading)
        reading.finish("schedule")
        return schedule or Constant()

    def simplest(self) -> Schedule:
        """
        Give the simplest schedule with the same values.

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
        reading = Reading()
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
        reading = Reading()
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
        """Give 1 where the window is always open."""
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
        reading = Reading()
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


def read_positions(positions: Sequence[object], unit: object, reading: Reading) -> tuple[list[float], Unit]:
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
    found = "step" if unit == "step" or max(numbers, default=0.0) > 1.0 else "fraction"
    return numbers, cast("Unit", found)


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
