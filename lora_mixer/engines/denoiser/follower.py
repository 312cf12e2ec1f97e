"""Following a denoiser: reads the step of each of its calls and puts the gains of that step into effect."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from lora_mixer.engines.denoiser.images import image_rows
from lora_mixer.engines.denoiser.steps import Step, StepClock, Timesteps
from lora_mixer.engines.methods.composite import all_passes
from lora_mixer.errors import MixError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

START = Step(0, 1, 1000.0)
"""What holds before the first step, and for text encoders."""


class DenoiserFollower:
    """
    What is done at the calls of one denoiser.

    Args:
        pipe: The pipeline, for its scheduler and guidance.
        passes: How many forwards each mix takes: those of the prompts, then those of the halves without.
        negatives: How many of the latter there are.
        copies: How often guidance repeats the batch; None asks the pipeline.
        put: Puts the gains of a step, a pass, the mixes of the rows and the size of the latents into effect.
        prompts: Told that the prompts are read.
    """

    def __init__(
        self,
        pipe: Any,
        passes: Sequence[int],
        negatives: int,
        copies: int | None,
        put: Callable[[Step, int, torch.Tensor | None, tuple[int, int]], None],
        prompts: Prompts,
    ) -> None:
        """Start before the first call."""
        self._pipe = pipe
        self._passes = passes
        self._negatives = negatives
        self._prompts = prompts
        self._copies = copies
        self._put = put
        self._timesteps = Timesteps(pipe)
        self._clock = StepClock(self._timesteps.read)
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
        images = len(self._passes) - self._negatives
        rows = image_rows(
            self._pipe, int(sample.shape[0]), images, self._copies, negatives=self._negatives > 0
        )
        self._prompts.restart()
        self._now = (self._clock.tick(self._timesteps.of(args, kwargs)), rows, latents)
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


class Prompts:
    """
    Which mix each prompt of a text encoder's batch has.

    Pipelines read the prompts in one call and the negative prompts in the next; after a denoiser call all begins anew.

    Args:
        images: How many mixes there are.
        negatives: How many of the halves without the prompt.
    """

    def __init__(self, images: int, negatives: int) -> None:
        """Begin before the first call."""
        self._images = images
        self._negatives = negatives
        self._calls: dict[str, int] = {}

    def restart(self) -> None:
        """Take the next call for prompts again."""
        self._calls.clear()

    def before(
        self, part: str, show: Callable[[torch.Tensor], None]
    ) -> Callable[[tuple[Any, ...], dict[str, Any]], None]:
        """
        Make what is called before a text encoder.

        Args:
            part: The text encoder's name.
            show: Takes the mix of each prompt.
        """

        def call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            images = self._images
            ids = kwargs.get("input_ids", args[0] if args else None)
            batch = len(ids) if isinstance(ids, torch.Tensor) else images
            if batch % images:
                msg = (
                    f"{images} mixes, but {part} was called with {batch} prompts: pass a list of {images} prompts, "
                    "one for each mix"
                )
                raise MixError(msg)
            number = self._calls.get(part, 0)
            self._calls[part] = number + 1
            rows = torch.arange(batch) % images
            show(rows + images if self._negatives and number % 2 else rows)

        return call
