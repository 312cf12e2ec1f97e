"""What a picture is asked to be, and what came of it: plain values, no model in sight."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from lora_mixer.errors import PictureError
from lora_mixer.mixes import Mix, parse_prompt

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from PIL.Image import Image

MAX_SEED = 2**63 - 1
"""The largest seed that torch's generators take."""
MAX_STEPS = 10_000
MAX_SIDE = 16_384


@dataclass(frozen=True)
class PictureRequest:
    """
    One picture, said in full: equal requests give equal pictures on one machine.

    Attributes:
        prompt: What it shall show.
        negative_prompt: What it shall not show.
        seed: Its noise is drawn on the CPU from this seed alone, whatever batch it is made in.
        steps: Denoising steps; None is the maker's or the pipeline's own default, as for the next three.
        guidance_scale: How strongly the prompt is followed.
        width: Pixels.
        height: Pixels.
        mix: What adapters do, in any form that ``Mix.of`` reads.

    Raises:
        PictureError: With everything that is wrong.
        MixError: When the mix makes no sense.

    Example:
        >>> request = PictureRequest("a castle", seed=7, steps=20, mix={"ink": 0.8})
        >>> request.mix.to_text()
        'ink:0.8'
    """

    prompt: str
    negative_prompt: str = ""
    seed: int = 0
    steps: int | None = None
    guidance_scale: float | None = None
    width: int | None = None
    height: int | None = None
    mix: Mix = field(default_factory=Mix)

    def __post_init__(self) -> None:
        """Check the values and read the mix."""
        texts: list[tuple[str, object]] = [
            ("prompt", self.prompt),
            ("negative_prompt", self.negative_prompt),
        ]
        problems = [
            f"{name}: expected text, got {value!r}" for name, value in texts if not isinstance(value, str)
        ]
        whole: list[tuple[str, object, int, int]] = [
            ("seed", self.seed, 0, MAX_SEED),
            ("steps", self.steps, 1, MAX_STEPS),
            ("width", self.width, 8, MAX_SIDE),
            ("height", self.height, 8, MAX_SIDE),
        ]
        for name, value, low, high in whole:
            if value is None and name != "seed":
                continue
            if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
                problems.append(f"{name}: expected a whole number from {low} to {high}, got {value!r}")
        scale: object = self.guidance_scale
        if scale is not None and (
            isinstance(scale, bool) or not isinstance(scale, int | float) or not math.isfinite(scale)
        ):
            problems.append(f"guidance_scale: expected a finite number, got {scale!r}")
        if problems:
            raise PictureError("This picture cannot be asked for: " + "; ".join(problems) + ".")
        object.__setattr__(self, "mix", Mix.of(self.mix))

    def with_tags(self, known: Iterable[str]) -> PictureRequest:
        """
        Move ``<lora:NAME:WEIGHT>`` tags from the prompt into the mix; a tag wins over the mix's own entry.

        Args:
            known: The names that there are.

        Returns:
            The same picture with a prompt free of tags.

        Raises:
            MixError: When a tag names an unknown adapter or makes no sense.

        Example:
            >>> request = PictureRequest("an owl <lora:ink:0.5>", mix="neon:1").with_tags(["ink", "neon"])
            >>> request.prompt, request.mix.to_text()
            ('an owl', 'neon:1, ink:0.5')
        """
        prompt, tagged = parse_prompt(self.prompt, list(known))
        if not tagged.names:
            return self if prompt == self.prompt else replace(self, prompt=prompt)
        adapters = {**self.mix.adapters, **tagged.adapters}
        return replace(self, prompt=prompt, mix=Mix(adapters, self.mix.method))

    @property
    def call_shape(self) -> tuple[object, ...]:
        """
        What pictures of one pipeline call have in common.

        Example:
            >>> PictureRequest("a", seed=1).call_shape == PictureRequest("b", seed=2).call_shape
            True
        """
        # an empty negative prompt is not the same as none: some pipelines use zeros then
        return (self.steps, self.guidance_scale, self.width, self.height, bool(self.negative_prompt))

    def with_defaults(self, defaults: Mapping[str, Any]) -> PictureRequest:
        """
        Fill in what is left open.

        Args:
            defaults: Values by field: ``steps``, ``guidance_scale``, ``width``, ``height``.

        Returns:
            The same picture; what it says itself stays.

        Raises:
            PictureError: When a default makes no sense.

        Example:
            >>> PictureRequest("a cat", steps=5).with_defaults({"steps": 20, "guidance_scale": 3.0}).guidance_scale
            3.0
        """
        missing = {name: value for name, value in defaults.items() if getattr(self, name) is None}
        return replace(self, **missing) if missing else self


@dataclass(frozen=True)
class Picture:
    """
    A finished picture.

    Attributes:
        index: Where its request stood among those given.
        request: The request, with the defaults that were used filled in.
        image: The picture.
        seconds: What it took: its share of the batch's time.
        batch: How many pictures were made together with it.
    """

    index: int
    request: PictureRequest
    image: Image
    seconds: float
    batch: int = 1
