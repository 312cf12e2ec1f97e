"""Options that come from tables: one for each field of a picture, one for each way to load a model."""

from __future__ import annotations

import inspect
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lora_mixer.cli import _completing
from lora_mixer.cli._options import with_options
from lora_mixer.errors import PictureError
from lora_mixer.pictures import MODEL_FIELDS, PICTURE_FIELDS, ModelOptions
from lora_mixer.problem import Surface

if TYPE_CHECKING:
    from collections.abc import Callable

    from lora_mixer.cli._options import Command
    from lora_mixer.pictures import PictureField

_TYPES: dict[str, type] = {"text": str, "whole": int, "number": float}
_COMPLETING = {
    "model": _completing.models,
    "vae": _completing.models,
    "controlnet": _completing.models,
    "sampler": _completing.samplers,
    "schedule": _completing.schedules,
    "image": _completing.pictures,
    "mask_image": _completing.pictures,
    "control_image": _completing.pictures,
}
# What a command line says beside the field's own meaning.
_MORE = {
    "prompt": "<lora:NAME:0.7> in it sets the weight of an adapter given with --lora; NAME is its file's name "
    "without the ending.",
    "negative_prompt": "<lora:NAME:0.7> in it changes the weight in the half without the prompt only.",
    "seed": "That of the first picture; the next have the next. Default: any.",
}


def picture_options(command: Command) -> Command:
    """Give a command an option for each field of a picture; it gets those that were used as the dict ``said``."""
    required = {"prompt"}
    added = {name: _of_picture(about, required=name in required) for name, about in PICTURE_FIELDS.items()}
    return with_options(
        command, "said", added, lambda values: {k: v for k, v in values.items() if v is not None}
    )


def model_options(*names: str, default: str | None = None) -> Callable[[Command], Command]:
    """
    Give a command the options by which a model is chosen and loaded; it gets them as ``options``, a ``ModelOptions``.

    Args:
        names: The options, by their fields; all where none is named.
        default: The model where none is named; None makes ``--model`` required.
    """

    def decorate(command: Command) -> Command:
        added = {name: _of_model(name, default) for name in names or MODEL_FIELDS}
        return with_options(command, "options", added, _read_model)

    return decorate


def _parameter(name: str, kind: Any, default: Any, help_text: str, **limits: Any) -> inspect.Parameter:
    flag = option_of(name)
    if name in _COMPLETING:
        limits["autocompletion"] = _COMPLETING[name]
    option = typer.Option(flag, help=help_text, **limits)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option]
    )


def _of_picture(about: PictureField, *, required: bool) -> inspect.Parameter:
    limits: Any = {} if about.kind == "text" else {"min": about.low, "max": about.high}
    default = "Default: the pipeline's own." if about.default is None else ""
    help_text = " ".join(filter(None, (about.help, _MORE.get(about.name, default))))
    kind: Any = choice(about.name, about.choices) if about.choices else _TYPES[about.kind]
    if required:
        return _parameter(about.name, kind, inspect.Parameter.empty, help_text, **limits)
    return _parameter(about.name, kind | None, None, help_text, **limits)


def _of_model(name: str, model: str | None) -> inspect.Parameter:
    about = MODEL_FIELDS[name]
    default = about["default"]
    if name == "model":
        return _parameter(name, str, inspect.Parameter.empty if model is None else model, about["help"])
    if isinstance(default, bool):
        return _parameter(name, bool, default, about["help"])
    kind: Any = choice(name, about["choices"]) if about["choices"] else str
    if default is None:
        return _parameter(name, kind | None, None, about["help"])
    return _parameter(name, kind, kind(default), about["help"])


def _read_model(values: dict[str, Any]) -> ModelOptions:
    try:
        return ModelOptions(**values)
    except PictureError as error:
        raise typer.BadParameter(error.text_on(Surface.COMMAND)) from error


def choice(name: str, choices: tuple[str, ...]) -> Any:
    """
    Return a type of which the values are some texts, as typer wants them.

    Example:
        >>> choice("dtype", ("auto", "float16"))("float16").value
        'float16'
    """
    return Enum(name, {each: each for each in choices}, type=str)


def option_of(name: str) -> str:
    """
    Return how a field is called on the command line.

    Example:
        >>> option_of("guidance_scale")
        '--guidance-scale'
    """
    return f"--{name.replace('_', '-')}"
