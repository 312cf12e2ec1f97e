"""A mapping that cannot change: hashable, picklable, in the order given."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class FrozenMap(Mapping[K, V], Generic[K, V]):
    """
    A read-only mapping for frozen values.

    ``types.MappingProxyType`` would do, but it can be neither hashed nor pickled. Equality ignores the order.

    Example:
        >>> FrozenMap({"unet": 0.8})["unet"]
        0.8
    """

    __slots__ = ("_entries",)

    def __init__(self, entries: Mapping[K, V] | Iterable[tuple[K, V]] = ()) -> None:
        """
        Copy the entries.

        Args:
            entries: A mapping or pairs; of a key given twice the last one stays.
        """
        self._entries: dict[K, V] = dict(entries)

    def __getitem__(self, key: K) -> V:
        return self._entries[key]

    # Mapping's own goes through an exception, and gains are asked for thousands of times.
    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def __iter__(self) -> Iterator[K]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __hash__(self) -> int:
        return hash(frozenset(self._entries.items()))

    def __repr__(self) -> str:
        return repr(self._entries)
