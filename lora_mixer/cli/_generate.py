"""``lora-mixer generate``: pictures from a pipeline with adapters mixed in."""

from __future__ import annotations

import inspect
import secrets
import warnings
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lora_mixer.cli._lora_option import LoraOption, read_options
from lora_mixer.cli._options import AllowPickle, LoadEmbeddings, Model, Strict  # noqa: TC001 -- typer reads them at runtime
from lora_mixer.cli._output import picture_paths
from lora_mixer.cli._terminal import console, plain, print_warning
from lora_mixer.errors import LoraMixerError
from lora_mixer.picture_metadata import PictureSettings, save_picture

if TYPE_CHECKING:
    import torch

    from lora_mixer.mixer import LoraMixer


class DType(str, Enum):
    """Types that a pipeline's weights may be loaded in."""

    AUTO = "auto"
    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"


def generate(
    *,
    model: Model,
    prompt: Annotated[
        str,
        typer.Option(
            help="What the picture shall show. <lora:NAME:0.7> in it sets the weight of an adapter given with --lora; "
            "NAME is its file's name without the ending."
        ),
    ],
    lora: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE[:WEIGHTS]",
            help="A file, folder, repository or a file's Hub address, with its weight: F, F:0.7, F:te=0.2,unet=0.9 "
            "(te: all text encoders). May be given several times.",
        ),
    ] = None,
    mix: Annotated[
        str | None,
        typer.Option(
            help="What the adapters given with --lora do, by their files' names, in any form of a mix (docs/mixes.md): "
            "'ink:1,schedule=linear(0, 1), neon:0.5', 'ink:1, neon:1 | switch(tau=2)', JSON, YAML."
        ),
    ] = None,
    negative_prompt: Annotated[
        str,
        typer.Option(
            help="What it shall not show. <lora:NAME:0.7> in it changes the weight in the half without the prompt only."
        ),
    ] = "",
    seed: Annotated[
        int | None, typer.Option(help="Of the first picture; the next have the next. Default: any.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Default: the pipeline's own.")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="Default: the pipeline's own.")] = None,
    width: Annotated[int | None, typer.Option(min=8, help="Default: the model's own.")] = None,
    height: Annotated[int | None, typer.Option(min=8, help="Default: the model's own.")] = None,
    count: Annotated[int, typer.Option(min=1, help="How many pictures.")] = 1,
    out: Annotated[
        str,
        typer.Option(help="A .png, .jpg or .webp path, with {seed} and {index} where wanted, or a folder."),
    ] = ("lora-mixer-{seed}.png"),
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps, ...")] = "auto",
    dtype: Annotated[DType, typer.Option(help="auto: float16 on a GPU, float32 on the CPU.")] = DType.AUTO,
    strict: Strict = False,
    allow_pickle: AllowPickle = False,
    load_embeddings: LoadEmbeddings = False,
) -> None:
    """Make pictures with adapters mixed into a pipeline; each says inside how it was made."""
    options = read_options(lora or ())
    first = secrets.randbelow(2**32) if seed is None else seed
    seeds = [first + number for number in range(count)]
    paths = picture_paths(out, seeds)
    wanted = {
        "negative_prompt": negative_prompt or None,
        "num_inference_steps": steps,
        "guidance_scale": guidance_scale,
        "width": width,
        "height": height,
    }
    from lora_mixer.pictures import load_pipeline

    pipe = load_pipeline(model, device=device, dtype=dtype.value)
    arguments = _arguments(pipe, {"prompt": prompt, **{k: v for k, v in wanted.items() if v is not None}})
    mixer = mix_into(pipe, options, strict=strict, allow_pickle=allow_pickle, load_embeddings=load_embeddings)
    if mix is not None:
        mixer.set_mix(mix)
    arguments["prompt"], unwanted = _read_tags(mixer, prompt, negative_prompt)
    if "negative_prompt" in arguments:
        arguments["negative_prompt"] = unwanted
    settings = PictureSettings(
        prompt=arguments["prompt"],
        negative_prompt=negative_prompt,  # as typed: its tags are said nowhere else
        steps=steps,
        guidance_scale=guidance_scale,
        sampler=type(pipe.scheduler).__name__ if hasattr(pipe, "scheduler") else None,
        model=Path(model).name or model if Path(model).is_dir() else model,
        mix=mixer.mix,
    ).with_hashes({name: info.hashes for name, info in mixer.adapters.items()})
    for number, path in zip(seeds, paths, strict=True):
        image = pipe(**arguments, generator=_generator(number)).images[0]
        save_picture(image, path, replace(settings, seed=number))
        console().print(f"{plain(path)}  (seed {number})", soft_wrap=True)


def _read_tags(mixer: LoraMixer, prompt: str, negative_prompt: str) -> tuple[str, str]:
    """
    Put the weights of tags into effect.

    Returns:
        Both prompts without tags.
    """
    from lora_mixer.mixes import Mix

    clean, more = mixer.parse_prompt(prompt)
    unwanted, less = mixer.parse_prompt(negative_prompt)
    if not more.names and not less.names:
        return clean, unwanted
    named = {*more.names, *less.names}
    given = {name: own for name, own in mixer.mix.adapters.items() if name not in named}
    mix = Mix({**given, **more.adapters})
    mixer.set_mix(mix, negative=Mix({**mix.adapters, **less.adapters}))
    return clean, unwanted


def _generator(seed: int) -> torch.Generator:
    import torch

    # Noise drawn on the CPU is the same for every device.
    return torch.Generator("cpu").manual_seed(seed)


def _arguments(pipe: Any, wanted: dict[str, Any]) -> dict[str, Any]:
    known = inspect.signature(pipe.__call__).parameters
    unknown = [name for name in wanted if name not in known]
    if unknown:
        options = ", ".join("--" + name.removeprefix("num_inference_").replace("_", "-") for name in unknown)
        raise LoraMixerError(f"{type(pipe).__name__} does not take {options}. Leave it out for this model.")
    return wanted


def mix_into(
    pipe: Any, options: list[LoraOption], *, strict: bool, allow_pickle: bool, load_embeddings: bool = False
) -> LoraMixer:
    """Load and mix the adapters, with each one's report on the terminal."""
    from lora_mixer.mixer import LoraMixer, PartialMatchWarning
    from lora_mixer.mixes import Mix

    mixer = LoraMixer(pipe)
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
        console().print(plain(report), soft_wrap=True)
        if report.unmatched:
            print_warning(
                f"{option.source}: only a part of it fits this pipeline; --strict refuses such files."
            )
    mixer.set_mix(Mix.of({option.name: option.weights for option in options}))
    return mixer
