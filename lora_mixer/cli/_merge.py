"""``lora-mixer merge``: several adapters made one, by the weighted sum or another method."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lora_mixer.cli._convert import DTypeOption, Format, Model, Pickle
from lora_mixer.cli._lora_option import read_options
from lora_mixer.cli._progress import bar
from lora_mixer.cli._terminal import console, plain


def merge(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE[:WEIGHTS]...",
            help="Adapters with their weights: a.safetensors:0.7 b:te=0.2,unet=0.9.",
        ),
    ],
    *,
    out: Annotated[str, typer.Option("--out", "-o", help="A .safetensors file or a folder.")],
    method: Annotated[
        str,
        typer.Option(
            help="sum (exact), knots, orthogonal, b-lora (content, then style); and, at a --rank: ties, dare, dare-ties, "
            "della, breadcrumbs, magnitude."
        ),
    ] = "sum",
    rank: Annotated[int | None, typer.Option(min=1, help="Default: the sum of the ranks, exactly.")] = None,
    density: Annotated[float, typer.Option(help="Share of the entries that sparse methods keep.")] = 0.5,
    seed: Annotated[int, typer.Option(help="Of the draws of dare and della.")] = 0,
    to: Annotated[Format, typer.Option("--to", help="The format to write.")] = Format.DIFFUSERS,
    dtype: DTypeOption = None,
    model: Model = None,
    allow_pickle: Pickle = False,
) -> None:
    """Make one adapter of several, without any pipeline; its header says what was mixed at which weights."""
    from lora_mixer.merging import MergeMethod
    from lora_mixer.mixes import Mix
    from lora_mixer.writing import jobs
    from lora_mixer.writing.encode import as_dtype
    from lora_mixer.writing.files import open_files

    chosen = MergeMethod(method, density=density, seed=seed)
    options = read_options(sources)
    files = open_files(
        [option.source for option in options],
        [option.name for option in options],
        model=model,
        allow_pickle=allow_pickle,
    )
    report = jobs.merge(
        files,
        Mix.of({option.name: option.weights for option in options}),
        Path(out),
        format=to.value,
        method=chosen,
        rank=rank,
        dtype=as_dtype(dtype and dtype.value),
        watch=lambda places: bar(places, "merging"),
    )
    console().print(plain(report), soft_wrap=True)
