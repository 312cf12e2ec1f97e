"""An option for each field of a picture: name, limits and help from the one table of fields."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lora_mixer.pictures import PICTURE_FIELDS

if TYPE_CHECKING:
    from collections.abc import Callable

    from lora_mixer.pictures import PictureField

_TYPES: dict[str, type] = {"text": str, "whole": int, "number": float}
# What a command line says beside the field's own meaning.
_MORE = {
    "prompt": "<lora:NAME:0.7> in it sets the weight of an adapter given with --lora; NAME is its file's name "
    "without the ending.",
    "negative_prompt": "<lora:NAME:0.7> in it changes the weight in the half without the prompt only.",
    "seed": "That of the first picture; the next have the next. Default: any.",
}
SAID = "said"
"""The argument in which a command gets what was said, by field."""


def picture_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command an option for each field; it gets those that were used as the dict ``said``."""
    own = inspect.signature(command, eval_str=True)
    added = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if about.default == "" and name == "prompt" else None,
            annotation=_annotation(about),
        )
        for name, about in PICTURE_FIELDS.items()
    ]
    first = [parameter for name, parameter in own.parameters.items() if name != SAID]

    @functools.wraps(command)
    def wrapped(**given: Any) -> None:
        values = {name: given.pop(name) for name in PICTURE_FIELDS}
        command(**given, said={name: value for name, value in values.items() if value is not None})

    wrapped.__signature__ = own.replace(parameters=[*first, *added])  # type: ignore[attr-defined]
    wrapped.__annotations__ = {parameter.name: parameter.annotation for parameter in (*first, *added)}
    return wrapped


def _annotation(about: PictureField) -> Any:
    limits: Any = {} if about.kind == "text" else {"min": about.low, "max": about.high}
    help_text = " ".join(filter(None, (about.help, _MORE.get(about.name, _default(about)))))
    kind: Any = _TYPES[about.kind] if about.name == "prompt" else _TYPES[about.kind] | None
    option = typer.Option(option_of(about.name), help=help_text, **limits)
    return Annotated[kind, option]


def option_of(name: str) -> str:
    """
    Return how a field is called on the command line.

    Example:
        >>> option_of("guidance_scale")
        '--guidance-scale'
    """
    return f"--{name.replace('_', '-')}"


def _default(about: PictureField) -> str:
    return "Default: the pipeline's own." if about.default is None else ""
