"""``lora-mixer generate``: pictures from a pipeline with adapters mixed in."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path  # noqa: TC003 -- typer reads it at runtime
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from lora_mixer import picture_metadata
from lora_mixer.cli._completing import adapters
from lora_mixer.cli._lora_option import LoraOption, read_options
from lora_mixer.cli._options import KeepBase, LoadEmbeddings, Strict, refuse_missing
from lora_mixer.cli._output import picture_paths
from lora_mixer.cli._picture_options import model_options, picture_options
from lora_mixer.cli._terminal import console, plain, print_warning, warnings_told
from lora_mixer.parsing import at_home
from lora_mixer.pictures import ModelOptions  # noqa: TC001 -- typer reads it at runtime
from lora_mixer.problem import Surface

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lora_mixer.mixer import LoraMixer
    from lora_mixer.mixes import Mix


@picture_options
@model_options()
def generate(
    *,
    said: dict[str, Any],
    options: ModelOptions,
    lora: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE[:WEIGHTS]",
            autocompletion=adapters,
            help="A file, folder, repository or a file's Hub address, with its weight: F, F:0.7, F:te=0.2,unet=0.9 "
            "(te: all text encoders). May be given several times.",
        ),
    ] = None,
    loras: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FOLDER",
            help="A folder of adapters: those that <lora:NAME:0.7> in a prompt, or --mix, names are loaded from it, by their "
            "files' names without the ending. May be given several times.",
        ),
    ] = None,
    mix: Annotated[
        str | None,
        typer.Option(
            help="What the adapters given with --lora do, by their files' names, in any form of a mix (docs/mixes.md): "
            "'ink:1,schedule=linear(0, 1), neon:0.5', 'ink:1, neon:1 | switch(tau=2)', JSON, YAML."
        ),
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="How many pictures.")] = 1,
    out: Annotated[
        str,
        typer.Option(help="A .png, .jpg or .webp path, with {seed} and {index} where wanted, or a folder."),
    ] = ("lora-mixer-{seed}.png"),
    as_proposed: Annotated[
        bool,
        typer.Option(
            "--as-proposed",
            help="Take steps, guidance and sampler that a few-step adapter or model (LCM, Lightning, Hyper, DMD2, "
            "Turbo) was made for, where nothing else is said.",
        ),
    ] = False,
    keep_base: Annotated[
        KeepBase,
        typer.Option(
            help="Where the base of changed weights is kept: beside them, in host memory, in the mixed weights themselves with a "
            "small patch (no second copy; changing the mix takes several times as long), nowhere (every mix runs beside the weights, which "
            "takes time in each step), or beside them while there is room."
        ),
    ] = KeepBase.DEVICE,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per picture.")] = False,
    strict: Strict = False,
    load_embeddings: LoadEmbeddings = False,
) -> None:
    """Make pictures with adapters mixed into a pipeline; each says inside how it was made."""
    import secrets  # not for help

    named = read_options(lora or ())
    first = said.setdefault("seed", secrets.randbelow(2**32))
    seeds = [first + number for number in range(count)]
    paths = picture_paths(out, seeds)
    from lora_mixer.mixes import Mix
    from lora_mixer.pictures import PictureMaker, PictureRequest, load_pipeline, own_defaults

    given = {each.name: each.weights for each in named}
    named += _named_in(loras or (), said, mix, {each.name for each in named})
    request = PictureRequest(**said, mix=Mix.of(given if mix is None else mix))
    requests = [replace(request, seed=seed) for seed in seeds]
    pipe = load_pipeline(options)
    mixer = load_adapters(
        pipe,
        named,
        strict=strict,
        allow_pickle=options.allow_pickle,
        load_embeddings=load_embeddings,
        keep_base=keep_base.value,
        quiet=as_json,
    )
    hashes = {name: info.hashes for name, info in mixer.adapters.items()}
    defaults = own_defaults(options.model) | _proposed(
        mixer, request.mix, options.title, taken=as_proposed, quiet=as_json
    )
    maker = PictureMaker(mixer, defaults=defaults)
    with warnings_told():
        for picture in maker.make(requests):
            settings = picture_metadata.PictureSettings.of_request(picture.request, model=options.title)
            path = picture_metadata.save_picture(picture.image, paths[picture.index], settings, hashes=hashes)
            if as_json:
                facts = {
                    "file": str(path),
                    "seed": picture.request.seed,
                    "mix": picture.request.mix.to_text(),
                }
                typer.echo(json.dumps({**facts, "seconds": round(picture.seconds, 3)}))
            else:
                console().print(f"{plain(path)}  (seed {picture.request.seed})", soft_wrap=True)


def _named_in(
    folders: Iterable[Path], said: dict[str, Any], mix: str | None, known: set[str]
) -> list[LoraOption]:
    """Return the adapters of folders that the prompts or the mix name; the rest of a folder is not even opened."""
    from lora_mixer.mixes import AdapterMix, Mix, names_in_prompt
    from lora_mixer.sources import adapter_files

    refuse_missing("--loras", folders)
    wanted = [*Mix.of(mix).names] if mix is not None else []
    for text in (said.get("prompt", ""), said.get("negative_prompt", "")):
        wanted += names_in_prompt(text)
    files: dict[str, Path] = {}
    for folder in folders:
        for file in adapter_files(at_home(folder)):
            files.setdefault(file.stem, file)
    names = dict.fromkeys(name for name in wanted if name not in known and name in files)
    return [LoraOption(str(files[name]), name, AdapterMix()) for name in names]


def _proposed(mixer: LoraMixer, mix: Mix, model: str, *, taken: bool, quiet: bool) -> dict[str, Any]:
    """Say what few-step adapters and models are made for, and give it where it is to be taken."""
    from lora_mixer.pictures import propose, propose_for

    proposals = propose_for({name: mixer.adapters[name] for name in mix.names if name in mixer.adapters})
    if (of_model := propose(model)) is not None:
        proposals[model] = of_model
    for name, proposal in proposals.items():
        values = ", ".join(f"{key} {value}" for key, value in proposal.fields.items())
        more = "taken where nothing else is said" if taken else "--as-proposed takes these"
        console(stderr=quiet).print(
            plain(f"{name} is of the kind {proposal.method}, made for {values} ({more})"), soft_wrap=True
        )
    return next(iter(proposals.values())).fields if proposals and taken else {}


def load_adapters(
    pipe: Any,
    options: list[LoraOption],
    *,
    strict: bool,
    allow_pickle: bool,
    load_embeddings: bool = False,
    keep_base: Literal["device", "host", "patch", "none", "auto"] = "device",
    quiet: bool = False,
) -> LoraMixer:
    """Load the adapters, with each one's report on the terminal; none is active afterwards."""
    from lora_mixer.mixer import LoraMixer, PartialMatchWarning

    mixer = LoraMixer(pipe, keep_base=keep_base)
    for option in options:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PartialMatchWarning)  # the report says it better
            report = mixer.load_lora_weights(
                option.source,
                adapter_name=option.name,
                strict=strict,
                allow_pickle=allow_pickle,
                load_embeddings=load_embeddings,
            )
        console(stderr=quiet).print(plain(report.text_on(Surface.COMMAND)), soft_wrap=True)
        if report.unmatched:
            print_warning(
                f"{option.source}: only a part of it fits this pipeline; --strict refuses such files."
            )
    mixer.set_mix({})
    return mixer


def mix_into(
    pipe: Any, options: list[LoraOption], *, strict: bool, allow_pickle: bool, quiet: bool = False
) -> LoraMixer:
    """Load and mix the adapters, with each one's report on the terminal."""
    from lora_mixer.mixes import Mix

    mixer = load_adapters(pipe, options, strict=strict, allow_pickle=allow_pickle, quiet=quiet)
    mixer.set_mix(Mix.of({option.name: option.weights for option in options}))
    return mixer
