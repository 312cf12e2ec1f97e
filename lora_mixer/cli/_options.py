"""Options that several commands have, worded once."""

from __future__ import annotations

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
