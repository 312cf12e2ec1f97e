"""``lora-mixer bake``: a base with a mix in its weights, as a diffusers folder that needs no adapter any more."""

from __future__ import annotations

from typing import Annotated

import typer

from lora_mixer.cli._generate import mix_into
from lora_mixer.cli._lora_option import Loras, read_options
from lora_mixer.cli._options import AsJson, Strict  # noqa: TC001 -- typer reads them at runtime
from lora_mixer.cli._picture_options import model_options
from lora_mixer.cli._saying import say
from lora_mixer.cli._terminal import console
from lora_mixer.pictures import ModelOptions  # noqa: TC001 -- typer reads it at runtime


@model_options("model", "revision", "variant", "vae", "config", "dtype", "allow_pickle")
def bake(
    *,
    options: ModelOptions,
    lora: Loras,
    out: Annotated[
        str, typer.Option("--out", "-o", metavar="FOLDER", help="A folder that is not there yet.")
    ],
    strict: Strict = False,
    as_json: AsJson = False,
) -> None:
    """Write a diffusers folder with the mix in its weights; lora_mixer.json in it says what is in there."""
    read = read_options(lora)
    from lora_mixer.pictures import load_pipeline
    from lora_mixer.writing import bake as write
    from lora_mixer.writing import free_folder

    free_folder(out)  # before the model is loaded
    pipe = load_pipeline(options, device="cpu")
    mixer = mix_into(pipe, read, strict=strict, allow_pickle=options.allow_pickle, quiet=as_json)
    with console(stderr=True).status("writing the model"):
        write(mixer, out, model=options.model)
    mix = mixer.mix.to_text()
    say(
        f"{out}: {options.model} with {mix}",
        {"folder": out, "model": options.model, "mix": mix},
        as_json=as_json,
    )
