"""What looks in on the calls of a pipeline's components, and tells the engines what each call is."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from lora_mixer.engines.denoiser.caller import calling
from lora_mixer.engines.denoiser.follower import DenoiserFollower
from lora_mixer.engines.denoiser.images import rows_of_pictures
from lora_mixer.engines.denoiser.prompts import Prompts
from lora_mixer.engines.denoiser.steps import what_goes_by_steps
from lora_mixer.engines.denoiser.watch import Calls
from lora_mixer.engines.pipeline_ref import callers
from lora_mixer.mixes import TEXT_ENCODERS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_mixer.engines.denoiser.turns import Turns
    from lora_mixer.engines.engine import Call, Effect, Engine
    from lora_mixer.engines.pipeline_ref import PipelineRef


_OF_PICTURES = ("encode", "decode")
"""Methods by which pipelines have pictures read and written; they are no calls of the module."""


class _Shown:
    """Shows a call to all engines; an object, so that copies of the denoiser have copies of it."""

    def __init__(self, engines: Sequence[Engine]) -> None:
        self._engines = engines

    def __call__(self, call: Call) -> None:
        for engine in self._engines:
            engine.show(call)

    def text(self, component: str, rows: torch.Tensor) -> None:
        """Show the mix of each text."""
        for engine in self._engines:
            engine.show_text(component, rows)


class _PictureCall:
    """Gives each picture that a component reads or writes its own mix: no denoiser's call, so none of its rows and halves."""

    def __init__(self, part: str, word: str, images: int, shown: _Shown) -> None:
        self._part, self._word, self._images, self._shown = part, word, images, shown

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        sample = next((value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)), None)
        if sample is not None and sample.ndim:
            call = f"{self._part}.{self._word}"
            self._shown.text(self._part, rows_of_pictures(calling(self._part), call, sample, self._images))


class CallWatcher:
    """
    Watches the calls of components as long as a mix goes by them.

    Args:
        turns: Says when a call may be made, beside those of other threads.
    """

    def __init__(self, turns: Turns) -> None:
        """Start with none."""
        self._calls = Calls(turns)

    @property
    def is_watching(self) -> bool:
        """Whether any component is watched."""
        return self._calls.watching

    def clear(self) -> None:
        """Watch no component any more."""
        self._calls.clear()

    def watch(self, pipe: PipelineRef, effect: Effect, engines: Sequence[Engine]) -> None:
        """
        Watch each denoiser that an active adapter changes, and text encoders where each text has its own mix.

        Args:
            pipe: The pipeline.
            effect: What has been entered.
            engines: Who is told.
        """
        setting, outer, shown = effect.setting, callers(pipe.pipe), _Shown(engines)
        prompts = Prompts(len(setting.mixes), len(setting.negatives))
        passes = [mix.passes for mix in effect.mixes]
        parts = {layer.live.component for name in setting.names for layer in effect.layers[name]}
        for part in sorted(parts - set(TEXT_ENCODERS)):
            by_steps = next(
                filter(
                    None, (what_goes_by_steps(mix, part, effect.components[part]) for mix in setting.every)
                ),
                "",
            )
            follower = DenoiserFollower(
                pipe, part, passes, len(setting.negatives), setting.copies, by_steps, shown, prompts
            )
            if any(engine.sees_places(part) for engine in engines):
                follower.place_in(getattr(outer[part], "_orig_mod", outer[part]))
            self._calls.watch(outer[part], follower.before, follower.after if follower.several else None)
            if len(setting.every) > 1:
                module = getattr(outer[part], "_orig_mod", outer[part])
                for word in _OF_PICTURES:
                    before = _PictureCall(part, word, len(setting.mixes), shown)
                    self._calls.watch_method(module, word, before)
        if len(setting.every) > 1:
            for part in dict.fromkeys(part for engine in engines for part in engine.components):
                if part in TEXT_ENCODERS:
                    self._calls.watch(outer[part], prompts.before(part, partial(shown.text, part)))
