"""
What users and managers leave beside an adapter: JSON with words and notes, texts, a preview picture.

Only regular files that stay in the folder are looked at: a stranger's archive may hold links to anything.
"""

from __future__ import annotations

import os
import stat
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from lora_mixer.sources._local import leads_out

if TYPE_CHECKING:
    from collections.abc import Mapping

TEXTS = (".json", ".civitai.info", ".metadata.json", ".cm-info.json", ".description.txt", ".txt")
"""Endings of sidecars that are read, the more trusted first: what the user wrote before what a site said."""
PICTURES = tuple(
    f"{middle}{kind}" for middle in (".preview", "") for kind in (".png", ".jpg", ".jpeg", ".webp", ".gif")
)
TEXT_BYTES_AT_MOST = 8 << 20  # a model page with all its example prompts is below 1 MiB
PICTURE_BYTES_AT_MOST = 64 << 20


@dataclass(frozen=True)
class Sidecars:
    """
    The sidecars of one file.

    Attributes:
        texts: Content by ending, in the order of :data:`TEXTS`.
        preview: The picture's path, or empty.
        problems: Files that are there and were not read, with the reason.

    Example:
        >>> Sidecars().texts
        {}
    """

    texts: Mapping[str, bytes] = field(default_factory=dict)
    preview: str = ""
    problems: Mapping[str, str] = field(default_factory=dict)


NONE = Sidecars()


def find_sidecars(weights: Path) -> Sidecars:
    """
    Read the sidecars of an adapter file.

    Args:
        weights: The adapter's file.

    Returns:
        What is there; a sidecar that cannot be read is a problem in it, never an error.

    Example:
        >>> from lora_mixer import demo_adapters
        >>> find_sidecars(demo_adapters()["ink"].path).problems
        {}
    """
    stem = os.fspath(weights.with_suffix(""))
    there = _listing(os.path.dirname(stem) or ".")  # noqa: PTH120 -- Path is slow for folders of thousands
    name = os.path.basename(stem)  # noqa: PTH119
    if there is not None and not any(f"{name}{ending}" in there for ending in (*TEXTS, *PICTURES)):
        return NONE
    texts: dict[str, bytes] = {}
    problems: dict[str, str] = {}
    for ending in TEXTS:
        path = f"{stem}{ending}"
        why = _refused(path, TEXT_BYTES_AT_MOST)
        if why is None:
            try:
                texts[ending] = _content(path)
            except OSError as error:
                why = f"cannot be read ({error.strerror or error})"
        if why:
            problems[Path(path).name] = why
    preview = ""
    for ending in PICTURES:
        path = f"{stem}{ending}"
        why = _refused(path, PICTURE_BYTES_AT_MOST)
        if why is None:
            preview = path
            break
        if why:
            problems[Path(path).name] = why
    return Sidecars(texts, preview, problems) if texts or preview or problems else NONE


_SETTLED = 3 * 10**9  # ns; file systems round times of change to 2 seconds at worst
_listings: OrderedDict[str, tuple[tuple[int, int, int], frozenset[str]]] = OrderedDict()


def _listing(folder: str) -> frozenset[str] | None:
    """Return the names in a folder, listed once while it does not change; None where it has changed just now."""
    try:
        facts = os.stat(folder)  # noqa: PTH116
        stamp = (facts.st_dev, facts.st_ino, facts.st_mtime_ns)
        known = _listings.get(folder)
        if known is not None and known[0] == stamp:
            return known[1]
        if time.time_ns() - facts.st_mtime_ns < _SETTLED:
            return None
        names = frozenset(os.listdir(folder))  # noqa: PTH208
    except OSError:
        return None
    _listings[folder] = (stamp, names)
    while len(_listings) > 4:
        _listings.popitem(last=False)
    return names


def _content(path: str) -> bytes:
    with Path(path).open("rb") as stream:
        return stream.read(TEXT_BYTES_AT_MOST)


def _refused(path: str, limit: int) -> str | None:
    """Say why a file is not looked at; empty where there is none, None where it is fine."""
    try:
        facts = os.lstat(path)
        if stat.S_ISLNK(facts.st_mode):
            if leads_out(Path(path).parent, Path(path)):
                return "is a link that leads out of the folder"
            facts = os.stat(path)  # noqa: PTH116 -- beside the lstat above
    except (OSError, ValueError):
        return ""
    if not stat.S_ISREG(facts.st_mode):
        return "is not a regular file"
    if facts.st_size > limit:
        return f"has {facts.st_size} bytes, at most {limit} are read"
    return None
