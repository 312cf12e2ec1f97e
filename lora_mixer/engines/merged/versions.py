"""
How autograd is told of writes to weights: while graphs are alive that have saved a weight, each content of it has a version of its own.

Weights are written past autograd, which is no business of inference. But a graph must not go on with another content than it has
saved: torch compares the version at the backward pass with that at the forward pass, and raises. A mix that is back, bit for bit,
has its version back, so that gradients which are right are not refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Sequence

COUNT = 1 << 31
"""Versions are counted modulo this, which torch's 32 bits hold."""

_APART = 1 << 16
"""Versions from one content to the next: writes of others add one each, and must not meet another content's."""

_set: Any = torch._C._autograd._unsafe_set_version_counter  # noqa: SLF001 -- as FSDP does
_holders: Any = getattr(torch.Tensor, "_use_count", None)


def in_graphs(parameters: Iterable[torch.Tensor]) -> bool:
    """
    Tell whether anything of torch holds any of some parameters: graphs do as long as they live, Python's references do not count.

    Example:
        >>> weight, x = torch.nn.Parameter(torch.ones(2), requires_grad=False), torch.ones(2, requires_grad=True)
        >>> in_graphs([weight])
        False
        >>> product = x * weight
        >>> in_graphs([weight])
        True
    """
    return _holders is None or max(map(_holders, parameters), default=1) > 1


def set_versions(parameters: Sequence[torch.Tensor], versions: Sequence[int]) -> None:
    """Give parameters their versions; none of them may be an inference tensor, which has none."""
    try:
        _set(tuple(parameters), tuple(versions))
    except TypeError:  # before torch 2.6
        for parameter, version in zip(parameters, versions, strict=True):
            _set(parameter, version)


class Same:
    """
    A thing in a key, equal to itself alone; it lives as long as the key, so that no other has its identity meanwhile.

    Example:
        >>> one = [1.0]
        >>> Same(one) == Same(one), Same(one) == Same([1.0])
        (True, False)
    """

    def __init__(self, thing: object) -> None:
        """Hold it."""
        self._thing = thing

    def __eq__(self, other: object) -> bool:
        """Whether the other holds the very same."""
        return isinstance(other, Same) and self._thing is other._thing

    def __hash__(self) -> int:
        """As the identity, which stays as long as it is held."""
        return id(self._thing)


class Contents:
    """
    Numbers for what weights have held since graphs of them are alive.

    Example:
        >>> contents = Contents()
        >>> contents.begin("a mix")
        >>> other = contents.number("another")
        >>> contents.number("a mix"), contents.number("another") == other
        (0, True)
    """

    def __init__(self) -> None:
        """Start with none."""
        self._numbers: dict[Hashable, int] = {}
        self._last = 0

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._numbers)

    def begin(self, content: Hashable) -> None:
        """Begin with what is held: its number is 0."""
        self._numbers = {content: 0}

    def number(self, content: Hashable) -> int:
        """Return the number of a content, one that nothing had before where it is new."""
        if content not in self._numbers:
            self._last = self._last % (COUNT // _APART - 1) + 1
            self._numbers[content] = self._last * _APART
        return self._numbers[content]

    def forget(self) -> None:
        """Forget all: no graph is alive."""
        self._numbers.clear()
