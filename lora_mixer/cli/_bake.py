"""``lora-mixer bake``: a base with a mix in its weights, as a diffusers folder that needs no adapter any more."""

from __future__ import annotations

from typing import Annotated

import typer

from lora_mixer.cli._generate import DType, mix_into
from lora_mixer.cli._lora_option import read_options
from lora_mixer.cli._options import AllowPickle, Model, Strict  # noqa: TC001 -- typer reads them at runtime
from lora_mixer.cli._terminal import console, plain


def bake(
    *,
    model: Model,
    lora: Annotated[
        list[str],
        typer.Option(
            metavar="FILE[:WEIGHTS]", help="F, F:0.7 or F:te=0.2,unet=0.9. May be given several times."
        ),
    ],
    out: Annotated[
        str, typer.Option("--out", "-o", metavar="FOLDER", help="A folder that is not there yet.")
    ],
    dtype: Annotated[
        DType, typer.Option(help="Type to load and store the weights in. auto: float32.")
    ] = DType.AUTO,
    strict: Strict = False,
    allow_pickle: AllowPickle = False,
) -> None:
    """Write a diffusers folder with the mix in its weights; lora_mixer.json in it says what is in there."""
    options = read_options(lora)
    from lora_mixer.pictures import load_pipeline
    from lora_mixer.writing import bake as write
    from lora_mixer.writing import free_folder

    free_folder(out)  # before the model is loaded
    pipe = load_pipeline(model, device="cpu", dtype=dtype.value)
    mixer = mix_into(pipe, options, strict=strict, allow_pickle=allow_pickle)
    with console(stderr=True).status("writing the model"):
        write(mixer, out, model=model)
    console().print(plain(f"{out}: {model} with {mixer.mix.to_text()}"), soft_wrap=True)
