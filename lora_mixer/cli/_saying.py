"""What commands give back: a text for people, or one JSON object for programs (``--json``)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import typer

from lora_mixer.cli._terminal import console, plain
from lora_mixer.errors import LoraMixerError
from lora_mixer.problem import Surface

if TYPE_CHECKING:
    from collections.abc import Mapping


def say(text: object, facts: Mapping[str, Any], *, as_json: bool) -> None:
    """Write a command's result to standard output."""
    if as_json:
        typer.echo(json.dumps(facts, default=str))
    else:
        console().print(plain(text), soft_wrap=True)


def facts_of_error(error: Exception) -> dict[str, Any]:
    """
    Return an error as values; one of others has its words alone.

    Example:
        >>> from lora_mixer.errors import MixError
        >>> facts_of_error(MixError("no"))["error"]["type"]
        'MixError'
    """
    facts: Mapping[str, Any] = {"message": str(error)}
    if isinstance(error, LoraMixerError):
        facts = {"message": error.text_on(Surface.COMMAND), **error.facts()}
    return {"error": {"type": type(error).__name__, **facts}}
