"""
Which step a denoiser call belongs to, read from the call and from the pipeline that makes it.

No callback has to be passed: the timestep of each call is looked up among those of the run. Calls at the same noise
level are one, so guidance in two calls and schedulers with several calls a step are counted right, and img2img, which
starts late, counts from where it starts.
"""

from __future__ import annotations

import inspect
import threading
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from lora_mixer.errors import MixError
from lora_mixer.mixes import TEXT_ENCODERS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch import nn

    from lora_mixer.engines.denoiser.caller import Caller
    from lora_mixer.mixes import Mix

_SAME = 8e-5
"""Distance of timesteps that are one noise level, as a part of the run: schedulers work them out in fp32, by logarithms."""
_FOUND = 1e-4
"""The same for a timestep that was passed on, in half precision of a denoiser maybe."""

_RUNS = 8
"""How many runs' timesteps are remembered."""

_TIMES = {"timestep", "timesteps", "timestep_ratio", "time", "t", "r", "sigma", "sigmas", "noise_labels"}
"""What the argument is called that says how much noise there is."""


@dataclass(frozen=True)
class Step:
    """
    A place in a run.

    Attributes:
        index: The step, from 0.
        total: How many steps the run has: the ``num_inference_steps`` that were asked for.
        timestep: The timestep of the call, as the scheduler counts.
        level: Which of the run's noise levels it is, from 0, and how many there are; some schedulers have levels between
            steps. None where they are the steps.
        is_told: Whether the run is known that the call belongs to, else calls were counted.
    """

    index: int
    total: int
    timestep: float
    level: tuple[int, int] | None = None
    is_told: bool = True


START = Step(0, 1, 1000.0)
"""What holds before the first step, and for text encoders."""


@dataclass(frozen=True)
class NoiseLevels:
    """
    The different noise levels of a run.

    Attributes:
        timesteps: That of each level, in the order of the run.
        steps: The step that each level belongs to.
        total: How many steps there are.
        jumps: Whether the run goes back to levels that it has had, as RePaint's does: a step is then a level, and has one value.
    """

    timesteps: tuple[float, ...] = ()
    steps: tuple[int, ...] = ()
    total: int = 0
    jumps: bool = False

    @classmethod
    def of(cls, timesteps: Sequence[float], steps: int | None = None, order: int = 1) -> NoiseLevels:
        """
        Read a scheduler's timesteps.

        Args:
            timesteps: One for each call of the denoiser, in their order.
            steps: How many steps were asked for; None goes by ``order``.
            order: Calls that the scheduler takes for a step.

        Example:
            >>> NoiseLevels.of([9.0, 6.0, 6.0, 3.0, 3.0], order=2).steps  # Heun: two calls at a level
            (0, 1, 2)
            >>> NoiseLevels.of([9.0, 7.5, 6.0, 4.5, 3.0], order=2).steps  # DPM2: levels between steps
            (0, 0, 1, 1, 2)
            >>> NoiseLevels.of([9.0, 6.0, 3.0, 6.0, 3.0]).timesteps
            (9.0, 6.0, 3.0)
        """
        levels: list[float] = []
        firsts: list[int] = []
        apart = _SAME * (max(timesteps, default=0.0) - min(timesteps, default=0.0))
        jumps = order == 1 and _goes_back(timesteps, apart)
        if jumps:
            timesteps, steps = sorted(set(timesteps), reverse=timesteps[0] >= timesteps[-1]), None
        for place, value in enumerate(timesteps):
            if not levels or abs(value - levels[-1]) > apart:
                levels.append(value)
                firsts.append(place)
        wanted = -(-len(timesteps) // max(order, 1))
        total = wanted if steps is None or (order > 1 and steps > wanted) else steps
        if total == len(timesteps):  # timesteps that were rounded to the same are steps of their own
            loop_steps = tuple(firsts)
        elif total > len(timesteps):
            loop_steps, total = tuple(range(len(levels))), len(levels)
        elif order > 1 or total == 1 or len(levels) <= total:
            spans = max(len(levels) - 1, 1)
            loop_steps = tuple(place * (total - 1) // spans for place in range(len(levels)))
        else:  # PNDM's warm-up: levels between the first steps only, which lie at equal distances
            size = (levels[-1] - levels[0]) / (total - 1)
            loop_steps = tuple(int((level - levels[0]) / size + 0.25) for level in levels)
        return cls(tuple(levels), loop_steps, total, jumps)

    def find(self, timestep: float) -> int | None:
        """Return the level that is nearest to a timestep, or None where none is near."""
        if not self.timesteps:
            return None
        place = min(range(len(self.timesteps)), key=lambda n: abs(self.timesteps[n] - timestep))
        gap = abs(self.timesteps[place] - timestep)
        return place if gap <= _FOUND * max(1.0, abs(timestep)) else None

    def step(self, level: int, first: int = 0) -> Step:
        """
        Return the step of a level.

        Args:
            level: The level.
            first: The one that the run starts at.
        """
        began = self.steps[first]
        return Step(
            self.steps[level] - began,
            max(self.total - began, 1),
            self.timesteps[level],
            (level - first, len(self.timesteps) - first),
        )


class StepClock:
    """Counts the steps of a denoiser where only its scheduler is known, not where the run starts."""

    def __init__(self) -> None:
        """Start before any call."""
        self._levels: NoiseLevels | None = None
        self._first = 0
        self._last = -1
        self._seen: float | None = None

    def tick(self, timestep: float, levels: NoiseLevels) -> Step:
        """
        Note a call of the denoiser.

        Args:
            timestep: What it was called with.
            levels: Those of the scheduler; none where there is no scheduler.

        Returns:
            The step that the call belongs to.
        """
        position = levels.find(timestep)
        fresh = levels != self._levels
        known = position is not None
        if position is None:  # scaled or foreign timesteps: count the changes
            moved = self._seen is None or timestep != self._seen
            back = self._seen is not None and timestep > self._seen
            position = 0 if fresh or back else self._last + moved
            if fresh or back or self._seen is None:
                position, self._first = 0, 0
        elif levels.jumps:
            self._first = 0
        elif fresh or position < self._last or self._last < 0:
            self._first = position
        self._levels, self._last, self._seen = levels, position, timestep
        if known:
            return levels.step(position, self._first)
        index = position - self._first
        return Step(index, max(levels.total - self._first, index + 1), timestep, is_told=False)


class _Read(NamedTuple):
    """What was read of one run's timesteps, at which version, and their noise levels by what was asked."""

    timesteps: Any
    version: int
    values: list[float]
    levels: dict[tuple[int | None, int], NoiseLevels]


class Timesteps:
    """Reads timesteps without waiting for the device that they lie on, where that can be."""

    def __init__(self) -> None:
        """Read nothing yet."""
        self._kept: list[_Read] = []

    def read(self, timesteps: Any) -> list[float]:
        """Return all of a scheduler's in order, read once until they change."""
        return self._read(timesteps).values

    def _read(self, timesteps: Any) -> _Read:
        version = _version(timesteps)
        for kept in self._kept:
            if kept.timesteps is timesteps and kept.version == version:
                return kept
        values = [float(t) for t in torch.as_tensor(timesteps).flatten().tolist()]
        others = [kept for kept in self._kept if kept.timesteps is not timesteps]
        self._kept = [_Read(timesteps, version, values, {}), *others][:_RUNS]
        return self._kept[0]

    def levels(self, timesteps: Any, steps: int | None, order: int) -> NoiseLevels:
        """Return the noise levels of a scheduler's timesteps; :meth:`NoiseLevels.of` has the arguments."""
        known = self._read(timesteps)
        if (steps, order) not in known.levels:
            known.levels[steps, order] = NoiseLevels.of(known.values, steps, order)
        return known.levels[steps, order]

    def value(self, timestep: Any) -> float:
        """Return one timestep as a number."""
        if not isinstance(timestep, torch.Tensor):
            return float(timestep)
        for kept in self._kept:
            place = _place_in(timestep, kept.timesteps)
            if place is not None and kept.version == _version(kept.timesteps):
                return kept.values[place]
        return float(timestep.flatten()[0].item())


def _place_in(value: Any, whole: Any) -> int | None:
    """Return which of some timesteps a tensor is a part of: reading it would wait for the GPU at each step."""
    if not isinstance(value, torch.Tensor) or not isinstance(whole, torch.Tensor):
        return None
    if whole.ndim != 1 or value.numel() == 0 or value.dtype != whole.dtype or value.device != whole.device:
        return None
    if value.untyped_storage().data_ptr() != whole.untyped_storage().data_ptr():
        return None
    place, rest = divmod(int(value.storage_offset()) - int(whole.storage_offset()), int(whole.stride(0)) or 1)
    return place if not rest and 0 <= place < len(whole) else None


class StepReader:
    """
    Reads the step of each call of one denoiser.

    The pipeline that is calling has the timesteps of its run under a local name, and the one that it is at under
    another; else its schedulers are asked. A loop written by hand has its run where the timestep was taken from: the timesteps of a
    scheduler in reach, or a tensor of its own. A timestep that was taken from none is looked up in those of the schedulers in
    reach, and last in those of the mixer's pipeline.

    Args:
        pipe: The mixer's pipeline.
    """

    def __init__(self, pipe: Any) -> None:
        """Start before any call."""
        self._pipe = pipe
        self._clocks: dict[int, StepClock] = {}  # by thread: loops of several do not count each other's calls
        self._timesteps = Timesteps()

    def is_in_run(self, caller: Caller) -> bool:
        """Tell whether a call is one of a run or of a training loop; one by itself is made as before the first step."""
        schedulers = [*caller.schedulers(), getattr(self._pipe, "scheduler", None)]
        return (
            caller.pipe is not None
            or any(getattr(each, "num_inference_steps", None) is not None for each in schedulers)
            or any(each.ndim == 1 and len(each) > 1 for each in caller.tensors())
        )

    def read(self, timestep: Any, caller: Caller) -> Step:
        """
        Return the step of a call.

        Args:
            timestep: What the denoiser was called with; some denoisers are given it scaled.
            caller: Who is calling.
        """
        schedulers = [one for one in caller.schedulers() if _timesteps_of(one) is not None]
        mine = getattr(self._pipe, "scheduler", None)
        if _timesteps_of(mine) is not None and all(one is not mine for one in schedulers):
            schedulers.append(mine)
        given = [] if timestep is None else [timestep]
        if caller.pipe is not None:
            run, now = self._run_of(caller), caller.local("t")
            values = [now, *given] if _is_number(now) else given
            if _is_list(run) and self._goes_on(run, timestep, schedulers):
                steps = caller.local("num_inference_steps")
                order = _order_of(_taken_from([run], schedulers) or next(iter(schedulers), None))
                levels = self._timesteps.levels(run, steps if isinstance(steps, int) else None, order)
                for value in values:
                    level = levels.find(self._timesteps.value(value))
                    if level is not None:
                        return levels.step(level)
        else:
            values = given
        levels, number = self._looked_up(values, given, schedulers, caller)
        if threading.get_ident() not in self._clocks and len(self._clocks) >= _RUNS:
            del self._clocks[next(iter(self._clocks))]
        return self._clocks.setdefault(threading.get_ident(), StepClock()).tick(number, levels)

    def _run_of(self, caller: Caller) -> Any:
        """Return the timesteps of a pipeline's run: of methods within each other that have some, one that has a part of the next's has that."""
        runs = [each for names in caller.frames if _is_list(each := names.get("timesteps"))]
        run = runs[0] if runs else caller.local("timesteps")
        for outer in runs[1:]:
            if set(self._timesteps.read(run)) <= set(self._timesteps.read(outer)):
                run = outer
        return run

    def _goes_on(self, run: Any, timestep: Any, schedulers: Sequence[Any]) -> bool:
        """Say whether a list is that of a run, and not the timestep of one call for all rows of a batch, as DiT's pipeline calls it."""
        if run is timestep:
            return False
        if len(run) == 1:
            return all(len(_timesteps_of(one)) == 1 for one in schedulers)
        return len(set(self._timesteps.read(run))) > 1

    def _looked_up(
        self, values: Sequence[Any], given: Sequence[Any], schedulers: Sequence[Any], caller: Caller
    ) -> tuple[NoiseLevels, float]:
        """Return the noise levels of the run, and the timestep as they have it where it is among them."""
        loop = caller.pipe is None
        source = _taken_from(values, schedulers)
        if (
            source is None and loop and len(schedulers) > 1
        ):  # what was passed on may be a copy of where the loop is
            source = _taken_from((each for each in caller.tensors() if each.numel() == 1), schedulers)
        if source is None and loop and (run := self._own_run(given, caller)) is not None:
            return self._timesteps.levels(run, None, 1), self._timesteps.value(given[0])
        candidates = [source] if source is not None else _set_first(schedulers)
        number = self._timesteps.value(given[0]) if given else 0.0
        for scheduler in candidates:
            levels = self._levels_of(scheduler)
            numbers = [self._timesteps.value(value) for value in values] or [0.0]
            trained = getattr(getattr(scheduler, "config", None), "num_train_timesteps", None)
            if isinstance(trained, int):
                numbers.append(numbers[-1] * trained)  # flow models are given fractions
            timestep = next((each for each in numbers if levels.find(each) is not None), None)
            if timestep is not None:
                return levels, timestep
        return (self._levels_of(candidates[0]) if candidates else NoiseLevels()), number

    def _levels_of(self, scheduler: Any) -> NoiseLevels:
        asked = getattr(scheduler, "num_inference_steps", None)
        return self._timesteps.levels(
            _timesteps_of(scheduler), asked if isinstance(asked, int) else None, _order_of(scheduler)
        )

    def _own_run(self, given: Sequence[Any], caller: Caller) -> Any:
        """Return the tensor that a loop takes its timesteps from, where it goes one way; None where there is none."""
        for value in given:
            named = caller.local("timesteps")
            for whole in (getattr(value, "_base", None), named, *caller.tensors()):
                if not _is_list(whole) or len(whole) < 2:
                    continue
                within = _place_in(value, whole) is not None
                if not within and (
                    whole is not named or self._timesteps.value(value) not in self._timesteps.read(whole)
                ):
                    continue
                run = self._timesteps.read(whole)
                if len(set(run)) > 1 and run in (sorted(run), sorted(run, reverse=True)):
                    return whole
        return None


def _goes_back(timesteps: Sequence[float], apart: float) -> bool:
    """Say whether timesteps go back on the way from the first to the last of them."""
    way = timesteps[0] - timesteps[-1] if timesteps else 0.0
    moves = [one - other for one, other in pairwise(timesteps)]
    return any(abs(move) > apart and move * (way or 1.0) < 0 for move in moves)


def _order_of(scheduler: Any) -> int:
    order = getattr(scheduler, "order", 1)
    return order if isinstance(order, int) else 1


def _taken_from(values: Iterable[Any], schedulers: Sequence[Any]) -> Any:
    """Return the scheduler whose timesteps a value is a part of, by where it lies; None where there is none."""
    for value in values:
        for scheduler in schedulers:
            if _place_in(value, _timesteps_of(scheduler)) is not None:
                return scheduler
    return None


def _set_first(schedulers: Sequence[Any]) -> list[Any]:
    """Return schedulers in their order, those last that no run was set in: they have all timesteps of training."""
    return sorted(schedulers, key=lambda one: getattr(one, "num_inference_steps", 0) is None)


def what_goes_by_steps(mix: Mix, part: str, root: nn.Module) -> str:
    """
    Name what changes a mix in time on a component.

    Args:
        mix: The mix.
        part: The component's name.
        root: The component.

    Returns:
        What it is, in words; empty where nothing does, and where the component is not called with a time.

    Example:
        >>> from lora_mixer.mixes import Mix
        >>> what_goes_by_steps(Mix.of("a:1,start=5"), "model", torch.nn.Linear(2, 2))
        ''
    """
    if not _has_steps(root):
        return ""
    if any(mix[name].component_schedule(part) is not None for name in mix.names):
        return "a schedule"
    return type(mix.method).__name__ if mix.method.goes_by_steps else ""


def check_has_steps(mixes: Iterable[Mix], components: Mapping[str, nn.Module]) -> None:
    """
    Check that components on which a method goes by steps are called with a time.

    Args:
        mixes: The mixes.
        components: The modules that their adapters change, but for text encoders, by name.

    Raises:
        MixError: When one of them has no steps, so that the method would stay where it begins for ever.

    Example:
        >>> from lora_mixer.mixes import Mix
        >>> check_has_steps([Mix.of("a:1, b:1 | switch")], {"model": torch.nn.Linear(2, 2)})
        Traceback (most recent call last):
        lora_mixer.errors.MixError: Switch goes by the steps of a denoiser, and model (Linear) has none: its forward takes no timestep, so that the mix would stay at its first value. Set weights, or set_mix anew when they are to change
    """
    for part, root in components.items():
        for mix in mixes:
            if mix.method.goes_by_steps and not _has_steps(root):
                raise MixError(
                    f"{type(mix.method).__name__} goes by the steps of a denoiser, and {part} ({type(root).__name__}) has none: its "
                    "forward takes no timestep, so that the mix would stay at its first value. Set weights, or set_mix anew when "
                    "they are to change",
                    component=part,
                )


def schedules_without_steps(
    mix: Mix, parts: Mapping[str, Iterable[str]], components: Mapping[str, nn.Module]
) -> list[str]:
    """
    Tell which schedules of a mix stay at their first value, since what they are for is not called with a time.

    Args:
        mix: The mix.
        parts: The components that each of its adapters changes.
        components: The pipeline's modules, by name.

    Returns:
        A sentence for each adapter and component; text encoders are none of them, they read prompts once.

    Example:
        >>> from lora_mixer.mixes import Mix
        >>> schedules_without_steps(Mix.of("a:1,start=5"), {"a": ["model"]}, {"model": torch.nn.Linear(2, 2)})
        ['a: its schedule changes nothing after the start, model (Linear) has no steps: its forward takes no timestep']
    """
    return [
        f"{name}: its schedule changes nothing after the start, {part} ({type(components[part]).__name__}) has no steps: its "
        "forward takes no timestep"
        for name in mix.names
        for part in parts[name]
        if part in components and part not in TEXT_ENCODERS
        if mix[name].component_schedule(part) is not None and not _has_steps(components[part])
    ]


def _has_steps(root: nn.Module) -> bool:
    parameters = inspect.signature(type(root).forward).parameters
    return bool(_TIMES & parameters.keys()) or any(p.kind is p.VAR_POSITIONAL for p in parameters.values())


def different_times(timestep: Any, caller: Caller) -> list[float]:
    """
    List the timesteps of a call's rows, where they are several and no pipeline says which one it is at.

    Args:
        timestep: What the denoiser was called with: a number, (), (rows,), or (rows, tokens).
        caller: Who is calling.
    """
    if not isinstance(timestep, torch.Tensor) or timestep.ndim == 0 or len(timestep) < 2:
        return []
    if timestep.stride(0) == 0 or (caller.pipe is not None and _is_number(caller.local("t"))):
        return []  # one for all, and nothing has to be read from the device for it
    each = timestep.detach().flatten(1).amax(1) if timestep.ndim > 1 else timestep  # (rows,)
    times = sorted({float(value) for value in each.tolist()}, reverse=True)
    return times if len(times) > 1 else []


def timestep_of(args: Sequence[Any], kwargs: Any) -> Any:
    """Find the timestep of a denoiser call: the argument of that name, or the second one; None where there is none."""
    given = next((kwargs[name] for name in ("timestep", "timestep_ratio") if name in kwargs), None)
    return args[1] if given is None and len(args) > 1 else given


def _timesteps_of(scheduler: Any) -> Any:
    timesteps = getattr(scheduler, "timesteps", None)
    return timesteps if _is_list(timesteps) else None


def _is_list(timesteps: Any) -> bool:
    if isinstance(timesteps, torch.Tensor):
        return timesteps.ndim == 1 and len(timesteps) > 0
    return isinstance(timesteps, list | tuple) and bool(timesteps) and all(map(_is_number, timesteps))


def _is_number(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value.numel() == 1
    return isinstance(value, int | float)


def _version(timesteps: Any) -> int:
    counts = isinstance(timesteps, torch.Tensor) and not timesteps.is_inference()
    return timesteps._version if counts else 0  # noqa: SLF001 -- tells of changes in place
