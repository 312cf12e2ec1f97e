"""What a picture is asked to be, and what came of it: plain values, no model in sight."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from lora_mixer.errors import PictureError
from lora_mixer.pictures.fields import PictureFields, fields_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from PIL.Image import Image

    from lora_mixer.mixes import Mix
    from lora_mixer.pictures.fields import PictureField


def _no_mix() -> Mix:
    from lora_mixer.mixes import Mix  # what a picture's fields are is asked by commands that mix nothing

    return Mix()


@dataclass(frozen=True)
class PictureRequest(PictureFields):
    """
    One picture, said in full: equal requests give equal pictures on one machine.

    What each field means, its limits and how diffusers calls it stand in ``PICTURE_FIELDS``.
    None is the maker's or the pipeline's own default.

    Attributes:
        prompt: What it shall show.
        negative_prompt: What it shall not show.
        seed: Its noise is drawn on the CPU from this seed alone, whatever batch it is made in.
        steps: Denoising steps.
        guidance_scale: How strongly the prompt is followed.
        width: Pixels.
        height: Pixels.
        sampler: By the name that people use, or diffusers' class.
        schedule: Words such as ``karras`` or ``trailing, zero_snr``.
        clip_skip: Layers of the text encoder to leave out at its end, as diffusers counts.
        emphasis: How prompts are written: ``auto`` (the default), ``a1111``, ``compel`` or ``none``.
        image: The path of a picture to start from.
        mask_image: The path of a mask of its size, white where it is made anew.
        strength: How much of it is made anew.
        control_image: The path of what the model's ControlNet follows.
        controlnet_conditioning_scale: How closely it is followed.
        ip_adapter_image: The path of what the model's IP-Adapter shows it.
        ip_adapter_scale: How strongly it is followed.
        second_pass: By how much a second pass over the finished picture is larger.
        second_pass_strength: How much it makes anew.
        mix: What adapters do, in any form that ``Mix.of`` reads.
        negative_mix: What they do in the half of guidance without the prompt; None is the same.

    Raises:
        PictureError: With everything that is wrong.
        MixError: When a mix makes no sense.

    Example:
        >>> request = PictureRequest("a castle", seed=7, steps=20, mix={"ink": 0.8})
        >>> request.mix.to_text()
        'ink:0.8'
    """

    prompt: str
    seed: int = 0
    mix: Mix = field(default_factory=_no_mix)
    negative_mix: Mix | None = None

    def __post_init__(self) -> None:
        """Check the values and read the mixes."""
        from lora_mixer.mixes import Mix

        problems = [
            problem
            for name, about in PICTURE_FIELDS.items()
            if (problem := about.problem(getattr(self, name))) is not None
        ]
        if problems:
            raise PictureError(problems=problems)
        mix = Mix.of(self.mix)
        object.__setattr__(self, "mix", mix)
        if self.negative_mix is not None:
            negative = Mix.of(self.negative_mix)
            object.__setattr__(self, "negative_mix", None if negative == mix else negative)

    def with_tags(self, known: Iterable[str]) -> PictureRequest:
        """
        Move ``<lora:NAME:WEIGHT>`` tags from the prompts into the mixes; a tag wins over the mix's own entry.

        Tags in the negative prompt change the weights in the half of guidance without the prompt only.

        Args:
            known: The names that there are.

        Returns:
            The same picture with prompts free of tags.

        Raises:
            MixError: When a tag names an unknown adapter or makes no sense.

        Example:
            >>> request = PictureRequest("an owl <lora:ink:0.5>", mix="neon:1").with_tags(["ink", "neon"])
            >>> request.prompt, request.mix.to_text()
            ('an owl', 'neon:1, ink:0.5')
            >>> PictureRequest("an owl", "rain <lora:ink:1>").with_tags(["ink"]).negative_mix.to_text()
            'ink:1'
        """
        from lora_mixer.mixes import parse_prompt

        names = list(known)
        prompt, tagged = parse_prompt(self.prompt, names)
        unwanted, less = parse_prompt(self.negative_prompt, names)
        if prompt == self.prompt and unwanted == self.negative_prompt:
            return self
        mix = _with(self.mix, tagged)
        negative = self.negative_mix
        if negative is not None or less.names:
            negative = _with(mix if negative is None else _with(negative, tagged), less)
        return replace(self, prompt=prompt, negative_prompt=unwanted, mix=mix, negative_mix=negative)

    @property
    def call_shape(self) -> tuple[object, ...]:
        """
        What pictures of one pipeline call have in common.

        Example:
            >>> PictureRequest("a", seed=1).call_shape == PictureRequest("b", seed=2).call_shape
            True
        """
        fields = PICTURE_FIELDS.items()
        common: list[object] = [getattr(self, name) for name, about in fields if not about.apart]
        # of files, whether there is one: their pictures share a call where they have one size
        common += [getattr(self, name) is not None for name, about in fields if about.is_file]
        # an empty negative prompt is not the same as none: some pipelines use zeros then
        return (*common, bool(self.negative_prompt))

    @property
    def mix_key(self) -> str:
        """
        Equal for pictures that are made with equal weights.

        Example:
            >>> PictureRequest("a", mix="x:1").mix_key == PictureRequest("b", mix={"x": 1.0}).mix_key
            True
        """
        if self.negative_mix is None:
            return self.mix.fingerprint
        return f"{self.mix.fingerprint} {self.negative_mix.fingerprint}"

    @property
    def adapters(self) -> tuple[str, ...]:
        """
        The adapters that its mixes name.

        Example:
            >>> PictureRequest("a", mix="x:1", negative_mix="x:1, y:2").adapters
            ('x', 'y')
        """
        more = () if self.negative_mix is None else self.negative_mix.names
        return tuple(dict.fromkeys((*self.mix.names, *more)))

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

    def digest(self) -> str:
        """
        Return 64 hexadecimal digits that are equal for equal requests; what is left open is left out.

        Example:
            >>> PictureRequest("a", mix="x:1").digest() == PictureRequest("a", mix={"x": 1.0}).digest()
            True
        """
        import hashlib
        import json

        values = {
            name: float(value) if about.kind == "number" else value
            for name, about in PICTURE_FIELDS.items()
            if (value := getattr(self, name)) != about.default
        }
        text = json.dumps({**values, "mix": self.mix_key}, sort_keys=True)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _with(mix: Mix, tagged: Mix) -> Mix:
    return type(mix)({**mix.adapters, **tagged.adapters}, mix.method) if tagged.names else mix


PICTURE_FIELDS: Mapping[str, PictureField] = fields_of(PictureRequest)
"""The fields of a request but for its mixes: limits, diffusers' names, help; whatever reads or writes them looks here."""


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

    Example:
        >>> from PIL import Image
        >>> Picture(0, PictureRequest("a cat", seed=7), Image.new("RGB", (8, 8)), seconds=1.5).request.seed
        7
    """

    index: int
    request: PictureRequest
    image: Image
    seconds: float
    batch: int = 1
