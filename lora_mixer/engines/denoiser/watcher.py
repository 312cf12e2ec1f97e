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
from lora_mixer.errors import MixError
from lora_mixer.mixes import TEXT_ENCODERS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_mixer.engines.denoiser.turns import Turns
    from lora_mixer.engines.engine import Call, Effect, Engine
    from lora_mixer.engines.in_effect import InEffect
    from lora_mixer.engines.pipeline_ref import PipelineRef


_OF_PICTURES = {"encode": ("_encode", "encoder"), "decode": ("_decode", "decoder")}
"""Methods by which pipelines have pictures read and written, which are no calls of the module; and what each calls for all pictures,
or, sliced (``enable_slicing``), for one after the other: a method, or where there is none a module."""


class _Shown:
    """Shows a call to all engines; an object, so that copies of the denoiser have copies of it."""

    def __init__(self, engines: Sequence[Engine], in_effect: InEffect) -> None:
        self._engines, self._in_effect = engines, in_effect

    def __call__(self, call: Call) -> None:
        call = self._in_effect.show(call)
        for engine in self._engines:
            engine.show(call)

    def text(self, component: str, rows: torch.Tensor) -> None:
        """Show the mix of each text."""
        self._in_effect.show_text(component, rows)
        for engine in self._engines:
            engine.show_text(component, rows)


class _PictureCall:
    """Gives each picture that a component reads or writes its own mix: no denoiser's call, so none of its rows and halves."""

    def __init__(self, part: str, word: str, images: int, shown: _Shown) -> None:
        self._part, self._word, self._images, self._shown = part, word, images, shown
        self._rows: torch.Tensor | None = None
        self._done = 0

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Begin with all pictures."""
        sample = _first_tensor(args, kwargs)
        self._rows, self._done = None, 0
        if sample is not None and sample.ndim:
            call = f"{self._part}.{self._word}"
            self._rows = rows_of_pictures(calling(self._part), call, sample, self._images)
            self._shown.text(self._part, self._rows)

    def slice(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Go on with the next pictures, where these are not all."""
        sample = _first_tensor(args, kwargs)
        if self._rows is None or sample is None or not sample.ndim or len(sample) == len(self._rows):
            return
        rows = self._rows[self._done : self._done + len(sample)]  # (pictures of the slice,)
        if len(rows) != len(sample):
            raise MixError(
                f"{self._part}.{self._word}() takes its {len(self._rows)} pictures apart in a way that does not tell which is which, so "
                f"that they cannot have mixes of their own: turn slicing off ({self._part}.disable_slicing())",
                component=self._part,
            )
        self._done += len(sample)
        self._shown.text(self._part, rows)


def _first_tensor(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor | None:
    return next((value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)), None)


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

    def watch(
        self, pipe: PipelineRef, effect: Effect, engines: Sequence[Engine], in_effect: InEffect
    ) -> None:
        """
        Watch each denoiser that an active adapter changes, and text encoders where each text has its own mix.

        Args:
            pipe: The pipeline.
            effect: What has been entered.
            engines: Who is told.
            in_effect: Told as well, for gradients.
        """
        setting, outer, shown = effect.setting, callers(pipe.pipe), _Shown(engines, in_effect)
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
                for word, (inner, child) in _OF_PICTURES.items():
                    pictures = _PictureCall(part, word, len(setting.mixes), shown)
                    if not self._calls.watch_method(module, word, pictures):
                        continue
                    sliced = getattr(module, child, None)
                    if not self._calls.watch_method(module, inner, pictures.slice) and sliced is not None:
                        self._calls.watch(sliced, pictures.slice)
        if len(setting.every) > 1:
            for part in dict.fromkeys(part for engine in engines for part in engine.components):
                if part in TEXT_ENCODERS:
                    self._calls.watch(outer[part], prompts.before(part, partial(shown.text, part)))
