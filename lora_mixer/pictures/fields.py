"""The fields of a picture: limits, names elsewhere and meaning, once for all that reads or writes them."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from lora_mixer.errors import PictureError
from lora_mixer.parsing.values import as_float, as_int, as_text, is_number
from lora_mixer.pictures.samplers import read_sampler
from lora_mixer.problem import Problem
from lora_mixer.wording import quoted, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Kind = Literal["text", "whole", "number"]
_KEY = "picture_field"
MAX_SEED = 2**63 - 1
"""The largest seed that torch's generators take."""
MAX_STEPS = 10_000
MAX_SIDE = 16_384
MAX_TEXT = 100_000
MAX_NAME = 200
MAX_SKIP = 11
MAX_PATH = 4096


@dataclass(frozen=True)
class PictureField:
    """
    One field of a picture, for everything that reads or writes it: requests, plans, digests, metadata, commands, pages.

    Attributes:
        help: What it means, in one sentence.
        kind: ``text``, ``whole`` (numbers) or ``number``.
        low: The least number.
        high: The largest number, or the most characters.
        argument: How diffusers' pipelines call it; None where it is not an argument of theirs.
        apart: Whether pictures of one pipeline call may differ in it.
        choices: The texts that it may be; any where there are none.
        elsewhere: Within what whole numbers of other programs' pictures are kept when they are read.
        infotext: How AUTOMATIC1111 calls it in a picture's text; None where it has no name there.
        infotext_plus: What is added to it there.
        is_file: Whether it is the path of a file.
        check: Returns what else is wrong with a value, or None.
        label: What stands at it on a page.
        name: Its name in a request.
        default: Its value where nothing is said; None is the pipeline's own.

    Example:
        >>> from lora_mixer.pictures import PICTURE_FIELDS
        >>> PICTURE_FIELDS["steps"].argument, PICTURE_FIELDS["steps"].low
        ('num_inference_steps', 1)
    """

    help: str
    kind: Kind
    low: float | None = None
    high: float | None = None
    argument: str | None = None
    apart: bool = False
    choices: tuple[str, ...] = ()
    elsewhere: tuple[int, int] = (0, 1 << 20)
    infotext: str | None = None
    infotext_plus: int = 0
    is_file: bool = False
    check: Callable[[Any], str | None] | None = None
    label: str = ""
    name: str = ""
    default: Any = None

    def problem(self, value: object) -> Problem | None:
        """
        Return why a value cannot be, or None where it can.

        Args:
            value: What is given for it.

        Example:
            >>> print(PictureField("Steps.", "whole", 1, 100, name="steps").problem(0))
            steps: expected a whole number from 1 to 100, got 0
        """
        text = self._odd(value)
        return None if text is None else Problem(self.name, text)

    def to_infotext(self, value: Any) -> Any:
        """
        Return a value as AUTOMATIC1111 counts it.

        Args:
            value: A value of the field, or None.

        Example:
            >>> PictureField("Layers.", "whole", infotext="Clip skip", infotext_plus=1).to_infotext(1)
            2
        """
        return value + self.infotext_plus if value is not None and self.infotext_plus else value

    def of_infotext(self, text: object) -> Any:
        """
        Return what AUTOMATIC1111's text means here, or None where it means nothing.

        Args:
            text: What stands there; anything.

        Example:
            >>> PictureField("Layers.", "whole", infotext="Clip skip", infotext_plus=1).of_infotext("2")
            1
        """
        if self.kind == "text":
            return as_text(text)
        if self.kind == "number":
            return as_float(text)
        low, high = self.elsewhere
        number = as_int(text, low + self.infotext_plus, high + self.infotext_plus)
        return None if number is None else number - self.infotext_plus

    def _odd(self, value: object) -> str | None:
        if value is None and self.default is None:
            return None
        if self.kind == "text":
            return self._of_text(value)
        number = isinstance(value, int) if self.kind == "whole" else is_number(value)
        if number and not isinstance(value, bool) and self._within(value):
            return None
        what = "a whole number" if self.kind == "whole" else "a finite number"
        return f"expected {what}{self._limits()}, got {shown(value)}"

    def _of_text(self, value: object) -> str | None:
        if not isinstance(value, str):
            return f"expected text, got {shown(value)}"
        if self.choices and value not in self.choices:
            return f"expected one of {', '.join(self.choices)}, got {quoted(value)}"
        if self.high is not None and len(value) > self.high:
            return f"expected at most {self.high:g} characters, got {len(value)}"
        return None if self.check is None else self.check(value)

    def _within(self, value: Any) -> bool:
        low = -math.inf if self.low is None else self.low
        high = math.inf if self.high is None else self.high
        return bool(low <= value <= high)

    def _limits(self) -> str:
        low, high = (None if limit is None else str(limit) for limit in (self.low, self.high))
        if low is not None and high is not None:
            return f" from {low} to {high}"
        return f" of at least {low}" if low is not None else ""


def _said(
    meaning: str, kind: Kind, low: float | None = None, high: float | None = None, **more: Any
) -> dict[str, Any]:
    """Return the metadata of a dataclass's field."""
    return {_KEY: PictureField(meaning, kind, low, high, **more)}


@dataclass(frozen=True)
class PictureFields:
    """
    What requests and recalled settings have in common: the one place where a field of a picture stands.

    A new field is one more attribute here, given by name; limits, names elsewhere and meaning go with it.

    Example:
        >>> from lora_mixer.pictures import PICTURE_FIELDS
        >>> sorted(PICTURE_FIELDS)[:3], PICTURE_FIELDS["steps"].low
        (['clip_skip', 'control_image', 'controlnet_conditioning_scale'], 1)
    """

    prompt: str = field(
        default="",
        metadata=_said("What the picture shall show.", "text", high=MAX_TEXT, argument="prompt", apart=True),
    )
    negative_prompt: str = field(
        default="",
        metadata=_said(
            "What it shall not show.", "text", high=MAX_TEXT, argument="negative_prompt", apart=True
        ),
    )
    seed: int | None = field(
        default=None,
        metadata=_said(
            "Its noise is drawn on the CPU from this alone.", "whole", 0, MAX_SEED, apart=True, infotext="Seed",
            elsewhere=(-(1 << 64), 1 << 64),
        ),
    )  # fmt: skip
    steps: int | None = field(
        default=None,
        metadata=_said(
            "Denoising steps.", "whole", 1, MAX_STEPS, argument="num_inference_steps", infotext="Steps"
        ),
    )
    guidance_scale: float | None = field(
        default=None,
        metadata=_said(
            "How strongly the prompt is followed.", "number", argument="guidance_scale", infotext="CFG scale",
            label="Guidance",
        ),
    )  # fmt: skip
    width: int | None = field(
        default=None,
        metadata=_said("In pixels.", "whole", 8, MAX_SIDE, argument="width", elsewhere=(1, 1 << 20)),
    )
    height: int | None = field(
        default=None,
        metadata=_said("In pixels.", "whole", 8, MAX_SIDE, argument="height", elsewhere=(1, 1 << 20)),
    )
    sampler: str | None = field(
        default=None,
        kw_only=True,
        metadata=_said(
            "The sampler: DPM++ 2M Karras, Euler a, LCM, ... or a scheduler class of diffusers (docs/samplers.md).",
            "text", high=MAX_NAME, infotext="Sampler", check=lambda name: _refused(name, None),
        ),
    )  # fmt: skip
    schedule: str | None = field(
        default=None,
        kw_only=True,
        metadata=_said(
            "How its steps are spread: karras, exponential, beta, ays, trailing, zero_snr, v_prediction, ...",
            "text", high=MAX_NAME, infotext="Schedule type", check=lambda words: _refused(None, words),
        ),
    )  # fmt: skip
    clip_skip: int | None = field(
        default=None,
        kw_only=True,
        metadata=_said(
            "Layers of the text encoder to leave out at its end, as diffusers counts: 1 is elsewhere's clip skip 2.",
            "whole", 0, MAX_SKIP, argument="clip_skip", infotext="Clip skip", infotext_plus=1,
        ),
    )  # fmt: skip
    emphasis: str | None = field(
        default=None,
        kw_only=True,
        metadata=_said(
            "How prompts are written: a1111 for (word:1.2), [word] and BREAK, compel for its own grammar, none for plain "
            "text, auto for a1111 where there are marks of it or more than 75 tokens.",
            "text", choices=("auto", "a1111", "compel", "none"),
        ),
    )  # fmt: skip
    image: str | None = field(
        default=None,
        kw_only=True,
        metadata=_said(
            "A picture to start from (img2img): a file.", "text", high=MAX_PATH, apart=True, is_file=True
        ),
    )
    mask_image: str | None = field(
        default=None,
        kw_only=True,
        metadata=_said(
            "What of it is made anew (inpainting): a file of its size, white there.", "text", high=MAX_PATH, apart=True,
            is_file=True,
        ),
    )  # fmt: skip
    strength: float | None = field(
        default=None,
        kw_only=True,
        metadata=_said("How much of it is made anew, from 0 to 1.", "number", 0, 1, argument="strength"),
    )
    control_image: str | None = field(
        default=None,
        kw_only=True,
        metadata=_said(
            "What the model's ControlNet follows (edges, depth, a pose): a file.", "text", high=MAX_PATH, apart=True,
            is_file=True,
        ),
    )  # fmt: skip
    controlnet_conditioning_scale: float | None = field(
        default=None,
        kw_only=True,
        metadata=_said(
            "How closely it is followed.", "number", 0, 10, argument="controlnet_conditioning_scale"
        ),
    )
    ip_adapter_image: str | None = field(
        default=None,
        kw_only=True,
        metadata=_said(
            "What the model's IP-Adapter shows it (a style, a face): a file.",
            "text",
            high=MAX_PATH,
            is_file=True,
        ),
    )
    ip_adapter_scale: float | None = field(
        default=None,
        kw_only=True,
        metadata=_said("How strongly it is followed (1 where it is not said).", "number", 0, 10),
    )
    second_pass: float | None = field(
        default=None,
        kw_only=True,
        metadata=_said("A second pass, larger by this factor, over the finished picture.", "number", 1, 4),
    )
    second_pass_strength: float | None = field(
        default=None,
        kw_only=True,
        metadata=_said(
            "How much the second pass makes anew, from 0 to 1 (0.5 where it is not said).", "number", 0, 1
        ),
    )


def _refused(sampler: str | None, schedule: str | None) -> str | None:
    try:
        read_sampler(sampler, schedule)
    except PictureError as error:
        return "; ".join(problem.text for problem in error.problems)
    return None


def fields_of(request: type[PictureFields]) -> Mapping[str, PictureField]:
    """Return the fields by name in their order, with the defaults of a class that stands on them."""
    defaults = {each.name: each.default for each in dataclasses.fields(request)}
    fields = {}
    for each in dataclasses.fields(PictureFields):
        about: PictureField = each.metadata[_KEY]
        default = "" if defaults[each.name] is dataclasses.MISSING else defaults[each.name]
        label = about.label or each.name.replace("_", " ").capitalize()
        fields[each.name] = dataclasses.replace(about, name=each.name, default=default, label=label)
    return fields
