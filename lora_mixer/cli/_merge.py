"""``lora-mixer merge``: several adapters made one, by the weighted sum or another method."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from lora_mixer.cli._completing import adapters, methods
from lora_mixer.cli._lora_option import split_weights
from lora_mixer.cli._options import (
    AllowPickle,
    AsJson,
    BaseModel,
    Out,
    SaveType,
    SumType,
    To,
    WritingCommand,
    cut_options,
)
from lora_mixer.cli._progress import bar
from lora_mixer.cli._saying import say
from lora_mixer.cli._terminal import print_warning

if TYPE_CHECKING:
    from collections.abc import Callable


def _methods() -> str:
    """Return the methods with what they do."""
    from lora_mixer.merging import METHODS

    lines = [
        f"{spec.name}: {spec.summary}{'; needs a rank' if spec.works_on == 'changes' else ''}."
        for spec in METHODS.values()
    ]
    return f"{' '.join(lines)} Also with settings: 'ties(density=0.2)'."


def _setting(name: str) -> str:
    """Return what a setting of methods does, and of which."""
    from lora_mixer.merging import METHODS

    of = {
        spec.name: setting for spec in METHODS.values() for setting in spec.settings if setting.name == name
    }
    if not of:
        return ""
    setting = next(iter(of.values()))
    users = [user for user, own in of.items() if own == setting]
    told = f"{setting.summary[0].upper()}{setting.summary[1:]}. Default: {setting.default}."
    return f"{told} For {', '.join(users)}."


_SETTINGS = ("density", "epsilon", "outliers", "majority", "average", "scale", "seed")


class MergeCommand(WritingCommand):
    """The command, whose help takes the methods and their settings from their table."""

    said: ClassVar[dict[str, Callable[[], str]]] = {
        **WritingCommand.said,
        "method": _methods,
        **{name: partial(_setting, name) for name in _SETTINGS},
    }


@cut_options
def merge(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE[:WEIGHTS]...",
            autocompletion=adapters,
            help="Adapters with their weights: a.safetensors:0.7 b:te=0.2,unet=0.9 c:0.8,blocks=b-lora:style.",
        ),
    ],
    *,
    out: Out,
    method: Annotated[str, typer.Option(help="How they come together.", autocompletion=methods)] = "sum",
    cut: dict[str, Any],
    density: Annotated[float | None, typer.Option()] = None,
    epsilon: Annotated[float | None, typer.Option()] = None,
    outliers: Annotated[float | None, typer.Option()] = None,
    majority: Annotated[str | None, typer.Option()] = None,
    average: Annotated[str | None, typer.Option()] = None,
    scale: Annotated[float | None, typer.Option("--lambda", "--scale")] = None,
    seed: Annotated[int | None, typer.Option()] = None,
    to: To = "diffusers",
    dtype: SumType = SaveType.FLOAT32,
    model: BaseModel = None,
    allow_pickle: AllowPickle = False,
    as_json: AsJson = False,
) -> None:
    """Make one adapter of several, without any pipeline; its header says what was mixed at which weights."""
    from lora_mixer import writing
    from lora_mixer.merging import METHODS, MergeMethod

    if seed is not None and (spec := METHODS.get(method)) is not None and not spec.draws:
        print_warning(f"{method} draws nothing at random: --seed has no effect.")
        seed = None
    given: dict[str, Any] = {
        "density": density,
        "epsilon": epsilon,
        "outliers": outliers,
        "majority": majority,
        "average": average,
        "scale": scale,
        "seed": seed,
    }
    report = writing.merge(
        [split_weights(text) for text in sources],
        out,
        method=MergeMethod.of(method, **{name: value for name, value in given.items() if value is not None}),
        format=to,
        **cut,
        dtype=dtype.value,
        model=model,
        allow_pickle=allow_pickle,
        progress=lambda places: bar(places, "merging"),
    )
    say(report, report.to_dict(), as_json=as_json)
