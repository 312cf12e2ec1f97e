"""Packages that only a part of the library needs: what is missing is told with the extra that installs it."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from lora_mixer.errors import MissingExtraError

__all__ = ["EXTRAS", "explained", "install", "require"]

EXTRAS: dict[str, tuple[str, ...]] = {
    "cli": ("typer", "rich"),
    "ui": ("gradio",),
    "batch": ("pydantic", "yaml", "fsspec"),
    "mcp": ("mcp",),
    "ray": ("ray",),
    "prompts": ("compel", "dynamicprompts"),
}
"""By extra: the modules that it brings."""


def require(module: str, extra: str) -> Any:
    """
    Import a module that an extra brings.

    Args:
        module: The module's name.
        extra: The extra's name in pyproject.toml.

    Raises:
        MissingExtraError: When it is not installed; the message has the command that installs it.

    Example:
        >>> require("yaml", "batch").safe_load("a: 0.5")
        {'a': 0.5}
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise explained(error, extra) from error


def explained(error: ModuleNotFoundError, extra: str) -> ImportError:
    """Return what to raise for a failed import: the extra that is missing, or the error itself where it is another's."""
    package = (error.name or "").partition(".")[0]
    if package not in EXTRAS[extra]:
        return error
    return MissingExtraError(f"this needs the package {package}, which is not installed: {install(extra)}")


def install(extra: str) -> str:
    """Return the command that installs an extra, from a checkout where this is one."""
    root = Path(__file__).resolve().parent.parent
    # a folder with setup.py beside the package is the checkout; an installed package has site-packages around it
    name = f"{root}[{extra}]" if (root / "setup.py").is_file() else f"lora-mixer[{extra}]"
    return f"pip install {'-e ' if (root / 'setup.py').is_file() else ''}'{name}'"
