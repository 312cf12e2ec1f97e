"""The model that pictures are made with: loaded behind the open page, and changed for all sessions at once."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from lora_mixer import LoraMixer, PictureMaker, load_pipeline
from lora_mixer.errors import LoraMixerError, PictureCancelled, PictureError, SourceNotFoundError
from lora_mixer.library import base_family
from lora_mixer.mixes import BlockLayout, block_layouts
from lora_mixer.pictures import find_models as models_in
from lora_mixer.pictures import fitting_samplers, load_outline, own_defaults

from .ending import start_computing
from .messages import words_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from lora_mixer.pictures import ModelOptions

START_WAIT = 3.0
"""Seconds that the start waits for the model: a small one is there when the page is laid out."""
_LOOK_EVERY = 0.2
_USUAL_SCALE, _USUAL_SIDE = 8, 512
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelFacts:
    """
    What the page shows of a model; of one that is being loaded its configuration tells it.

    Attributes:
        options: Which, and how it is loaded.
        base: Its family, as adapters' descriptions name theirs.
        size: Pixels that it was made for.
        layout: Its denoiser's blocks, or None.
        samplers: Which samplers can carry it, with their schedules; empty until it is loaded.
        emphasis_problem: Why ``(word:1.3)`` is not read, or empty.
        guided: Whether it has an IP-Adapter, which shows it a picture to follow.
        scheduler: The class of its own sampler; empty until it is loaded.
    """

    options: ModelOptions
    base: str = "unknown"
    size: tuple[int, int] = (_USUAL_SIDE, _USUAL_SIDE)
    layout: BlockLayout | None = None
    samplers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    emphasis_problem: str = ""
    guided: bool = False
    scheduler: str = ""

    @property
    def title(self) -> str:
        """Its name."""
        return self.options.title

    @property
    def key(self) -> str:
        """What browsers call it: no path can be made of it."""
        return key_of(self.options.model)

    @property
    def defaults(self) -> dict[str, Any]:
        """Steps and guidance where nothing is said."""
        return {"steps": 25, "guidance_scale": 7.0, **own_defaults(self.options.model)}


@dataclass
class LoadedModel:
    """A model that pictures can be made with: one by one, or cells of grids together."""

    facts: ModelFacts
    mixer: LoraMixer
    maker: PictureMaker
    grid_maker: PictureMaker


class Models:
    """
    The one model of the device, and those that could take its place.

    Args:
        start: The first; loaded in a thread of its own.
        folders: Where others lie: diffusers folders and files that hold whole pipelines.
        grid_batch: Cells of a grid in one call.
        changed: Called when another model has taken the place.

    Raises:
        LoraMixerError: When there is no such model; what shows only while it is loaded is told by :meth:`loaded`.
    """

    def __init__(
        self, start: ModelOptions, folders: Sequence[Path], grid_batch: int, changed: Callable[[], None]
    ) -> None:
        """Read the model's configuration, and begin to load it."""
        self._start, self._folders, self._grid_batch, self._changed = (
            start,
            tuple(folders),
            grid_batch,
            changed,
        )
        self._lock = threading.Lock()
        self._there = threading.Event()
        self._model: LoadedModel | None = None
        self._problem: LoraMixerError | None = None
        self._facts = ModelFacts(start)
        self._waiting = ""
        self.refused = ""
        """Why the last change of the model came to nothing; empty where it did not."""
        self.number = 1
        """How many models there were: a picture asked for under another number was asked of another model."""
        try:
            self._facts = _facts(start, load_outline(start))
        except LoraMixerError:
            self._load_first()
            if self._problem is not None:
                raise self._problem from None
        else:
            start_computing(self._load_first, "model").join(START_WAIT)

    def _load_first(self) -> None:
        began = time.monotonic()
        try:
            self._model = self._made(self._start)
            self._facts = self._model.facts
            _log.info("%s was loaded in %.1f s", self._start.title, time.monotonic() - began)
        except LoraMixerError as error:
            self._problem = error
            _log.error("%s could not be loaded: %s", self._start.title, error)
        except Exception as error:  # noqa: BLE001 -- told to whoever wants a picture, and in the log
            self._problem = SourceNotFoundError(
                f"could not be loaded ({type(error).__name__}); the server's log has more",
                file=self._start.title,
            )
            _log.exception("the model could not be loaded")
        finally:
            self._there.set()

    @property
    def facts(self) -> ModelFacts:
        """What is known of the model that is there, or is being loaded."""
        return self._facts

    @property
    def loading(self) -> str:
        """The title of a model that is being loaded; empty where none is."""
        return self._waiting or ("" if self._there.is_set() else self._facts.title)

    @property
    def problem(self) -> str:
        """Why the first model could not be loaded; empty where it could."""
        return words_of(self._problem) if self._problem is not None and self._model is None else ""

    def loaded(self) -> LoadedModel:
        """
        Return the model, once it is there.

        Raises:
            LoraMixerError: When it could not be loaded.
        """
        self._there.wait()
        if self._model is None:
            raise self._problem or PictureError("There is no model.")
        return self._model

    def wait(self, tell: Callable[[dict[str, Any]], None], stopped: Callable[[], bool]) -> None:
        """
        Wait for a model that is being loaded, and say so.

        Raises:
            PictureCancelled: When it was stopped meanwhile.
            LoraMixerError: When it could not be loaded.
        """
        if not self._there.is_set():
            tell({"state": "queued", "ahead": 0, "loading": self._facts.title})
            while not self._there.wait(_LOOK_EVERY):
                if stopped():
                    raise PictureCancelled("stopped")
        self.loaded()

    def same(self, number: int) -> None:
        """
        Make sure that the model is still the one that a picture was asked of.

        Raises:
            PictureError: When another has taken its place.
        """
        if number != self.number:
            raise PictureError(
                f"The model was changed to {self._facts.title} while this waited: press Make again for a picture of that one."
            )

    def found(self) -> dict[str, ModelOptions]:
        """List the models that can be chosen, by key: the first, and those in the folders."""
        names = [self._start.model]
        for folder in self._folders:
            with suppress(SourceNotFoundError):  # a disk that is away now
                names += models_in(folder)
        plain = {
            name: value
            for name, value in self._start.said().items()
            # what belongs to the first model alone does not go with another
            if name
            not in (
                "model",
                "revision",
                "variant",
                "vae",
                "controlnet",
                "ip_adapter",
                "image_encoder",
                "config",
            )
        }
        options = {name: replace(type(self._start)(name), **plain) for name in dict.fromkeys(names)}
        options[self._start.model] = self._start
        return {key_of(name): each for name, each in options.items()}

    def switch(self, key: str) -> str:
        """
        Put another model in the place of the one that is there; called within a turn of the device's queue.

        Args:
            key: Its key, as :meth:`found` has it.

        Returns:
            Its title.

        Raises:
            LoraMixerError: When it cannot be loaded; the one before is there as it was.
        """
        wanted = self.found().get(key)
        if wanted is None:
            raise PictureError("This model is not in its folder any more: choose another.")
        before = self._model
        if before is not None and before.facts.options == wanted:
            return wanted.title
        self._waiting = wanted.title
        try:
            load_outline(wanted)  # what is not a model is told before the one before makes room
            made = self._exchanged(before, wanted)
            with self._lock:
                self._model, self._facts, self._problem = made, made.facts, None
                self.number += 1
            self._there.set()
            self._changed()
        finally:
            self._waiting = ""
        return wanted.title

    def _exchanged(self, before: LoadedModel | None, wanted: ModelOptions) -> LoadedModel:
        if before is None:
            return self._made(wanted)
        pipe = before.mixer.pipe
        before.mixer.unload_lora_weights()
        self._changed()  # no adapter is loaded any more
        place = pipe.device
        makes_room = before.facts.options.offload == "none" and place.type != "cpu"
        if makes_room:
            pipe.to("cpu")
        try:
            return self._made(wanted)
        except BaseException:
            if makes_room:
                pipe.to(place)
            raise

    def _made(self, options: ModelOptions) -> LoadedModel:
        pipe = load_pipeline(options)
        mixer, defaults = LoraMixer(pipe), own_defaults(options.model)
        maker = PictureMaker(mixer, defaults=defaults)
        grid_maker = PictureMaker(mixer, batch_size=self._grid_batch, defaults=defaults)
        scheduler = getattr(pipe, "scheduler", None)
        samplers = {} if scheduler is None else fitting_samplers(scheduler)
        facts = replace(
            _facts(options, pipe),
            samplers=samplers,
            emphasis_problem=maker.emphasis_problem,
            scheduler="" if scheduler is None else type(scheduler).__name__,
        )
        return LoadedModel(facts, mixer, maker, grid_maker)


def key_of(model: str) -> str:
    """Return what browsers call a model."""
    return hashlib.sha256(model.encode("utf-8", "replace")).hexdigest()[:16]


def _facts(options: ModelOptions, pipe: Any) -> ModelFacts:
    guided = options.ip_adapter is not None
    return ModelFacts(options, base_family(pipe), _own_size(pipe), _layout(pipe), guided=guided)


def _part(pipe: Any, name: str) -> Any:
    part = getattr(pipe, "components", {}).get(name)
    return part if part is not None else getattr(pipe, name, None)


def _own_size(pipe: Any) -> tuple[int, int]:
    denoiser = _part(pipe, "unet")
    config = getattr(denoiser if denoiser is not None else _part(pipe, "transformer"), "config", None)
    side = getattr(config, "sample_size", None)
    scale = getattr(pipe, "vae_scale_factor", _USUAL_SCALE)
    return (side * scale, side * scale) if isinstance(side, int) else (_USUAL_SIDE, _USUAL_SIDE)


def _layout(pipe: Any) -> BlockLayout | None:
    parts = ((part, _part(pipe, part)) for part in ("unet", "transformer", "prior"))
    denoiser = next(((part, root) for part, root in parts if root is not None), None)
    return None if denoiser is None else block_layouts(dict([denoiser]))[denoiser[0]]
