"""``lora-mixer generate``: pictures from a pipeline with adapters mixed in."""

from __future__ import annotations

import inspect
import secrets
import warnings
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lora_mixer import __version__
from lora_mixer.cli._lora_option import LoraOption, read_options
from lora_mixer.cli._output import Settings, picture_paths, save
from lora_mixer.cli._terminal import console, plain, print_warning
from lora_mixer.errors import LoraMixerError, MissingExtraError, SourceNotFoundError

if TYPE_CHECKING:
    import torch

    from lora_mixer.mixer import LoraMixer


QUANTISERS = ("bitsandbytes", "torchao", "quanto")
"""What diffusers' messages call the libraries of the extra ``quant``."""


class DType(str, Enum):
    """Types that a pipeline's weights may be loaded in."""

    AUTO = "auto"
    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"


def generate(
    *,
    model: Annotated[
        str, typer.Option(help="A diffusers pipeline: a folder, or the name of a Hub repository.")
    ],
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
        str, typer.Option(help="A .png path, with {seed} and {index} where wanted, or a folder.")
    ] = ("lora-mixer-{seed}.png"),
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps, ...")] = "auto",
    dtype: Annotated[DType, typer.Option(help="auto: float16 on a GPU, float32 on the CPU.")] = DType.AUTO,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse adapters that do not match in full.")
    ] = False,
    allow_pickle: Annotated[
        bool,
        typer.Option("--allow-pickle", help="Open .pt and .bin files, which can run code. Only if trusted."),
    ] = False,
) -> None:
    """Make pictures with adapters mixed into a pipeline; each PNG says inside how it was made."""
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
    pipe = load_pipeline(model, device, dtype)
    arguments = _arguments(pipe, {"prompt": prompt, **{k: v for k, v in wanted.items() if v is not None}})
    mixer = mix_into(pipe, options, strict=strict, allow_pickle=allow_pickle)
    arguments["prompt"], unwanted, less = _read_tags(mixer, prompt, negative_prompt)
    if "negative_prompt" in arguments:
        arguments["negative_prompt"] = unwanted
    settings = Settings(
        arguments["prompt"], unwanted, steps, guidance_scale, model, mixer.mix.to_text(), __version__, less
    )
    for number, path in zip(seeds, paths, strict=True):
        image = pipe(**arguments, generator=_generator(number)).images[0]
        save(image, path, settings.text(number, image.size))
        console().print(f"{plain(path)}  (seed {number})", soft_wrap=True)


def _read_tags(mixer: LoraMixer, prompt: str, negative_prompt: str) -> tuple[str, str, str]:
    """
    Put the weights of tags into effect.

    Returns:
        Both prompts without tags, and the mix of the half without the prompt, where it has one of its own.
    """
    from lora_mixer.mixes import Mix

    clean, more = mixer.parse_prompt(prompt)
    unwanted, less = mixer.parse_prompt(negative_prompt)
    if not more.names and not less.names:
        return clean, unwanted, ""
    named = {*more.names, *less.names}
    given = {name: own for name, own in mixer.mix.adapters.items() if name not in named}
    mix = Mix({**given, **more.adapters})
    negative = Mix({**mix.adapters, **less.adapters})
    mixer.set_mix(mix, negative=negative)
    return clean, unwanted, "" if negative == mix else negative.to_text()


def load_pipeline(model: str, device: str, dtype: DType) -> Any:
    """Load a diffusers pipeline in the type asked for, with this package's errors."""
    import torch
    from diffusers import DiffusionPipeline

    pipelines: Any = DiffusionPipeline
    chosen = _device(device)
    half = torch.float32 if chosen.type == "cpu" else torch.float16
    loaded_as = half if dtype is DType.AUTO else getattr(torch, dtype.value)
    try:
        with warnings.catch_warnings():
            # Named "dtype" in the newest releases only, which still take this one.
            warnings.filterwarnings("ignore", message=".*torch_dtype", category=FutureWarning)
            return pipelines.from_pretrained(model, torch_dtype=loaded_as).to(chosen)
    except ImportError as error:
        if any(library in str(error).lower() for library in QUANTISERS):
            raise MissingExtraError(
                f"--model {model!r} is quantised, and the library for it is missing: {_first_line(error)} "
                "Install it with: pip install 'lora-mixer[quant]'"
            ) from error
        raise
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise SourceNotFoundError(
            f"--model {model!r} must be a folder or a Hub repository with a diffusers pipeline (model_index.json), "
            f"and could not be loaded: {_first_line(error)}"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]


def _device(name: str) -> torch.device:
    import torch

    if name == "auto":
        accelerator = "mps" if torch.backends.mps.is_available() else "cpu"
        return torch.device("cuda" if torch.cuda.is_available() else accelerator)
    try:
        found = torch.device(name)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise LoraMixerError(
            f"--device {name!r} cannot be used here: {str(error).splitlines()[0]}"
        ) from error
    return found


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


def mix_into(pipe: Any, options: list[LoraOption], *, strict: bool, allow_pickle: bool) -> LoraMixer:
    """Load and mix the adapters, with each one's report on the terminal."""
    from lora_mixer.mixer import LoraMixer, PartialMatchWarning
    from lora_mixer.mixes import Mix

    mixer = LoraMixer(pipe)
    for option in options:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PartialMatchWarning)  # the report says it better
            report = mixer.load_lora_weights(
                option.source, adapter_name=option.name, strict=strict, allow_pickle=allow_pickle
            )
        console().print(plain(report), soft_wrap=True)
        if report.unmatched:
            print_warning(
                f"{option.source}: only a part of it fits this pipeline; --strict refuses such files."
            )
    mixer.set_mix(Mix.of({option.name: option.weights for option in options}))
    return mixer
