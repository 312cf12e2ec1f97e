"""Following a denoiser: reads the step of each of its calls and puts the gains of that step into effect."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from lora_mixer.engines.denoiser.caller import calling
from lora_mixer.engines.denoiser.images import check_stated, layout_of, stated_layout, text_of
from lora_mixer.engines.denoiser.passes import all_passes
from lora_mixer.engines.denoiser.places import Places, places_of
from lora_mixer.engines.denoiser.steps import StepReader, different_times, timestep_of
from lora_mixer.engines.engine import Call
from lora_mixer.errors import MixError
from lora_mixer.families import family_of_class

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lora_mixer.engines.denoiser.caller import Caller
    from lora_mixer.engines.denoiser.prompts import Prompts
    from lora_mixer.engines.denoiser.steps import Step


class DenoiserFollower:
    """
    What is done at the calls of one denoiser.

    Args:
        pipe: The mixer's pipeline, for its scheduler where no other is calling.
        part: The denoiser's name.
        passes: How many forwards each mix takes: those of the prompts, then those of the halves without.
        negatives: How many of the latter there are.
        copies: How often guidance repeats the batch; None asks the pipeline that is calling.
        by_steps: What changes a mix in time, in words; empty where nothing does.
        put: Puts the gains of a call into effect.
        prompts: Told that the prompts are read.
    """

    def __init__(
        self,
        pipe: Any,
        part: str,
        passes: Sequence[int],
        negatives: int,
        copies: int | None,
        by_steps: str,
        put: Callable[[Call], None],
        prompts: Prompts,
    ) -> None:
        """Start before the first call."""
        self._part = part
        self._passes = passes
        self._negatives = negatives
        self._prompts = prompts
        self._copies = copies
        self._by_steps = by_steps
        self._put = put
        self._steps = StepReader(pipe)
        self._root: Any = None
        self._now = Call()

    def place_in(self, root: Any) -> None:
        """Read at each call where the picture lies, for masks; ``root`` is the denoiser."""
        self._root = root

    @property
    def several(self) -> bool:
        """Whether any image takes several passes."""
        return max(self._passes) > 1

    def before(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Read the step and put the first pass into effect."""
        sample = next((v for v in (*args, *kwargs.values()) if isinstance(v, torch.Tensor)), None)
        named = next((kwargs[name] for name in ("sample", "hidden_states", "x") if name in kwargs), sample)
        sample = args[0] if args and named is sample else named
        if isinstance(sample, list) and sample and all(isinstance(each, torch.Tensor) for each in sample):
            sample = _stacked(sample)  # Z-Image is called with a list of pictures
        if not isinstance(sample, torch.Tensor):
            return
        if sample.is_cuda and torch.cuda.is_current_stream_capturing():
            return  # a graph keeps the gains of the step that it was captured at; nothing can be read now
        caller = calling(self._part)
        timestep = timestep_of(args, kwargs)
        times = different_times(timestep, caller) if self._by_steps else []
        if times and self._steps.is_in_run(caller):
            raise MixError(
                f"{self._by_steps} goes by the steps of a run, and {self._part} is called with rows of {len(times)} different "
                f"timesteps ({', '.join(f'{time:g}' for time in times[:4])}), which would have one gain: call it with rows of one "
                "timestep at a time, or set weights that stay",
                component=self._part,
            )
        step = self._steps.read(timestep, caller)
        if self._by_steps and not step.is_told and caller.pipe is None:
            raise MixError(
                f"{self._by_steps} goes by the steps of a run, and a loop calls {self._part} with timestep {step.timestep:g}, "
                "which is none of a scheduler's that the loop has, nor of the mixer's pipeline: take it from "
                "scheduler.timesteps, or from one tensor of all timesteps (for t in timesteps), or set_mix anew at each step",
                component=self._part,
            )
        rows = self._rows(caller, sample, text_of(args, kwargs), step, timed=timestep is not None)
        self._prompts.restart()
        places = Places()
        if self._root is not None:
            family = family_of_class(type(self._root).__name__)
            places = places_of(sample, args, kwargs, self._root, family)
        self._now = Call(step, 0, rows, places)
        self._run(0)

    def after(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any, again: Callable[..., Any]
    ) -> Any:
        """Run the other passes, and give the mean."""

        def run(turn: int) -> Any:
            self._run(turn)
            return again(*args, **kwargs)

        return all_passes(output, self._passes, self._now.rows, run)

    def _rows(
        self, caller: Caller, sample: torch.Tensor, text: Any, step: Step, *, timed: bool
    ) -> torch.Tensor | None:
        """Return the mix of each row; None where there is one for all. What has no timestep is no denoiser, with no guidance."""
        images, negatives = len(self._passes) - self._negatives, self._negatives > 0
        if images == 1 and not negatives:
            return None
        first = step.index < 2  # pictures that start from the same noise differ from the second step on
        if self._copies is not None:
            layout = stated_layout(int(sample.shape[0]), images, self._copies, negatives=negatives)
            if timed:
                check_stated(layout, caller, sample, text, negatives=negatives, first=first)
        else:
            layout = layout_of(caller, sample, text, images, negatives=negatives, first=first)
        return layout.rows(negatives=negatives)

    def _run(self, turn: int) -> None:
        self._put(replace(self._now, turn=turn))


def _stacked(pictures: list[torch.Tensor]) -> torch.Tensor:
    """Return pictures of a list as rows of one tensor; of several sizes, as rows of what they have in common."""
    sizes = [min(sizes) for sizes in zip(*(each.shape for each in pictures), strict=True)]
    return torch.stack(
        [each[tuple(slice(size) for size in sizes)] for each in pictures]
    )  # (pictures, channels, ...)
