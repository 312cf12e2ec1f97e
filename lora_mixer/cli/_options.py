"""Options that several commands have, worded once."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer

Model = Annotated[
    str, typer.Option(help="A diffusers pipeline: a folder, the name of a Hub repository, or demo.")
]
Strict = Annotated[bool, typer.Option("--strict", help="Refuse adapters that do not match in full.")]
AllowPickle = Annotated[
    bool,
    typer.Option("--allow-pickle", help="Open .pt and .bin files, which can run code. Only if trusted."),
]
LoadEmbeddings = Annotated[
    bool, typer.Option("--load-embeddings", help="Load the textual inversions in the files, too.")
]


class Format(str, Enum):
    """Formats that adapters are written in."""

    DIFFUSERS = "diffusers"
    KOHYA = "kohya"
    COMFYUI = "comfyui"
    PEFT = "peft"


class SaveType(str, Enum):
    """Types that adapters are stored in."""

    FLOAT32 = "fp32"
    FLOAT16 = "fp16"
    BFLOAT16 = "bf16"


BaseModel = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="FOLDER",
        help="The base, a diffusers folder: needed where it is not SD 1.x, SD 2.x or SDXL, and for algorithms whose "
        "change depends on its weights.",
    ),
]
SumType = Annotated[SaveType, typer.Option(help="Type to store in.")]
Rank = Annotated[
    int | None,
    typer.Option(
        min=1, help="The rank of every layer; beside --energy or --sv-ratio, the most that one gets."
    ),
]
ConvRank = Annotated[
    int | None, typer.Option(min=1, help="The same for convolutions with kernels above 1x1. Default: --rank.")
]
Energy = Annotated[
    float | None,
    typer.Option(help="The lowest rank of each layer that keeps this share of its squared norm."),
]
SvRatio = Annotated[
    float | None,
    typer.Option(help="Keep singular values above the layer's largest divided by this, as Kohya's sv_ratio."),
]
