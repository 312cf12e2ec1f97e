"""``lora-mixer bake``: a base with a mix in its weights, as a diffusers folder that needs no adapter any more."""

from __future__ import annotations

import json
import secrets
import shutil
from pathlib import Path
from typing import Annotated

import typer

from lora_mixer import __version__
from lora_mixer.cli._generate import DType, mix_into
from lora_mixer.cli._lora_option import read_options
from lora_mixer.cli._options import AllowPickle, Model, Strict  # noqa: TC001 -- typer reads them at runtime
from lora_mixer.cli._terminal import console, plain
from lora_mixer.errors import SaveError


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
    folder = Path(out).expanduser()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SaveError(f"{out} is there already and is not an empty folder; name another")
    from lora_mixer.pictures import load_pipeline

    pipe = load_pipeline(model, device="cpu", dtype=dtype.value)
    mixer = mix_into(pipe, options, strict=strict, allow_pickle=allow_pickle)
    if not mixer.mix.is_constant:
        raise SaveError("the mix changes from step to step, which no model's weights can hold")
    if not mixer.is_in_parameters:
        raise SaveError(
            "the mix has biases for modules that have none, and so does not fit into the model's weights"
        )
    about = {
        "lora_mixer": __version__,
        "model": model,
        "mix": mixer.mix.to_text(),
        "adapters": {name: info.source for name, info in mixer.adapters.items()},
    }
    spare = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with console(stderr=True).status("writing the model"):
            pipe.save_pretrained(str(spare))
        (spare / "lora_mixer.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        if folder.exists():
            folder.rmdir()
        spare.rename(folder)
    except OSError as error:
        raise SaveError(f"cannot write {out}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(spare, ignore_errors=True)
    console().print(plain(f"{out}: {model} with {about['mix']}"), soft_wrap=True)
