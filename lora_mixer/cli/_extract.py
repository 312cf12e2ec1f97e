"""``lora-mixer extract``: an adapter out of a base and a tuned model."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from lora_mixer.cli._completing import formats, models
from lora_mixer.cli._options import AllowPickle, AsJson, Out, SaveType, SumType, cut_options
from lora_mixer.cli._progress import bar
from lora_mixer.cli._saying import say
from lora_mixer.cli._terminal import print_warning


@cut_options
def extract(
    base: Annotated[
        str,
        typer.Argument(
            metavar="BASE",
            help="The base: a checkpoint (.safetensors), a diffusers folder or a Hub repository.",
            autocompletion=models,
        ),
    ],
    tuned: Annotated[
        str, typer.Argument(metavar="TUNED", help="The tuned model, likewise.", autocompletion=models)
    ],
    *,
    out: Out,
    cut: dict[str, Any],
    pairs_only: Annotated[
        bool,
        typer.Option(
            "--pairs-only",
            help="Leave out changes of biases, norms and other single parameters, and name them.",
        ),
    ] = False,
    to: Annotated[
        str | None,
        typer.Option(
            "--to",
            metavar="FORMAT",
            autocompletion=formats,
            help="The format to write. Default: diffusers, or kohya where norms, biases or other parameters changed "
            "that only this has a place for.",
        ),
    ] = None,
    dtype: SumType = SaveType.FLOAT32,
    allow_pickle: AllowPickle = False,
    as_json: AsJson = False,
) -> None:
    """Write what training changed in the denoiser and the text encoders as an adapter, and what the rank lost of it."""
    from lora_mixer import writing

    report = writing.extract(
        base,
        tuned,
        out,
        **cut,
        pairs_only=pairs_only,
        format=to,
        dtype=dtype.value,
        allow_pickle=allow_pickle,
        progress=lambda jobs: bar(jobs, "extracting"),
    )
    say(report, report.to_dict(), as_json=as_json)
    if report.left_out:
        print_warning(
            f"{len(report.left_out)} biases, norms and other parameters changed too and are left out."
        )
