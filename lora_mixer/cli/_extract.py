"""``lora-mixer extract``: an adapter out of a base and a tuned model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lora_mixer.cli._convert import Format, SaveType, check_cut
from lora_mixer.cli._progress import bar
from lora_mixer.cli._terminal import console, plain, print_warning


def extract(
    base: Annotated[str, typer.Argument(metavar="BASE", help="The base, a diffusers folder.")],
    tuned: Annotated[str, typer.Argument(metavar="TUNED", help="The tuned model, a diffusers folder.")],
    *,
    out: Annotated[str, typer.Option("--out", "-o", help="A .safetensors file or a folder.")],
    rank: Annotated[int | None, typer.Option(min=1, help="The rank of every layer.")] = None,
    energy: Annotated[
        float | None,
        typer.Option(
            help="Instead: the lowest rank of each layer that keeps this share of its squared norm."
        ),
    ] = None,
    pairs_only: Annotated[
        bool,
        typer.Option(
            "--pairs-only",
            help="Leave out changes of biases and norms; without it norms need --to kohya, which has a place for them.",
        ),
    ] = False,
    to: Annotated[Format, typer.Option("--to", help="The format to write.")] = Format.DIFFUSERS,
    dtype: Annotated[SaveType, typer.Option(help="Type to store in.")] = SaveType.FLOAT32,
) -> None:
    """Write what training changed in the denoiser and the text encoders as an adapter, and what the rank lost of it."""
    from lora_mixer import __version__
    from lora_mixer.binding.components import base_of
    from lora_mixer.writing import Names, write
    from lora_mixer.writing.encode import as_dtype
    from lora_mixer.writing.extract import extract as work
    from lora_mixer.writing.formats import check_format
    from lora_mixer.writing.skeleton import of_folder

    check_cut(rank, energy)
    check_format(to.value, Path(out))
    before, after = of_folder(base), of_folder(tuned)
    found = work(
        before,
        after,
        rank=rank,
        energy=energy,
        pairs_only=pairs_only,
        watch=lambda jobs: bar(jobs, "extracting"),
    )
    report = write(
        Path(out),
        found.layers,
        Names(before.paths),
        format=to.value,
        dtype=as_dtype(dtype.value),
        metadata={
            "lora_mixer.version": __version__,
            "lora_mixer.extracted": f"{tuned} - {base}",
            "lora_mixer.rank": f"{rank}" if rank is not None else f"energy {energy:g}",
        },
        family=base_of(dict(before.components)).partition(" (")[0],
        title=Path(tuned).name,
    )
    console().print(plain(report), soft_wrap=True)
    if found.left_out:
        shown = ", ".join(found.left_out[:3])
        print_warning(f"{len(found.left_out)} biases and norms changed too and are left out: {shown}, ...")
