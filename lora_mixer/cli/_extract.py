"""``lora-mixer extract``: an adapter out of a base and a tuned model."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from lora_mixer.cli._options import Format, Out, SaveType, SumType, cut_options
from lora_mixer.cli._progress import bar
from lora_mixer.cli._terminal import console, plain, print_warning


@cut_options
def extract(
    base: Annotated[str, typer.Argument(metavar="BASE", help="The base, a diffusers folder.")],
    tuned: Annotated[str, typer.Argument(metavar="TUNED", help="The tuned model, a diffusers folder.")],
    *,
    out: Out,
    cut: dict[str, Any],
    pairs_only: Annotated[
        bool, typer.Option("--pairs-only", help="Leave out changes of biases and norms, and name them.")
    ] = False,
    to: Annotated[
        Format | None,
        typer.Option(
            "--to",
            help="The format to write. Default: diffusers, or kohya where norms or biases changed that only this has a "
            "place for.",
        ),
    ] = None,
    dtype: SumType = SaveType.FLOAT32,
) -> None:
    """Write what training changed in the denoiser and the text encoders as an adapter, and what the rank lost of it."""
    from lora_mixer import writing

    report = writing.extract(
        base,
        tuned,
        out,
        **cut,
        pairs_only=pairs_only,
        format=to and to.value,
        dtype=dtype.value,
        progress=lambda jobs: bar(jobs, "extracting"),
    )
    console().print(plain(report), soft_wrap=True)
    if report.left_out:
        print_warning(f"{len(report.left_out)} biases and norms changed too and are left out.")
