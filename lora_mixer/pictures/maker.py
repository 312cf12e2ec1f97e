"""
Requests in, pictures out: batches, each picture's own noise, steps that can be watched and stopped.

A picture depends on its request alone: noise is drawn on the CPU from its own seed, and with ``batch_size=1`` it is the same
to the byte whatever else is made before, after or beside it. In larger batches kernels may sum in another order, and
pictures can differ in the last bit of a pixel.
"""

from __future__ import annotations

import inspect
import logging
import time
import warnings
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch

from lora_mixer.binding import find_components
from lora_mixer.errors import MissingExtraError, MixError, PictureError
from lora_mixer.extras import require
from lora_mixer.families.of_pipeline import family_of
from lora_mixer.pictures.batching import batches
from lora_mixer.pictures.from_images import SECOND_STRENGTH, ImageTasks, larger, takes
from lora_mixer.pictures.placing import free_memory, offload_of, setting_text, smaller_than
from lora_mixer.pictures.preview import Progress
from lora_mixer.pictures.prompting import PromptEncoder
from lora_mixer.pictures.request import PICTURE_FIELDS, Picture, PictureRequest
from lora_mixer.pictures.samplers import AYS, ays_timesteps, make_scheduler, read_sampler
from lora_mixer.problem import Problem, Remedy, Surface

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from PIL.Image import Image

    from lora_mixer.mixer import LoraMixer

_OPEN = {name: about for name, about in PICTURE_FIELDS.items() if about.default is None}
"""What requests may leave open."""
_ARGUMENTS = {name: about.argument for name, about in _OPEN.items() if about.argument is not None}
"""Of these, what diffusers' pipelines are told, and how they call it."""


@dataclass(frozen=True)
class StepProgress:
    """
    Where a batch is.

    Attributes:
        indices: The requests that the batch is made of, by their place among those given.
        step: Steps done, from 1.
        steps: Steps in all.
        previews: Decodes small looks at the forming pictures, one per index; costs time only when called.

    Example:
        >>> StepProgress(indices=(0, 1), step=3, steps=20, previews=list).step
        3
    """

    indices: tuple[int, ...]
    step: int
    steps: int
    previews: Callable[[], list[Image]]


class SmallerSettingWarning(UserWarning):
    """
    Memory was too small for a picture: it is made with a setting that takes less, which the message names.

    Example:
        >>> import warnings
        >>> with warnings.catch_warnings(record=True) as told:
        ...     warnings.simplefilter("always")
        ...     warnings.warn("made with vae_tiling", SmallerSettingWarning)
        >>> issubclass(told[0].category, UserWarning)
        True
    """


class PictureMaker:
    """
    Makes the pictures of requests with one mixer's pipeline.

    Args:
        mixer: The mixer; its adapters are what requests' mixes may name.
        batch_size: The most pictures in one pipeline call. 1 gives the same bytes whatever is made together.
        defaults: Values for what requests leave open, such as ``steps`` and ``guidance_scale``.
        smaller: What is done when a single picture does not fit into memory: ``any`` gives the pipeline the next setting that
            takes less (``offload="model"``, ``vae_tiling``, ``offload="sequential"``) and goes on, with a
            :class:`SmallerSettingWarning`; ``same_pixels`` leaves those out that change pictures; ``none`` is an error at once.

    Raises:
        PictureError: When ``batch_size`` or a default makes no sense.

    Example:
        >>> maker = PictureMaker(mixer)  # doctest: +SKIP
        >>> for picture in maker.make([PictureRequest("a castle", mix={"ink": 0.8})]):  # doctest: +SKIP
        ...     picture.image.save("castle.png")
    """

    def __init__(
        self,
        mixer: LoraMixer,
        *,
        batch_size: int = 1,
        defaults: Mapping[str, Any] | None = None,
        smaller: Literal["any", "same_pixels", "none"] = "any",
    ) -> None:
        """Look at what the pipeline takes."""
        given: object = batch_size
        if isinstance(given, bool) or not isinstance(given, int) or given < 1:
            raise PictureError(
                f"batch_size must be a whole number from 1, got {batch_size!r}", argument="batch_size"
            )
        unknown = set(defaults or ()) - set(_OPEN)
        if unknown:
            raise PictureError(
                f"defaults are known for {', '.join(_OPEN)}; got {', '.join(sorted(unknown))}",
                argument="defaults",
                problems=[Problem(name, "has no default that is known") for name in sorted(unknown)],
            )
        if smaller not in ("any", "same_pixels", "none"):
            raise PictureError(
                f"smaller must be any, same_pixels or none, got {smaller!r}", argument="smaller"
            )
        self.mixer = mixer
        self.batch_size = batch_size
        self._smaller = smaller
        self._schedulers: dict[tuple[int, str | None, str | None], tuple[Any, Any]] = {}
        self._prompts = PromptEncoder(mixer.pipe)
        self._images = ImageTasks(mixer.pipe)
        self._takes = inspect.signature(mixer.pipe.__call__).parameters
        self._defaults = {**self._of_pipeline(), **(defaults or {})}
        PictureRequest("").with_defaults(self._defaults)  # a clear error now rather than at the first picture

    def _of_pipeline(self) -> dict[str, Any]:
        takes = {name: self._takes.get(argument) for name, argument in _ARGUMENTS.items()}
        return {
            name: parameter.default
            for name, parameter in takes.items()
            if parameter is not None and isinstance(parameter.default, int | float)
        }

    def resolve(self, request: PictureRequest) -> PictureRequest:
        """
        Return a request with the defaults filled in and ``<lora:...>`` tags moved into its mixes.

        Args:
            request: A request.

        Raises:
            PictureError: When the pipeline does not take something that the request asks for.
            MixError: When a tag makes no sense.
            AdapterNameError: When the mix names an adapter that is not loaded.

        Example:
            >>> maker.resolve(PictureRequest("a cat")).steps  # doctest: +SKIP
            20
        """
        full = request.with_tags(self.mixer.adapters).with_defaults(self._defaults)
        for mix in (full.mix, full.negative_mix):
            if mix is not None:
                self.mixer.check_mix(mix)
        pipe = self._images.pipe_for(full)
        self._images.check(full)
        if full.second_pass is not None:
            self._images.second()
        asked = {argument for name, argument in _ARGUMENTS.items() if getattr(request, name) is not None}
        if full.image is not None:  # which has a size of its own, and is brought to the one asked for
            asked -= {"width", "height"}
        asked |= {"negative_prompt"} if request.negative_prompt else set()
        self._scheduler(full)  # a clear error now
        if self._prompts.wants(full):
            require("compel", "prompts")
            self._prompts.chunks(full)
        missing = sorted(asked - set(takes(pipe)))
        if missing:
            kind = type(pipe).__name__
            raise PictureError(
                f"{kind} does not take {', '.join(missing)}; leave it out for this model",
                problems=[
                    Problem(name, f"{kind} does not take it; leave it out for this model") for name in missing
                ],
            )
        return full

    @property
    def emphasis_problem(self) -> str:
        """
        Why prompts with emphasis, such as ``(word:1.3)``, are read as plain text here or refused; empty where they are not.

        Example:
            >>> maker.emphasis_problem  # doctest: +SKIP
            ''
        """
        problem = self._prompts.problem()
        if problem is None:
            try:
                require("compel", "prompts")
            except MissingExtraError as error:
                problem = str(error)
        return problem or ""

    def _scheduler(self, request: PictureRequest) -> Any:
        """Return the scheduler that a request asks for; each is made once."""
        scheduler = getattr(self.mixer.pipe, "scheduler", None)
        choice = read_sampler(request.sampler, request.schedule)
        if not choice.changes:
            return scheduler
        if scheduler is None:
            raise PictureError(
                f"{type(self.mixer.pipe).__name__} has no scheduler, so it takes no sampler", field="sampler"
            )
        key = (id(scheduler), request.sampler, request.schedule)
        if key not in self._schedulers:
            made = make_scheduler(scheduler, choice)
            if AYS in choice.words:
                self._ays(made, request.steps or 10)
            self._schedulers[key] = (scheduler, made)  # the own one stays, so that its id is no other's
        return self._schedulers[key][1]

    def _ays(self, scheduler: Any, steps: int) -> list[int]:
        if "timesteps" not in self._takes:
            raise PictureError(
                f"{type(self.mixer.pipe).__name__} takes no timesteps, so it cannot carry {AYS}",
                field="schedule",
            )
        family = family_of(find_components(self.mixer.pipe))
        return ays_timesteps(scheduler, steps, *(() if family is None else (family.ays,)))

    @contextmanager
    def _sampling(self, request: PictureRequest, also: Any) -> Iterator[dict[str, Any]]:
        """Give the pipelines the scheduler of a request, and the arguments that go with it; put the own one back."""
        pipe = self.mixer.pipe
        scheduler, wanted = getattr(pipe, "scheduler", None), self._scheduler(request)
        more: dict[str, Any] = {}
        if AYS in read_sampler(request.sampler, request.schedule).words:
            more = {"timesteps": self._ays(wanted, request.steps or 10)}
        if wanted is scheduler and also is pipe:
            yield more
            return
        pipe.scheduler = also.scheduler = wanted
        try:
            yield more
        finally:
            pipe.scheduler = also.scheduler = scheduler

    def make(
        self,
        requests: Sequence[PictureRequest],
        *,
        on_step: Callable[[StepProgress], None] | None = None,
    ) -> Iterator[Picture]:
        """
        Make the pictures, those that can share a batch together; everything is checked before the first is begun.

        Args:
            requests: What to make.
            on_step: Called after each denoising step. Whatever it raises ends the work within that step and comes out
                of this iterator; :class:`~lora_mixer.errors.PictureCancelled` is made for it.

        Returns:
            The pictures as they are finished. Their order is that of the batches: sort by ``index`` where it matters.

        Raises:
            PictureError: When a request cannot be made with this pipeline.
            MixError: When a mix cannot be applied.

        Example:
            >>> pictures = list(maker.make([PictureRequest("a castle", seed=seed) for seed in range(4)]))  # doctest: +SKIP
        """
        full = [self.resolve(request) for request in requests]
        return self._run(full, on_step)

    def _run(
        self, requests: Sequence[PictureRequest], on_step: Callable[[StepProgress], None] | None
    ) -> Iterator[Picture]:
        waiting = batches(requests, self.batch_size)
        while waiting:
            batch, *more = self._of_one_length(requests, waiting.pop(0))
            waiting = more + waiting
            start = time.perf_counter()
            full = False
            try:
                images = self._call([requests[i] for i in batch], tuple(batch), on_step)
            except torch.OutOfMemoryError:
                full = True  # what the error holds is free only after this block
            except MixError:
                # a method, or an adapter without a low-rank form, that cannot have one mix per image
                parts = _by_mix(requests, batch)
                if len(parts) == 1:
                    raise
                waiting = parts + waiting
                continue
            if full:
                free_memory()
                if len(batch) == 1:
                    self._take_less(requests[batch[0]])
                else:
                    self.batch_size = max(1, len(batch) // 2)
                waiting = [
                    part[i : i + self.batch_size]
                    for part in (batch, *waiting)
                    for i in range(0, len(part), self.batch_size)
                ]
                continue
            seconds = (time.perf_counter() - start) / len(batch)
            for i, image in zip(batch, images, strict=True):
                yield Picture(i, self._filled(requests[i], image), image, seconds, len(batch))

    def _take_less(self, request: PictureRequest) -> None:
        """Give the pipeline the next setting that takes less memory, or say what else there is."""
        pipe = self.mixer.pipe
        device = str(getattr(pipe, "_execution_device", pipe.device))
        smaller = smaller_than(pipe, keeping_pixels=self._smaller == "same_pixels")
        setting = None if self._smaller == "none" else next(smaller, None)
        if setting is None:
            raise out_of_memory(request, device, pipe) from None
        mix = self.mixer.mix
        self.mixer.set_mix({})  # offloading moves weights: it gets the base
        try:
            setting.apply(pipe)
        finally:
            self.mixer.set_mix(mix)
        free_memory()
        warnings.warn(
            f"the memory of {device} is too small for {_size(request)}: it goes on with {setting.option} {setting.value}".rstrip(),
            SmallerSettingWarning,
            stacklevel=5,
        )

    def _filled(self, request: PictureRequest, image: Image) -> PictureRequest:
        """Fill in what was used where nothing was said."""
        used: dict[str, Any] = {"width": image.width, "height": image.height}
        if hasattr(self.mixer.pipe, "scheduler"):
            used["sampler"] = type(self.mixer.pipe.scheduler).__name__
        return request.with_defaults(used)

    def _call(
        self,
        batch: Sequence[PictureRequest],
        indices: tuple[int, ...],
        on_step: Callable[[StepProgress], None] | None,
    ) -> list[Image]:
        first = batch[0]
        pipe = self._images.pipe_for(first)
        images = self._call_pipe(pipe, batch, indices, on_step, self._images.arguments(batch, pipe))
        if first.second_pass is None:
            return images
        strength = SECOND_STRENGTH if first.second_pass_strength is None else first.second_pass_strength
        enlarged = larger(images, first.second_pass)
        more: dict[str, Any] = {"image": enlarged, "strength": strength}
        second = self._images.second()
        sides = {"width": enlarged[0].width, "height": enlarged[0].height}
        more |= {key: value for key, value in sides.items() if key in takes(second)}
        if first.control_image is not None:
            width, height = sides.values()
            again = [replace(each, image=None, width=width, height=height) for each in batch]
            more["control_image"] = self._images.arguments(again, second)["control_image"]
        return self._call_pipe(second, batch, indices, on_step, more)

    def _call_pipe(
        self,
        pipe: Any,
        batch: Sequence[PictureRequest],
        indices: tuple[int, ...],
        on_step: Callable[[StepProgress], None] | None,
        given: Mapping[str, Any],
    ) -> list[Image]:
        first, known = batch[0], takes(pipe)
        arguments: dict[str, Any] = {
            argument: value
            for name, argument in _ARGUMENTS.items()
            if (value := getattr(first, name)) is not None and argument in known
        }
        arguments |= given
        if "num_frames" in known:  # a film of one frame is a picture
            arguments |= {"num_frames": 1, "output_type": "pil"}
        if on_step is not None and "callback_on_step_end" in known:
            arguments["callback_on_step_end"] = _watcher(pipe, indices, on_step)
        with (
            self._sampling(first, pipe) as sampling,
            self._images.shown(first) as shown,
            self._mixed(batch),
            _quiet(pipe),
        ):
            arguments |= {**sampling, **shown}
            if "timesteps" in sampling:
                arguments.pop("num_inference_steps", None)
            arguments |= self._texts(batch)
            try:
                output = pipe(
                    generator=[torch.Generator("cpu").manual_seed(request.seed) for request in batch],
                    **arguments,
                )
            except BaseException:
                pipe.maybe_free_model_hooks()
                raise
            if pipe is not self.mixer.pipe:  # whose hooks keep parts in host memory, where there are any
                self.mixer.pipe.maybe_free_model_hooks()
        if hasattr(output, "images"):
            images: list[Image] = output.images
            return images
        return [film[0] for film in output.frames]

    def _of_one_length(self, requests: Sequence[PictureRequest], batch: Sequence[int]) -> list[list[int]]:
        """Part a batch where prompts have other lengths: padding one to another would change its picture."""
        groups: dict[int, list[int]] = {}
        for i in batch:
            encoded = self._prompts.wants(requests[i])
            groups.setdefault(self._prompts.chunks(requests[i]) if encoded else 0, []).append(i)
        return list(groups.values())

    def _texts(self, batch: Sequence[PictureRequest]) -> dict[str, Any]:
        """Return the prompts of a batch as the pipeline takes them: as text, or as embeddings, each by its own mix."""
        first = batch[0]
        if not self._prompts.wants(first):
            texts: dict[str, Any] = {"prompt": [request.prompt for request in batch]}
            if first.negative_prompt:
                texts["negative_prompt"] = [request.negative_prompt for request in batch]
            return texts
        encoder, skip, chunks = self._prompts, first.clip_skip, self._prompts.chunks(first)
        rows, pooled = [], []
        for request in batch:
            with self.mixer.applied(request.mix):
                made = encoder.encode(request.prompt, request.emphasis, skip, chunks)
            rows.append(made[0])
            pooled.append(made[1])
        for request in batch:
            with self.mixer.applied(request.mix if request.negative_mix is None else request.negative_mix):
                # without clip skip, as diffusers does it
                made = encoder.encode(request.negative_prompt, request.emphasis, None, chunks)
            zeros = not request.negative_prompt and getattr(
                self.mixer.pipe.config, "force_zeros_for_empty_prompt", False
            )
            rows.append(torch.zeros_like(made[0]) if zeros else made[0])
            pooled.append(torch.zeros_like(made[1]) if zeros and made[1] is not None else made[1])
        together = torch.cat(rows)  # (prompts + negative prompts, tokens, width)
        count = len(batch)
        embeds = {"prompt_embeds": together[:count], "negative_prompt_embeds": together[count:]}
        of_all = [each for each in pooled if each is not None]
        if of_all:
            embeds["pooled_prompt_embeds"] = torch.cat(of_all[:count])
            embeds["negative_pooled_prompt_embeds"] = torch.cat(of_all[count:])
        return embeds

    def _mixed(self, batch: Sequence[PictureRequest]) -> AbstractContextManager[object]:
        """Hold the mixes of a batch: one for all where they are equal, else one for each picture."""
        mixes = [request.mix for request in batch]
        negatives = [
            request.mix if request.negative_mix is None else request.negative_mix for request in batch
        ]
        if len({request.mix_key for request in batch}) == 1:
            return self.mixer.applied(mixes[0], negative=batch[0].negative_mix)
        return self.mixer.applied(mixes, negative=negatives if negatives != mixes else None)


def out_of_memory(request: PictureRequest, device: str, pipe: Any = None) -> PictureError:
    """
    Return the error that says what takes less memory, the least loss first, and is not in use yet.

    Example:
        >>> print(out_of_memory(PictureRequest("a", width=1024, height=1024), "cuda:0").message)
        the memory of cuda:0 is too small for 1024x1024
    """
    left = [(each.option, each.value) for each in smaller_than(pipe, keeping_pixels=False)]
    if getattr(pipe, "dtype", None) is not torch.float16:
        left.append(("dtype", "float16"))
    if offload_of(pipe) in ("none", "model"):
        left.append(("fp8", ""))
    left.append(("keep_base", "host"))
    written = {
        surface: ", ".join(setting_text(option, value, surface) for option, value in left)
        for surface in Surface
    }
    taken, smaller = "take, in this order: ", "or a smaller width and height"
    return PictureError(
        f"the memory of {device} is too small for {_size(request)}",
        remedy=Remedy(
            f"{taken}{written[Surface.PYTHON]}, {smaller}",
            f"{taken}{written[Surface.COMMAND]}, {smaller}",
            f"take a smaller width and height, or start the page with, in this order: {written[Surface.PAGE]}",
            f"{taken}{written[Surface.PLAN]}, {smaller}",
        ),
    )


def _size(request: PictureRequest) -> str:
    return f"{request.width}x{request.height}" if request.width and request.height else "its own size"


def _by_mix(requests: Sequence[PictureRequest], batch: Sequence[int]) -> list[list[int]]:
    groups: dict[str, list[int]] = {}
    for i in batch:
        groups.setdefault(requests[i].mix_key, []).append(i)
    return list(groups.values())


def _watcher(
    pipe: Any, indices: tuple[int, ...], on_step: Callable[[StepProgress], None]
) -> Callable[..., dict[str, Any]]:
    progress = Progress(pipe)

    def after(_: Any, step: int, __: Any, values: dict[str, Any]) -> dict[str, Any]:
        progress.moved(step, values.get("latents"))
        on_step(StepProgress(indices, step + 1, len(pipe.scheduler.timesteps), progress.previews))
        return {}

    return after


class _quiet(logging.Filter):  # noqa: N801 -- used as a statement, like suppress
    """Keep the pipeline's own progress bar away, and two warnings a picture about "modules [] that should be kept in float32"."""

    def __init__(self, pipe: Any) -> None:
        super().__init__()
        self._pipe = pipe
        self._kept: Any = None
        self._logger = logging.getLogger("diffusers.models.modeling_utils")

    def __enter__(self) -> None:
        self._kept = dict(getattr(self._pipe, "_progress_bar_config", {}))
        self._pipe.set_progress_bar_config(**{**self._kept, "disable": True})
        self._logger.addFilter(self)

    def __exit__(self, *_: object) -> Literal[False]:
        self._logger.removeFilter(self)
        self._pipe.set_progress_bar_config(**self._kept)
        return False

    def filter(self, record: logging.LogRecord) -> bool:
        """Say whether somebody can do something about it: where no module is named, nobody can."""
        return "should be kept in float32: []" not in record.getMessage()
