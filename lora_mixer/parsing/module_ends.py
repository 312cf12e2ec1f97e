"""
Tables of a configuration that name modules by their ends, looked up by a module's ends instead of entry by entry.

A file may have as many entries as modules; going through all of them for each module takes the product of both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from lora_mixer.errors import LoraMixerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

Found = TypeVar("Found")


class Configuration(dict[str, Any]):
    """
    A configuration, and what was worked out of it for all modules at once.

    Example:
        >>> Configuration(names=["a", "b"]).once(lambda config: places(config["names"]))
        {'a': 0, 'b': 1}
    """

    _worked_out: dict[Any, Any] | None = None

    def once(self, work: Callable[[Mapping[str, Any]], Found]) -> Found:
        """
        Return what a function makes of the configuration; it is asked once.

        Raises:
            LoraMixerError: What the function raised, each time.
        """
        if self._worked_out is None:
            self._worked_out = {}
        if work not in self._worked_out:
            try:
                self._worked_out[work] = work(self)
            except LoraMixerError as error:
                self._worked_out[work] = error
        found: Any = self._worked_out[work]
        if isinstance(found, LoraMixerError):
            raise found.with_traceback(None)
        result: Found = found
        return result

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy works it out again."""
        return Configuration, (dict(self),)


def ends(path: str) -> Iterator[str]:
    """
    Yield a module's path, and what stands behind each of its dots.

    Example:
        >>> list(ends("mid.attn1.to_q"))
        ['mid.attn1.to_q', 'attn1.to_q', 'to_q']
    """
    yield path
    dot = path.find(".")
    while dot >= 0:
        yield path[dot + 1 :]
        dot = path.find(".", dot + 1)


def fronts(path: str) -> Iterator[str]:
    """
    Yield a module's path, and those of the modules that it is in.

    Example:
        >>> list(fronts("mid.attn1.to_q"))
        ['mid.attn1.to_q', 'mid.attn1', 'mid']
    """
    yield path
    dot = path.rfind(".")
    while dot >= 0:
        yield path[:dot]
        dot = path.rfind(".", 0, dot)


def places(names: Iterable[str]) -> dict[str, int]:
    """
    Return the first place of each name.

    Example:
        >>> places(["a", "b", "a"])
        {'a': 0, 'b': 1}
    """
    found: dict[str, int] = {}
    for place, name in enumerate(names):
        found.setdefault(name, place)
    return found
