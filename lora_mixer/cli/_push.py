"""``lora-mixer push``: a mix, or a model with it in its weights, on the Hub, with a card."""

from __future__ import annotations

from enum import Enum
from pathlib import Path  # noqa: TC003 -- typer reads it at runtime
from typing import Annotated

import typer

from lora_mixer.cli._completing import pictures
from lora_mixer.cli._generate import mix_into
from lora_mixer.cli._lora_option import Loras, read_options
from lora_mixer.cli._options import AsJson, Strict, To  # noqa: TC001 -- typer reads them at runtime
from lora_mixer.cli._picture_options import model_options
from lora_mixer.cli._saying import say
from lora_mixer.pictures import ModelOptions  # noqa: TC001 -- typer reads it at runtime


class PushForm(str, Enum):
    """What a mix is written as."""

    ADAPTER = "adapter"
    MODEL = "model"


@model_options("model", "revision", "variant", "vae", "config", "dtype", "allow_pickle")
def push(
    repo_id: Annotated[
        str, typer.Argument(metavar="USER/NAME", help="The repository; it is made where it is not there.")
    ],
    *,
    options: ModelOptions,
    lora: Loras,
    form: Annotated[
        PushForm, typer.Option("--as", help="One adapter, or the model with the mix in its weights.")
    ] = PushForm.ADAPTER,
    rank: Annotated[
        int | None, typer.Option(min=1, help="Of an adapter: the rank to cut to. Default: exact.")
    ] = None,
    to: To = "diffusers",
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A picture for the card.", autocompletion=pictures)
    ] = None,
    title: Annotated[
        str | None, typer.Option(help="The card's heading. Default: the repository's name.")
    ] = None,
    licence: Annotated[
        str | None, typer.Option(help="The whole's. Default: that of all parts where they agree, else other.")
    ] = None,
    private: Annotated[
        bool | None, typer.Option("--private/--public", help="Default: the account's own way.")
    ] = None,
    strict: Strict = False,
    as_json: AsJson = False,
) -> None:
    """Put a mix on the Hub with a card that names its parts, weights, licences and picture; the token is huggingface_hub's own."""
    read = read_options(lora)
    from lora_mixer.pictures import load_pipeline
    from lora_mixer.writing import push_to_hub

    mixer = mix_into(
        load_pipeline(options, device="cpu"),
        read,
        strict=strict,
        allow_pickle=options.allow_pickle,
        quiet=as_json,
    )
    address = push_to_hub(
        mixer, repo_id, form=form.value, base=options.title, title=title, licence=licence, picture=picture, rank=rank,
        format=to, private=private,
    )  # fmt: skip
    say(address, {"address": address, "repository": repo_id, "mix": mixer.mix.to_text()}, as_json=as_json)
