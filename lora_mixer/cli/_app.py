"""The command itself: its subcommands, ``--version``, and how errors are shown."""

from __future__ import annotations

import json
import warnings
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from lora_mixer import __version__
from lora_mixer.cli._bake import bake
from lora_mixer.cli._batch import BatchCommand, batch
from lora_mixer.cli._bench import bench
from lora_mixer.cli._convert import convert, resize
from lora_mixer.cli._demo import demo
from lora_mixer.cli._doctor import doctor
from lora_mixer.cli._extract import extract
from lora_mixer.cli._find import find
from lora_mixer.cli._generate import generate
from lora_mixer.cli._inspect import inspect
from lora_mixer.cli._merge import MergeCommand, merge
from lora_mixer.cli._options import WritingCommand
from lora_mixer.cli._push import push
from lora_mixer.cli._saying import facts_of_error
from lora_mixer.cli._show import show
from lora_mixer.cli._terminal import print_error
from lora_mixer.cli._ui import ui
from lora_mixer.errors import LoraMixerError
from lora_mixer.problem import Surface

EXIT_ERROR = 2
_JSON = "lora_mixer.json"


class _Commands(TyperGroup):
    """Subcommands whose expected errors end in one line instead of a traceback."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Remember whether the subcommand is asked for JSON, for its errors."""
        ctx.meta[_JSON] = "--json" in args
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:  # typer's own context class moved between its releases
        """Run the subcommand."""
        try:
            with warnings.catch_warnings():
                # diffusers says it of a call that its own SDXL pipeline makes
                warnings.filterwarnings("ignore", message="`upcast_vae`", category=FutureWarning)
                return super().invoke(ctx)
        except LoraMixerError as error:
            if ctx.params.get("debug"):
                raise
            if ctx.meta.get(_JSON):
                typer.echo(json.dumps(facts_of_error(error)))
            print_error(error.text_on(Surface.COMMAND))
            raise typer.Exit(EXIT_ERROR) from error


app = typer.Typer(
    name="lora-mixer",
    cls=_Commands,
    help="Load, mix and remove LoRA adapters on diffusers pipelines.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("inspect")(inspect)
app.command("generate")(generate)
app.command("batch", cls=BatchCommand)(batch)
app.command("convert", cls=WritingCommand)(convert)
app.command("merge", cls=MergeCommand)(merge)
app.command("resize", cls=WritingCommand)(resize)
app.command("extract", cls=WritingCommand)(extract)
app.command("bake")(bake)
app.command("push")(push)
app.command("demo")(demo)
app.command("find")(find)
app.command("show")(show)
app.command("doctor")(doctor)
app.command("bench")(bench)
app.command("ui")(ui)


def _version(*, wanted: bool) -> None:
    if wanted:
        typer.echo(f"lora-mixer {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    *,
    version: Annotated[  # its callback does it
        bool,
        typer.Option(
            "--version", callback=lambda value: _version(wanted=value), is_eager=True, help="Show it."
        ),
    ] = False,
    debug: Annotated[  # _Commands looks at it
        bool, typer.Option("--debug", help="Show the traceback of an error. Goes before the subcommand.")
    ] = False,
) -> None:
    """Load, mix and remove LoRA adapters on diffusers pipelines."""
