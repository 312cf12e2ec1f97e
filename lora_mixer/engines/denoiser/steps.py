"""
Which step a denoiser call belongs to, read from the call itself.

No callback has to be passed: the timestep of each call is looked up among those of the pipeline's scheduler. Calls at
the same noise level are one step, so guidance in two calls and schedulers with several calls a step are counted right,
and img2img, which starts late, counts from where it starts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


@dataclass(frozen=True)
class Step:
    """
    A place in a run.

    Attributes:
        index: The step, from 0.
        total: How many steps the run has.
        timestep: The timestep of the call, as the scheduler counts.
    """

    index: int
    total: int
    timestep: float


class StepClock:
    """
    Counts the steps of one denoiser.

    Args:
        scheduled: Gives the timesteps of the present run in order; None or empty where there is no scheduler.
    """

    def __init__(self, scheduled: Callable[[], Sequence[float] | None]) -> None:
        """Start before any call."""
        self._scheduled = scheduled
        self._levels: tuple[float, ...] = ()
        self._first = 0
        self._last = -1
        self._seen: float | None = None

    def tick(self, timestep: float) -> Step:
        """
        Note a call of the denoiser.

        Args:
            timestep: What it was called with.

        Returns:
            The step that the call belongs to.
        """
        levels = _distinct(self._scheduled() or ())
        position = _find(levels, timestep)
        fresh = levels != self._levels
        if position is None:  # scaled or foreign timesteps: count the changes
            moved = self._seen is None or timestep != self._seen
            back = self._seen is not None and timestep > self._seen
            position = 0 if fresh or back else self._last + moved
            if fresh or back or self._seen is None:
                position, self._first = 0, 0
        elif fresh or position < self._last or self._last < 0:
            self._first = position
        self._levels, self._last, self._seen = levels, position, timestep
        index = position - self._first
        return Step(index, max(len(levels) - self._first, index + 1), timestep)


def _distinct(timesteps: Sequence[float]) -> tuple[float, ...]:
    levels: list[float] = []
    for value in timesteps:
        if not levels or value != levels[-1]:
            levels.append(value)
    return tuple(levels)


def _find(levels: Sequence[float], timestep: float) -> int | None:
    for position, level in enumerate(levels):
        if abs(level - timestep) <= 1e-4 * max(1.0, abs(level)):
            return position
    return None


class Timesteps:
    """
    The timesteps that a pipeline's scheduler is set to.

    Args:
        pipe: The pipeline.
    """

    def __init__(self, pipe: Any) -> None:
        """Read nothing yet."""
        self._pipe = pipe
        self._kept: tuple[Any, int] | None = None
        self._values: list[float] = []

    def read(self) -> Sequence[float] | None:
        """Give all in order, read once until they change; None where there is no scheduler."""
        timesteps = getattr(getattr(self._pipe, "scheduler", None), "timesteps", None)
        if timesteps is None:
            return None
        version = _version(timesteps)
        if self._kept is None or timesteps is not self._kept[0] or version != self._kept[1]:
            self._kept = timesteps, version
            self._values = [float(t) for t in torch.as_tensor(timesteps).flatten().tolist()]
        return self._values

    def of(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> float:
        """Find the timestep of a denoiser call: the argument of that name, or the second one."""
        value = kwargs.get("timestep", args[1] if len(args) > 1 else None)
        if value is None:
            return 0.0
        if not isinstance(value, torch.Tensor):
            return float(value)
        known = self._known(value)
        return float(value.flatten()[0].item()) if known is None else known

    def _known(self, value: torch.Tensor) -> float | None:
        """Give the value of a tensor that is a part of the scheduler's: reading it would wait for the GPU at each step."""
        values = self.read()
        whole = self._kept[0] if values and self._kept is not None else None
        if not isinstance(whole, torch.Tensor) or whole.ndim != 1 or value.numel() == 0:
            return None
        if value.dtype != whole.dtype or value.device != whole.device:
            return None
        if value.untyped_storage().data_ptr() != whole.untyped_storage().data_ptr():
            return None
        place, rest = divmod(
            int(value.storage_offset()) - int(whole.storage_offset()), int(whole.stride(0)) or 1
        )
        return self._values[place] if not rest and 0 <= place < len(self._values) else None


def _version(timesteps: Any) -> int:
    counts = isinstance(timesteps, torch.Tensor) and not timesteps.is_inference()
    return timesteps._version if counts else 0  # noqa: SLF001 -- tells of changes in place
