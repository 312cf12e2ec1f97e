"""``lora-mixer bench``: how fast mixes are on this machine, beside what the hardware allows."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from lora_mixer.cli._completing import adapters
from lora_mixer.cli._options import KeepBase
from lora_mixer.cli._picture_options import model_options
from lora_mixer.cli._terminal import console, plain
from lora_mixer.pictures import DEMO, ModelOptions


@model_options("model", "config", "dtype", "device", default=DEMO)
def bench(
    *,
    options: ModelOptions,
    lora: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE",
            autocompletion=adapters,
            help="A safetensors file, given once or several times. Default: four random ones over all linear layers.",
        ),
    ] = None,
    rank: Annotated[int, typer.Option(min=1, help="The rank of random adapters.")] = 16,
    steps: Annotated[int, typer.Option(min=0, help="Steps of the pictures that are made; 0 makes none.")] = 4,
    repeats: Annotated[int, typer.Option(min=1, help="How often each time is taken; medians are told.")] = 5,
    keep_base: Annotated[
        KeepBase, typer.Option(help="Where bases of changed weights are kept.")
    ] = KeepBase.DEVICE,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Measure loading, switching and restoring mixes, and a picture with them, each beside the limit of this machine."""
    from lora_mixer.pictures import PictureRequest, load_pipeline, own_defaults
    from lora_mixer.speed import measure_speed

    pipe = load_pipeline(options)
    report = measure_speed(
        pipe,
        lora or (),
        request=PictureRequest("a castle on a hill", steps=steps) if steps else None,
        defaults=own_defaults(options.model),
        rank=rank,
        repeats=repeats,
        keep_base=keep_base.value,
    )
    if as_json:
        typer.echo(json.dumps({"model": options.title, **report.to_json()}))
    else:
        console().print(plain(f"{options.title}: {report}"), soft_wrap=True)
