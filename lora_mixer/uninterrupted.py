"""Functions that Ctrl-C does not interrupt: where blocks begin and end, a pipeline or a lock is not whole."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType

    Function = TypeVar("Function", bound=Callable[..., Any])

WHOLE: set[CodeType] = set()
"""The functions that Ctrl-C does not interrupt, nor what they call."""


def uninterrupted(function: Function) -> Function:
    """Let Ctrl-C wait until a function has ended, within blocks of ``interrupts.Interruptible``."""
    WHOLE.add(function.__code__)
    return function
