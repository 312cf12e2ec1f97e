"""Following a denoiser: reads the step of each of its calls and puts the gains of that step into effect."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from lora_mixer.engines.images import image_rows
from lora_mixer.engines.passes import all_passes
from lora_mixer.engines.steps import Step, StepClock, scheduler_timesteps, timestep_of
from lora_mixer.errors import MixError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

START = Step(0, 1, 1000.0)
"""What holds before the first step, and for text encoders."""


class Follower:
    """
    What is done at the calls of one denoiser.

    Args:
        pipe: The pipeline, for its scheduler and guidance.
        passes: How many forwards the mix of each image takes.
        copies: How often guidance repeats the batch; None asks the pipeline.
        put: Puts the gains of a step, a pass, the images of the rows and the size of the latents into effect.
    """

    def __init__(
        self,
        pipe: Any,
        passes: Sequence[int],
        copies: int | None,
        put: Callable[[Step, int, torch.Tensor | None, tuple[int, int]], None],
    ) -> None:
        """Start before the first call."""
        self._pipe = pipe
        self._passes = passes
        self._copies = copies
        self._put = put
        self._clock = StepClock(scheduler_timesteps(pipe))
        self._now: tuple[Step, torch.Tensor | None, tuple[int, int]] = (START, None, (0, 0))

    @property
    def several(self) -> bool:
        """Whether any image takes several passes."""
        return max(self._passes) > 1

    def before(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Read the step and put the first pass into effect."""
        sample = next((v for v in (*args, *kwargs.values()) if isinstance(v, torch.Tensor)), None)
        sample = kwargs.get("sample", kwargs.get("hidden_states", args[0] if args else sample))
        if not isinstance(sample, torch.Tensor):
            return
        if sample.is_cuda and torch.cuda.is_current_stream_capturing():
            return  # a graph keeps the gains of the step that it was captured at; nothing can be read now
        latents = (int(sample.shape[-2]), int(sample.shape[-1])) if sample.ndim >= 4 else (0, 0)
        rows = image_rows(self._pipe, int(sample.shape[0]), len(self._passes), self._copies)
        self._now = (self._clock.tick(timestep_of(args, kwargs)), rows, latents)
        self._run(0)

    def after(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any, again: Callable[..., Any]
    ) -> Any:
        """Run the other passes, and give the mean."""

        def run(turn: int) -> Any:
            self._run(turn)
            return again(*args, **kwargs)

        return all_passes(output, self._passes, self._now[1], run)

    def _run(self, turn: int) -> None:
        step, rows, latents = self._now
        self._put(step, turn, rows, latents)


def prompt_rows(
    part: str, images: int, show: Callable[[torch.Tensor], None]
) -> Callable[[tuple[Any, ...], dict[str, Any]], None]:
    """
    Make what is called before a text encoder: it gives each prompt of the batch its own mix.

    Args:
        part: The text encoder's name, for messages.
        images: How many mixes there are.
        show: Takes the mix of each prompt.
    """

    def before(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        batch = len(ids) if isinstance(ids, torch.Tensor) else images
        if batch % images:
            msg = (
                f"{images} mixes, but {part} was called with {batch} prompts: pass a list of {images} prompts, "
                "one for each mix"
            )
            raise MixError(msg)
        show(torch.arange(batch) % images)

    return before
