"""From what a picture says of itself back to a request: what can be used is, and what cannot is said."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lora_mixer.errors import PictureError
from lora_mixer.families import family_named
from lora_mixer.mixes import Mix
from lora_mixer.picture_metadata.dialects import DIALECTS
from lora_mixer.pictures.request import PICTURE_FIELDS, PictureRequest
from lora_mixer.pictures.samplers import WITHOUT_SIGMAS, read_sampler
from lora_mixer.problem import Problem
from lora_mixer.wording import first_line, quoted

if TYPE_CHECKING:
    from lora_mixer.picture_metadata.settings import PictureSettings


@dataclass(frozen=True)
class Recalled:
    """
    A request out of a picture.

    Attributes:
        request: With everything that can be used; adapters are named as the picture names them.
        used: The fields that came from the picture.
        unused: What the picture says and the request does not: its field or key as the place, and why.

    Example:
        >>> Recalled(PictureRequest("a cat"), ("prompt",), ()).used
        ('prompt',)
    """

    request: PictureRequest
    used: tuple[str, ...]
    unused: tuple[Problem, ...]


def recalled_request(settings: PictureSettings, *, base: str = "") -> Recalled:
    """
    Make a request of a picture's settings.

    Args:
        settings: As ``read_picture`` gives them.
        base: The family of the model that it is for, where that is known.

    Returns:
        The request, and what was used of the settings and what was not.

    Example:
        >>> from lora_mixer import PictureSettings
        >>> found = recalled_request(PictureSettings("a castle", seed=-1, steps=20, sampler="DPM fast"))
        >>> found.request.steps, found.request.sampler, len(found.unused)
        (20, None, 2)
    """
    values: dict[str, Any] = {}
    unused: list[Problem] = []
    family, dialect = family_named(base), DIALECTS.get(settings.dialect)
    for name, about in PICTURE_FIELDS.items():
        value = getattr(settings, name)
        if value is None or value == about.default:
            continue
        problem = (
            Problem(name, f"{quoted(str(value))} is not in the picture; give it again")
            if about.is_file
            else about.problem(value)
        )
        if (
            problem is None
            and name == "clip_skip"
            and not (dialect is not None and dialect.clip_skip_is_told)
            and family is not None
            and family.skips_last_layer
        ):
            problem = Problem(name, f"on {base} the programs that write it do so by themselves")
        if problem is not None:
            unused.append(problem)
        else:
            values[name] = value
    if (problem := _uncarried(values)) is not None:
        unused.append(problem)
        del values["schedule"]
    mix = settings.mix
    if mix is None:
        mix = Mix({adapter.name: adapter.adapter_mix() for adapter in settings.adapters})
    request = PictureRequest(**{"prompt": "", **values}, mix=mix, negative_mix=settings.negative_mix)
    unused += [
        Problem(key, f"{quoted(text, 80)} has no counterpart")
        for key, text in settings.extra.items()
        if key not in _SAID
    ]
    if (
        dialect is not None
        and not dialect.brackets_weaken
        and {"[", "]"} & set(request.prompt + request.negative_prompt)
    ):
        unused.append(
            Problem(
                "emphasis",
                f"[ ] are plain text in {dialect.program}, here they weaken: write \\[ and \\] to have them so",
            )
        )
    return Recalled(request, tuple(values), tuple(unused))


def _uncarried(values: dict[str, Any]) -> Problem | None:
    """Say why a schedule cannot go with its sampler here, though it does in the program that wrote it."""
    sampler, schedule = values.get("sampler"), values.get("schedule")
    if sampler is None or schedule is None:
        return None
    try:
        choice = read_sampler(sampler, schedule)
    except PictureError as error:  # "DPM++ 2M Karras" and "exponential"
        return Problem("schedule", first_line(error))
    words = [word for word in choice.words if word in ("karras", "exponential", "beta")]
    if not words or choice.scheduler not in WITHOUT_SIGMAS:
        return None
    return Problem(
        "schedule", f"diffusers' {choice.scheduler} cannot carry {words[0]}; it is made with its own"
    )


_SAID = frozenset(
    (
        "Schedule",
        "Scheduler",
        "scheduler",
        "noise_schedule",
        "clip_skip",
        "clipstopatlayer",
        "App",
        "LoRA networks",
        "LoRA hashes",
    )
)
