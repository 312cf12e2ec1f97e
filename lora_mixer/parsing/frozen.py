"""Mappings that cannot change: one that is hashable and picklable, one that is filled at the first look."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
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


class LazyMap(Mapping[K, V], Generic[K, V]):
    """
    A read-only mapping that is worked out at the first look.

    Args:
        load: Works it out; picklable where the mapping is to be.

    Example:
        >>> LazyMap(lambda: {"a": 1})["a"]
        1
    """

    def __init__(self, load: Callable[[], Mapping[K, V]]) -> None:
        """Take what works it out; nothing is read yet."""
        self._load = load
        self._table: Mapping[K, V] | None = None

    def _all(self) -> Mapping[K, V]:
        if self._table is None:
            self._table = self._load()
        return self._table

    @property
    def known(self) -> Mapping[K, V]:
        """What has been worked out: all of it, or nothing; this works nothing out."""
        return {} if self._table is None else self._table

    def __getitem__(self, key: K) -> V:
        """Return one value."""
        return self._all()[key]

    def __iter__(self) -> Iterator[K]:
        """Iterate over the keys."""
        return iter(self._all())

    def __len__(self) -> int:
        """Count the entries."""
        return len(self._all())

    def __repr__(self) -> str:
        """Show the entries if they are known already, without working them out."""
        return f"{type(self).__name__}({'not computed yet' if self._table is None else dict(self._table)})"
