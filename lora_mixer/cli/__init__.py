"""The ``lora-mixer`` command: one file per subcommand; torch and diffusers are imported only when one runs."""

from __future__ import annotations

from lora_mixer.cli._app import app, main

__all__ = ["app", "main"]
