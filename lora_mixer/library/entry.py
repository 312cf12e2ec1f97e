"""What the library tells of an adapter file: plain values, read from the index."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lora_mixer.parsing.frozen import FrozenMap

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


@dataclass(frozen=True)
class Entry:
    """
    One adapter file of a library.

    Attributes:
        id: Opaque letters that stay the same when the file is moved; no path can be made of them.
        name: The file's name without its ending (a PEFT folder's name).
        path: Where the file lies, or lay when it was last seen.
        root: The library's folder that it is in.
        folder: The folder below that one, with ``/``; empty for the top.
        base: The base family that it was made for, such as ``SDXL``.
        format: The layout of its keys.
        algorithms: Names of the algorithms in it.
        ranks: The different ranks, ascending.
        bytes: The file's size.
        mtime: When it was last changed, in seconds since 1970.
        title: What its author called it.
        trigger_words: Words that call it up; the user's own where there are any.
        tags: The most frequent tags of the training pictures.
        notes: The user's, else those that came with it.
        weight: The preferred weight: the user's, else what came with it; None where nobody said.
        negative_text: What belongs into the negative prompt.
        preview: The picture beside it, or None.
        hashes: The hashes that are known so far, by kind; ``declared`` is what the header says of itself.
        uses: How often :meth:`Library.used` was called for it.
        offline: Whether it was not there at the last look: its disk or folder is away, or it was deleted.
        problem: Why it cannot be used, or an empty text.
        favourite: Whether the user marked it.
        labels: The user's own words to sort it by.
        explicit: Whether its preview is not for everybody's eyes: as the user says, else what came with the file.

    Example:
        >>> from pathlib import Path
        >>> entry = Entry("7f3a", "ink", Path("styles/ink.safetensors"), Path("styles"), base="SDXL", ranks=(8,))
        >>> entry.base, entry.weight, entry.offline
        ('SDXL', None, False)
    """

    id: str
    name: str
    path: Path
    root: Path
    folder: str = ""
    base: str = "unknown"
    format: str = ""
    algorithms: tuple[str, ...] = ()
    ranks: tuple[int, ...] = ()
    bytes: int = 0
    mtime: float = 0.0
    title: str = ""
    trigger_words: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    notes: str = ""
    weight: float | None = None
    negative_text: str = ""
    preview: Path | None = None
    hashes: Mapping[str, str] = field(default_factory=FrozenMap)
    uses: int = 0
    offline: bool = False
    problem: str = ""
    favourite: bool = False
    labels: tuple[str, ...] = ()
    explicit: bool = False


@dataclass(frozen=True)
class Page:
    """
    A part of what a search found.

    Attributes:
        entries: The entries of this page.
        total: How many were found in all.
        page: The page's number, from 0.
        pages: How many pages there are, at least 1.
        read_as: The words that were searched for in place of those asked for, which nothing has; else empty.

    Example:
        >>> Page((), total=0, page=0, pages=1).entries
        ()
    """

    entries: tuple[Entry, ...]
    total: int
    page: int
    pages: int
    read_as: str = ""


@dataclass(frozen=True)
class Refreshed:
    """
    What a refresh did.

    Attributes:
        added: Files that were new.
        changed: Files that were read again because they had changed, or came back.
        moved: Files that were found in another place.
        unchanged: Files that were as the index says.
        offline: Files of these folders that are not there now.
        unreadable: Files among the added and changed that cannot be used, with the reason in their entries.
        notes: Folders that could not be listed, and the like.

    Example:
        >>> Refreshed(added=2, unchanged=5, offline=1).total
        7
    """

    added: int = 0
    changed: int = 0
    moved: int = 0
    unchanged: int = 0
    offline: int = 0
    unreadable: int = 0
    notes: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """How many files are there now."""
        return self.added + self.changed + self.moved + self.unchanged
