"""What commands give back: a text for people, or one JSON object for programs (``--json``)."""

from __future__ import annotations

import json
from dataclasses import fields
from enum import Enum
from typing import TYPE_CHECKING, Any

import typer

from lora_mixer.cli._terminal import console, plain
from lora_mixer.problem import Surface

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_mixer import Problem, SaveProblem
    from lora_mixer.errors import LoraMixerError


def say(text: object, facts: Mapping[str, Any], *, as_json: bool) -> None:
    """Write a command's result to standard output."""
    if as_json:
        typer.echo(json.dumps(facts, default=str))
    else:
        console().print(plain(text), soft_wrap=True)


def facts_of_error(error: LoraMixerError) -> dict[str, Any]:
    """
    Return an error as values.

    Example:
        >>> from lora_mixer.errors import MixError
        >>> facts_of_error(MixError("no"))["error"]["type"]
        'MixError'
    """
    facts = {
        "type": type(error).__name__,
        "message": error.text_on(Surface.COMMAND),
        "file": error.file,
        "key": error.key,
        "problems": [_facts_of(problem) for problem in error.problems],
    }
    return {"error": facts}


def _facts_of(problem: Problem | SaveProblem) -> dict[str, Any]:
    """Return a problem's fields as values, and its text."""
    values = {field.name: getattr(problem, field.name) for field in fields(problem)}
    plain = {name: value.value if isinstance(value, Enum) else value for name, value in values.items()}
    return {"text": str(problem), **plain}
