"""A bar for long work on a terminal; nothing in a pipe or for one thing alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from lora_mixer.cli._terminal import console

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

T = TypeVar("T")


def bar(items: Iterable[T], title: str) -> Iterator[T]:
    """
    Yield the items and show how many are done.

    Example:
        >>> list(bar([1, 2], "working"))
        [1, 2]
    """
    known = list(items)
    err = console(stderr=True)
    if len(known) < 2 or not err.is_terminal:
        yield from known
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True) as progress:
        yield from progress.track(known, description=title)
