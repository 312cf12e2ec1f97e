"""``lora-mixer ui``: the web page."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from lora_mixer.cli._options import AsJson, refuse_missing
from lora_mixer.cli._picture_options import model_options
from lora_mixer.errors import LoraMixerError
from lora_mixer.extras import explained
from lora_mixer.pictures import DEMO, ModelOptions


@model_options(default=DEMO)
def ui(
    *,
    options: ModelOptions,
    host: Annotated[
        str, typer.Option(help="Address to listen on; others than loopback need --auth.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Default: a free one from 7860 up.")
    ] = None,
    loras: Annotated[
        list[Path] | None, typer.Option(metavar="FOLDER", help="Adapters. May be given several times.")
    ] = None,
    models: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FOLDER", help="Other models to choose from on the page. May be given several times."
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Where pictures, uploads, exports and saved mixes go.")
    ] = Path("lora-mixer-ui"),
    auth: Annotated[
        str | None,
        typer.Option(metavar="USER:PASSWORD", envvar="LORA_MIXER_AUTH", help="Ask for a password."),
    ] = None,
    share: Annotated[bool, typer.Option("--share", help="A public link; needs --auth.")] = False,
    mcp: Annotated[
        bool, typer.Option("--mcp", help="Offer the API as tools of the Model Context Protocol, too.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Open the web page: library, mixing, pictures, comparisons, gallery, export."""
    user, colon, password = (auth or "").partition(":")
    if auth is not None and not (user and colon and password):
        raise LoraMixerError("--auth is written USER:PASSWORD, and neither may be empty", argument="auth")
    from lora_mixer.ui.reach import check_port, check_reach

    pair = (user, password) if auth is not None else None
    check_reach(host, share=share, auth=pair)
    check_port(host, port)
    for option, folders in (("--loras", loras), ("--models", models)):
        refuse_missing(option, folders or ())
    _tell("getting ready; what the page is made of takes some seconds to load", aside=as_json)
    try:
        from lora_mixer.ui.app import launch
        from lora_mixer.ui.app_state import ServerOptions
    except ModuleNotFoundError as error:
        raise explained(error, "ui") from error
    server = ServerOptions(
        model=options.model, loras=tuple(loras or ()), models=tuple(models or ()), out=out, loading=options
    )
    tell = partial(_tell, aside=as_json)
    page = launch(
        server, host=host, port=port or None, auth=pair, share=share, block=not as_json, tell=tell, mcp=mcp
    )
    if as_json:
        facts = {"url": page.local_url, "public_url": page.share_url, "pictures": str(out)}
        typer.echo(json.dumps(facts))
        sys.stdout.flush()
        page.block_thread()


def _tell(words: str, *, aside: bool = False) -> None:
    """Say what is being done; aside where the output is for programs."""
    typer.echo(f"lora_mixer: {words}", err=aside)
    (sys.stderr if aside else sys.stdout).flush()
