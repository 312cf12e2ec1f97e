"""What a picture was made with, as a value that every dialect is read into and written from."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from lora_mixer.errors import PictureMetadataError
from lora_mixer.mixes import TE, AdapterMix, Mix
from lora_mixer.parsing.frozen import FrozenMap
from lora_mixer.parsing.values import clean_text, encodable, is_number
from lora_mixer.pictures import PICTURE_FIELDS, PictureFields
from lora_mixer.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from lora_mixer.pictures import PictureField, PictureRequest

HASH_KINDS = {8: "autov1", 10: "autov2", 12: "autov3", 64: "sha256"}
"""What a hash of so many digits most likely is; how it is matched does not depend on it."""


@dataclass(frozen=True)
class PictureAdapter:
    """
    One adapter as a picture names it.

    Attributes:
        name: Its name there: a file's name without ending, or what the writer's program called it.
        weight: Of the denoiser.
        text_weight: Of the text encoders; None where it is the same.
        hashes: Hexadecimal digits by kind, as written.
        spec: All that was said about it (schedule, blocks, mask), where that is more than the two weights.

    Example:
        >>> PictureAdapter("ink", 0.8, 0.2).adapter_mix().component_weight("text_encoder")
        0.2
        >>> PictureAdapter.of("ink", AdapterMix(0.8, {"te": 0.3})).weight
        0.8
    """

    name: str
    weight: float = 1.0
    text_weight: float | None = None
    hashes: Mapping[str, str] = field(default_factory=FrozenMap)
    spec: AdapterMix | None = None

    def __post_init__(self) -> None:
        """
        Check and freeze the values.

        Raises:
            PictureMetadataError: The name is empty, or a weight is not a finite number.
        """
        given: object = self.name
        name = encodable(given) if isinstance(given, str) else ""
        weights = [self.weight, *(() if self.text_weight is None else (self.text_weight,))]
        if not name.strip() or not all(is_number(weight) for weight in weights):
            raise PictureMetadataError(
                f"expected an adapter with a name and finite weights, got {self.name!r} with {weights!r}",
                adapter=name or None,
            )
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "weight", float(self.weight))
        object.__setattr__(self, "text_weight", None if self.text_weight is None else float(self.text_weight))
        object.__setattr__(self, "hashes", FrozenMap(self.hashes))

    @classmethod
    def of(cls, name: str, spec: AdapterMix, hashes: Mapping[str, str] | None = None) -> PictureAdapter:
        """
        Take an adapter out of a mix.

        Args:
            name: Its name.
            spec: What the mix says about it.
            hashes: Its hashes by kind.

        Returns:
            The adapter; ``spec`` is kept only where the two weights do not say it all.
        """
        weight, text = spec.component_weight("unet"), spec.component_weight("text_encoder")
        plain = cls(name, weight, None if text == weight else text, hashes or {})
        return plain if plain.adapter_mix().meaning() == spec.meaning() else replace(plain, spec=spec)

    @property
    def hash(self) -> str | None:
        """The first hash, or None."""
        return next(iter(self.hashes.values()), None)

    def adapter_mix(self) -> AdapterMix:
        """Return what it says as a part of a mix."""
        if self.spec is not None:
            return self.spec
        return AdapterMix(self.weight, {} if self.text_weight is None else {TE: self.text_weight})


@dataclass(frozen=True)
class PictureSettings(PictureFields):
    """
    What a picture was made with.

    Attributes:
        prompt: The prompt, without ``<lora:...>`` tags.
        negative_prompt: The negative prompt.
        seed: The seed.
        steps: The number of steps.
        guidance_scale: The guidance scale, "CFG scale" elsewhere.
        width: In pixels.
        height: In pixels.
        sampler: As the writer's program names it.
        model: The base model's name.
        model_hash: Its hash, as written.
        adapters: The adapters, in their order; made from the mix where only that is given.
        mix: The whole mix, where it is known (this package's own pictures); in any form that ``Mix.of`` reads.
        negative_mix: The same for the half of guidance without the prompt; None where it is no other.
        dialect: Which program's form it was read from.
        version: The writer's version.
        extra: What else was written, as text by key.
        notes: What could not be read, and why; not compared.

    Example:
        >>> settings = PictureSettings("a castle", seed=7, mix="ink:0.8,te=0.2")
        >>> settings.adapters[0].name, settings.adapters[0].text_weight
        ('ink', 0.2)
    """

    model: str | None = None
    model_hash: str | None = None
    adapters: tuple[PictureAdapter, ...] = ()
    mix: Mix | None = None
    negative_mix: Mix | None = None
    dialect: str = ""
    version: str | None = None
    extra: Mapping[str, str] = field(default_factory=FrozenMap)
    notes: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        """
        Check and freeze the values.

        Raises:
            PictureMetadataError: With everything that cannot be.
            MixError: The mix makes no sense.
        """
        problems: list[Problem] = []
        for name, about in PICTURE_FIELDS.items():
            self._set(name, _value(about, getattr(self, name), problems))
        self._set("dialect", _text("dialect", self.dialect, problems))
        for name in ("model", "model_hash", "version"):
            if getattr(self, name) is not None:
                self._set(name, _text(name, getattr(self, name), problems))
        if problems:
            raise PictureMetadataError(
                f"these settings cannot be those of a picture: {'; '.join(map(str, problems))}",
                problems=problems,
            )
        for name in ("mix", "negative_mix"):
            if getattr(self, name) is not None:
                self._set(name, Mix.of(getattr(self, name)))
        adapters = tuple(self.adapters)
        if self.mix is not None and not adapters:
            adapters = tuple(PictureAdapter.of(name, self.mix[name]) for name in self.mix)
            # those of the other half only: their hashes are to be known, too
            more = () if self.negative_mix is None else self.negative_mix.names
            adapters += tuple(PictureAdapter(name, 0.0) for name in more if name not in self.mix)
        self._set("adapters", adapters)
        self._set("extra", FrozenMap({clean_text(key): clean_text(text) for key, text in self.extra.items()}))
        self._set("notes", tuple(self.notes))

    @classmethod
    def of_request(cls, request: PictureRequest, **more: Any) -> PictureSettings:
        """
        Take what a request says.

        Args:
            request: The request of a finished picture, with the defaults that were used filled in.
            more: ``sampler``, ``model``, ``extra`` and the like.

        Returns:
            The settings.

        Example:
            >>> from lora_mixer import PictureRequest
            >>> PictureSettings.of_request(PictureRequest("a castle", seed=7), model="demo").seed
            7
        """
        values = {name: getattr(request, name) for name in PICTURE_FIELDS}
        for name, about in PICTURE_FIELDS.items():
            if about.is_file and values[name] is not None:  # its place is nobody else's business
                values[name] = re.split(r"[/\\\\]", values[name])[-1]
        return cls(**values, mix=request.mix, negative_mix=request.negative_mix, **more)

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def with_hashes(self, hashes: Mapping[str, Mapping[str, str]]) -> PictureSettings:
        """
        Return the same with the adapters' hashes added.

        Args:
            hashes: Hashes by kind, by adapter name, as ``mixer.adapters[name].hashes``.

        Example:
            >>> PictureSettings(mix="a").with_hashes({"a": {"autov3": "0123456789ab"}}).adapters[0].hash
            '0123456789ab'
        """
        adapters = tuple(
            replace(adapter, hashes={**adapter.hashes, **hashes[adapter.name]})
            if adapter.name in hashes
            else adapter
            for adapter in self.adapters
        )
        return replace(self, adapters=adapters)


def _value(about: PictureField, value: Any, problems: list[Problem]) -> Any:
    """Check a field of a stranger's picture, whose limits may be wider than those of requests."""
    if value is None:
        return None
    if about.kind == "text":
        return _text(about.name, value, problems)
    low, high = about.elsewhere
    if about.kind == "whole" and (
        isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high
    ):
        problems.append(Problem(about.name, f"expected a whole number from {low} to {high}, got {value!r}"))
    elif about.kind == "number" and not is_number(value):
        problems.append(Problem(about.name, f"expected a finite number, got {value!r}"))
    return value


def _text(name: str, value: object, problems: list[Problem]) -> str:
    if isinstance(value, str):
        return clean_text(value)
    problems.append(Problem(name, f"expected text, got {value!r}"))
    return ""
