"""Writing to the terminal: wide tables in pipes, and nothing from a file gets to steer the terminal."""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

# In a pipe or a log nothing has to fit a window, and a path cut in two cannot be searched for.
_WIDTH_WITHOUT_A_TERMINAL = 240


def console(*, stderr: bool = False) -> Console:
    """Return a console for standard output or error as they are at this moment."""
    from rich.console import Console

    terminal = Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    if not terminal.is_terminal:
        terminal.width = _WIDTH_WITHOUT_A_TERMINAL
    return terminal


def plain(text: object) -> str:
    r"""
    Return text from a file, or its name, with control characters made visible instead of sent to the terminal.

    Example:
        >>> print(plain("red \x1b[31m"))
        red �[31m
    """
    return "".join(
        letter if letter.isprintable() or letter == "\n" else "\N{REPLACEMENT CHARACTER}"
        for letter in str(text)
    )


def print_error(message: str) -> None:
    """Write one error in red to standard error."""
    console(stderr=True).print(f"error: {plain(message)}", style="red", soft_wrap=True)


def print_warning(message: str) -> None:
    """Write one warning in yellow to standard error."""
    console(stderr=True).print(f"warning: {plain(message)}", style="yellow", soft_wrap=True)


@contextmanager
def warnings_told() -> Iterator[None]:
    """Show this package's own warnings as one line each, once; those of others stay with Python."""
    before, said = warnings.showwarning, set[str]()

    def show(message: Warning | str, category: type[Warning], *place: object, **more: object) -> None:
        if not category.__module__.startswith("lora_mixer."):
            before(message, category, *place, **more)  # type: ignore[arg-type]
        elif str(message) not in said:
            said.add(str(message))
            print_warning(str(message))

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield
