"""Options that several commands have, worded once."""

from __future__ import annotations

import contextlib
import functools
import inspect
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer
from typer.core import TyperCommand

from lora_mixer.cli._completing import formats
from lora_mixer.errors import LoraMixerError
from lora_mixer.parsing import at_home
from lora_mixer.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    Command = Callable[..., None]

Model = Annotated[
    str, typer.Option(help="A checkpoint (.safetensors), a diffusers folder, a Hub repository, or demo.")
]
Strict = Annotated[bool, typer.Option("--strict", help="Refuse adapters that do not match in full.")]
AllowPickle = Annotated[
    bool,
    typer.Option("--allow-pickle", help="Open .pt and .bin files, which can run code. Only if trusted."),
]
LoadEmbeddings = Annotated[
    bool, typer.Option("--load-embeddings", help="Load the textual inversions in the files, too.")
]


def refuse_missing(option: str, folders: Iterable[Path]) -> None:
    """
    Refuse folders that are not there; all of them are named.

    Raises:
        LoraMixerError: When there is any.
    """
    missing = [str(folder) for folder in folders if not at_home(folder).is_dir()]
    if missing:
        raise LoraMixerError(
            f"{option}: there is no folder {', '.join(missing)}",
            argument=option.lstrip("-"),
            problems=[Problem(folder, "there is no such folder") for folder in missing],
        )


class KeepBase(str, Enum):
    """Where the base of changed weights is kept."""

    DEVICE = "device"
    HOST = "host"
    PATCH = "patch"
    NONE = "none"
    AUTO = "auto"


class SaveType(str, Enum):
    """Types that adapters are stored in."""

    FLOAT32 = "fp32"
    FLOAT16 = "fp16"
    BFLOAT16 = "bf16"


BaseModel = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="MODEL",
        help="The base, a checkpoint (.safetensors), a diffusers folder or a Hub repository: needed where it is not SD 1.x, SD 2.x, SDXL or a transformer of a released size, and for algorithms whose "
        "change depends on its weights.",
    ),
]
SumType = Annotated[SaveType, typer.Option(help="Type to store in.")]
To = Annotated[
    str, typer.Option("--to", metavar="FORMAT", help="The format to write.", autocompletion=formats)
]
Out = Annotated[str, typer.Option("--out", "-o", help="A .safetensors file or a folder.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object.")]


class TableCommand(TyperCommand):
    """A command whose help takes what tables say, when it is asked for: of the options in :attr:`said`."""

    said: ClassVar[dict[str, Callable[[], str]]] = {}
    """By an option's name what stands behind its help."""

    def get_help(self, ctx: Any) -> str:  # typer's own context class moved between its releases
        """Return the help, complete, or without what needs a package that is not installed."""
        for parameter in self.params:
            table = self.said.get(parameter.name or "")
            if table is not None:
                with contextlib.suppress(ImportError):
                    parameter.help = f"{parameter.help or ''} {table()}".strip()  # type: ignore[attr-defined]
        return super().get_help(ctx)


def _formats() -> str:
    """Return the formats with what they are."""
    from lora_mixer.writing import FORMATS

    return "; ".join(f"{row.name}: {row.summary}" for row in FORMATS.values()) + "."


class WritingCommand(TableCommand):
    """A command that writes adapters."""

    said: ClassVar[dict[str, Callable[[], str]]] = {"to": _formats}


_CUT = {
    "rank": Annotated[
        int | None,
        typer.Option(
            min=1, help="The rank of every layer; beside --energy or --sv-ratio, the most that one gets."
        ),
    ],
    "conv_rank": Annotated[
        int | None,
        typer.Option(min=1, help="The same for convolutions with kernels above 1x1. Default: --rank."),
    ],
    "energy": Annotated[
        float | None,
        typer.Option(help="The lowest rank of each layer that keeps this share of its squared norm."),
    ],
    "sv_ratio": Annotated[
        float | None,
        typer.Option(
            help="Keep singular values above the layer's largest divided by this, as Kohya's sv_ratio."
        ),
    ],
}


def cut_options(command: Command) -> Command:
    """Give a command the options that say how far layers are cut; it gets them as the dict ``cut``."""
    added = {
        name: inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=option)
        for name, option in _CUT.items()
    }
    return with_options(command, "cut", added, lambda values: values)


def with_options(
    command: Command, name: str, added: Mapping[str, inspect.Parameter], read: Callable[[dict[str, Any]], Any]
) -> Command:
    """Give a command more options in place of one argument, which gets what ``read`` makes of their values."""
    signature = inspect.signature(command, eval_str=True)
    parameters: list[inspect.Parameter] = []
    for each in signature.parameters.values():
        parameters += added.values() if each.name == name else [each]

    @functools.wraps(command)
    def wrapped(**given: Any) -> None:
        values = {key: _plain(given.pop(key)) for key in added}
        command(**given, **{name: read(values)})

    wrapped.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {each.name: each.annotation for each in parameters}
    return wrapped


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value
