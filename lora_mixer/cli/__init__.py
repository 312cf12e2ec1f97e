"""The ``lora-mixer`` command: one file per subcommand; torch and diffusers are imported only when one runs."""

from __future__ import annotations

import sys

from lora_mixer.errors import MissingExtraError
from lora_mixer.extras import explained

__all__ = ["main"]


def main() -> None:
    """Run the command line; the entry point of ``lora-mixer``."""
    try:
        from lora_mixer.cli._app import app
    except ModuleNotFoundError as error:
        told = explained(error, "cli")
        if not isinstance(told, MissingExtraError):
            raise
        sys.exit(f"lora-mixer: {told}")
    app()
