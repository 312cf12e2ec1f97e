"""``lora-mixer extract``: an adapter out of a base and a tuned model."""

from __future__ import annotations

from typing import Annotated

import typer

from lora_mixer.cli._options import (
    ConvRank,
    Energy,
    Format,
    Rank,
    SaveType,
    SumType,
    SvRatio,
)
from lora_mixer.cli._progress import bar
from lora_mixer.cli._terminal import console, plain, print_warning


def extract(
    base: Annotated[str, typer.Argument(metavar="BASE", help="The base, a diffusers folder.")],
    tuned: Annotated[str, typer.Argument(metavar="TUNED", help="The tuned model, a diffusers folder.")],
    *,
    out: Annotated[str, typer.Option("--out", "-o", help="A .safetensors file or a folder.")],
    rank: Rank = None,
    conv_rank: ConvRank = None,
    energy: Energy = None,
    sv_ratio: SvRatio = None,
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
        rank=rank,
        conv_rank=conv_rank,
        energy=energy,
        sv_ratio=sv_ratio,
        pairs_only=pairs_only,
        format=to and to.value,
        dtype=dtype.value,
        progress=lambda jobs: bar(jobs, "extracting"),
    )
    console().print(plain(report), soft_wrap=True)
    if report.left_out:
        print_warning(f"{len(report.left_out)} biases and norms changed too and are left out.")
