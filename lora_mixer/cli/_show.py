"""``lora-mixer show``: how a picture was made."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from lora_mixer import picture_metadata
from lora_mixer.cli._completing import pictures
from lora_mixer.cli._terminal import console, plain
from lora_mixer.pictures import PICTURE_FIELDS


def show(
    picture: Annotated[
        str,
        typer.Argument(
            metavar="PICTURE",
            help="A PNG, JPEG or WebP file of any program that is read.",
            autocompletion=pictures,
        ),
    ],
    *,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Print the settings in a picture: prompt, sampler, adapters with their weights and hashes, and what was not understood."""
    from lora_mixer.picture_metadata import recalled_request

    settings = picture_metadata.read_picture(picture)
    facts = _facts(settings)
    facts["unused"] = [str(problem) for problem in recalled_request(settings).unused]
    if as_json:
        typer.echo(json.dumps(facts))
        return
    out = console()
    for key, value in facts.items():
        if value in (None, "", [], {}):
            continue
        if isinstance(value, list):
            out.print(f"{key}:")
            for each in value:
                out.print(plain(f"  {_line(each)}"), soft_wrap=True)
        else:
            out.print(plain(f"{key}: {value}"), soft_wrap=True)


def _facts(settings: picture_metadata.PictureSettings) -> dict[str, Any]:
    facts: dict[str, Any] = {"program": settings.dialect, "version": settings.version}
    facts |= {name: getattr(settings, name) for name in PICTURE_FIELDS}
    facts |= {"model": settings.model, "model_hash": settings.model_hash}
    facts["mix"] = settings.mix.to_text() if settings.mix is not None else None
    facts["negative_mix"] = settings.negative_mix.to_text() if settings.negative_mix is not None else None
    facts["adapters"] = [
        {
            "name": each.name,
            "weight": each.weight,
            "text_weight": each.text_weight,
            "hashes": dict(each.hashes),
        }
        for each in settings.adapters
    ]
    facts["extra"] = dict(settings.extra)
    facts["notes"] = list(settings.notes)
    return facts


def _line(value: Any) -> str:
    if not isinstance(value, dict):
        return str(value)
    hashes = ", ".join(f"{kind} {digits}" for kind, digits in value["hashes"].items())
    text = "" if value["text_weight"] is None else f" (text encoders {value['text_weight']:g})"
    return f"{value['name']}: {value['weight']:g}{text}{f', {hashes}' if hashes else ''}"
