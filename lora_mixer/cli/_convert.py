"""``lora-mixer convert`` and ``resize``: one adapter in another format, or at another rank."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from lora_mixer.cli._progress import bar
from lora_mixer.cli._terminal import console, plain
from lora_mixer.errors import SaveError


class Format(str, Enum):
    """Formats that adapters are written in."""

    DIFFUSERS = "diffusers"
    KOHYA = "kohya"
    PEFT = "peft"


class SaveType(str, Enum):
    """Types that adapters are stored in."""

    FLOAT32 = "fp32"
    FLOAT16 = "fp16"
    BFLOAT16 = "bf16"


Model = Annotated[
    str | None,
    typer.Option(
        metavar="FOLDER",
        help="The base, a diffusers folder: needed where it is not SD 1.x, SD 2.x or SDXL, and for algorithms whose "
        "change depends on its weights.",
    ),
]
Pickle = Annotated[
    bool, typer.Option("--allow-pickle", help="Open .pt and .bin files, which can run code. Only if trusted.")
]
DTypeOption = Annotated[SaveType | None, typer.Option(help="Type to store in. Default: that of the source.")]


def convert(
    source: Annotated[str, typer.Argument(metavar="IN", help="A file, folder or repository.")],
    out: Annotated[
        str, typer.Argument(metavar="OUT", help="A .safetensors file or a folder; for peft, a folder.")
    ],
    *,
    to: Annotated[Format, typer.Option("--to", help="The format to write.")],
    dtype: DTypeOption = None,
    rank: Annotated[
        int | None,
        typer.Option(min=1, help="For layers that are no low-rank pair: the rank to write them at."),
    ] = None,
    model: Model = None,
    allow_pickle: Pickle = False,
) -> None:
    """Write an adapter in another format, with its own tensors and scales; what the format lacks is refused by name."""
    from lora_mixer.writing import jobs
    from lora_mixer.writing.encode import as_dtype
    from lora_mixer.writing.files import open_files

    files = open_files([source], [_name(source)], model=model, allow_pickle=allow_pickle)
    report = jobs.convert(files, Path(out), format=to.value, dtype=as_dtype(dtype and dtype.value), rank=rank)
    console().print(plain(report), soft_wrap=True)


def resize(
    source: Annotated[str, typer.Argument(metavar="IN", help="A file, folder or repository.")],
    *,
    out: Annotated[str, typer.Option("--out", "-o", help="A .safetensors file or a folder.")],
    rank: Annotated[int | None, typer.Option(min=1, help="The rank of every layer.")] = None,
    energy: Annotated[
        float | None,
        typer.Option(
            help="Instead: the lowest rank of each layer that keeps this share of its squared norm."
        ),
    ] = None,
    to: Annotated[Format, typer.Option("--to", help="The format to write.")] = Format.DIFFUSERS,
    dtype: DTypeOption = None,
    model: Model = None,
    allow_pickle: Pickle = False,
) -> None:
    """Write an adapter at lower ranks, by singular values, and say what each layer lost."""
    from lora_mixer.mixes import Mix
    from lora_mixer.writing import jobs
    from lora_mixer.writing.encode import as_dtype
    from lora_mixer.writing.files import open_files

    check_cut(rank, energy)
    files = open_files([source], [_name(source)], model=model, allow_pickle=allow_pickle)
    report = jobs.merge(
        files,
        Mix.of({files.adapters[0].info.name: 1.0}),
        Path(out),
        format=to.value,
        rank=rank,
        energy=energy,
        dtype=as_dtype(dtype and dtype.value),
        watch=lambda places: bar(places, "resizing"),
    )
    console().print(plain(report), soft_wrap=True)


def check_cut(rank: int | None, energy: float | None) -> None:
    """
    Refuse a rank and an energy that make no sense together.

    Raises:
        SaveError: Saying what is expected.
    """
    if (rank is None) == (energy is None):
        raise SaveError("give either --rank or --energy")
    if energy is not None and not 0 < energy <= 1:
        raise SaveError(f"--energy must be above 0 and at most 1, got {energy:g}")


def _name(source: str) -> str:
    from lora_mixer.cli._lora_option import read_options

    return read_options([source])[0].name
