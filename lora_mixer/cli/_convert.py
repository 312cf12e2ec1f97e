"""``lora-mixer convert`` and ``resize``: one adapter in another format, or at another rank."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from lora_mixer.cli._options import (
    AllowPickle,
    AsJson,
    BaseModel,
    Out,
    SaveType,
    SumType,
    To,
    cut_options,
)
from lora_mixer.cli._progress import bar
from lora_mixer.cli._saying import say


def convert(
    source: Annotated[str, typer.Argument(metavar="IN", help="A file, folder or repository.")],
    out: Annotated[
        str, typer.Argument(metavar="OUT", help="A .safetensors file or a folder; for peft, a folder.")
    ],
    *,
    to: To,
    dtype: Annotated[
        SaveType | None, typer.Option(help="Type to store in. Default: that of each tensor of the source.")
    ] = None,
    rank: Annotated[
        int | None,
        typer.Option(min=1, help="For layers that are not a low-rank pair: the rank to write them at."),
    ] = None,
    model: BaseModel = None,
    allow_pickle: AllowPickle = False,
    as_json: AsJson = False,
) -> None:
    """Write an adapter in another format, with its own tensors and scales; what the format lacks is refused by name."""
    from lora_mixer import writing

    report = writing.convert(
        source,
        out,
        format=to,
        dtype=dtype and dtype.value,
        rank=rank,
        model=model,
        allow_pickle=allow_pickle,
    )
    say(report, report.to_dict(), as_json=as_json)


@cut_options
def resize(
    source: Annotated[str, typer.Argument(metavar="IN", help="A file, folder or repository.")],
    *,
    out: Out,
    cut: dict[str, Any],
    to: To = "diffusers",
    dtype: SumType = SaveType.FLOAT32,
    model: BaseModel = None,
    allow_pickle: AllowPickle = False,
    as_json: AsJson = False,
) -> None:
    """Write an adapter at lower ranks, by singular values, and say what each layer lost."""
    from lora_mixer import writing

    report = writing.resize(
        source,
        out,
        **cut,
        format=to,
        dtype=dtype.value,
        model=model,
        allow_pickle=allow_pickle,
        progress=lambda places: bar(places, "resizing"),
    )
    say(report, report.to_dict(), as_json=as_json)
