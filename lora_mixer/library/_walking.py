"""Which files lie in a folder, and what tells that one of them has changed: names, sizes and times, no content."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from lora_mixer.sources import CONFIG_NAME, PICTURES, SAFETENSORS_SUFFIX, TEXTS, candidates

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_SIDECARS = (*TEXTS, *PICTURES)
_DEPTH_AT_MOST = 32
_ENDING = re.compile(r"\.[A-Za-z][A-Za-z0-9]{0,9}$")
"""How names of files end; what a link leads to that leads nowhere is told by its name alone."""


class _Broken(Enum):
    """What is left out of a folder."""

    ADAPTERS = "links to adapters lead nowhere and are left out"
    FOLDERS = "links to folders lead nowhere and are left out"
    NO_FILES = "entries are named as adapters and are no files (pipes, sockets, devices), and are left out"
    DEEP = f"folders lie more than {_DEPTH_AT_MOST} levels deep and are left out"


_WAYS_OUT = {
    _Broken.ADAPTERS: "delete them, or bring back what they lead to",
    _Broken.FOLDERS: "delete them, or bring back what they lead to",
    _Broken.NO_FILES: "delete or rename them",
    _Broken.DEEP: "give the library one of them as a folder of its own",
}


@dataclass(frozen=True)
class WalkedFile:
    """
    One file that may be an adapter.

    Attributes:
        path: Where it lies.
        folder: Its folder below the root, with ``/``.
        size: In bytes.
        mtime_ns: When it was last changed.
        beside: A digest of the names, sizes and times of the files that belong to it.
        preview: The name of its picture, or an empty text.
    """

    path: str
    folder: str
    size: int
    mtime_ns: int
    beside: str
    preview: str


def walk(root: Path, problems: list[str]) -> Iterator[WalkedFile]:
    """
    Yield the files below a folder that may be adapters.

    Hidden files and folders are left out, and so are links to folders and links to files outside of the root.

    Args:
        root: The folder.
        problems: Where it is noted that a folder could not be listed.
    """
    waiting = [("", os.fspath(root))]
    links: list[str] = []
    broken: dict[_Broken, list[str]] = {kind: [] for kind in _Broken}
    real = os.path.realpath(root)
    while waiting:
        folder, path = waiting.pop()
        facts: dict[str, os.stat_result] = {}
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    if entry.name.startswith(".") or _is_left_out(entry, real, links, broken):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        if folder.count("/") < _DEPTH_AT_MOST:
                            waiting.append((f"{folder}/{entry.name}".lstrip("/"), entry.path))
                        else:
                            broken[_Broken.DEEP].append(entry.path)
                    elif found := _facts(entry, real):
                        facts[entry.name] = found
        except OSError as error:
            problems.append(f"{path}: cannot be listed ({error.strerror or error})")
            continue
        for name in candidates(facts, (SAFETENSORS_SUFFIX,)):
            yield _walked(path, folder, name, facts)
    problems.extend(_of_links(root, links))
    problems.extend(_of_broken(root, broken))


def _of_links(root: Path, links: list[str]) -> list[str]:
    """Say what links were left out, and what to do about them."""
    if not links:
        return []
    where = os.path.dirname(os.path.realpath(links[0]))  # noqa: PTH120 -- as the rest of this walk
    return [
        (
            f"{root}: {len(links)} links lead to files or folders outside of it and are left out, such as {links[0]}; "
            f"give the library the folder that they lead to ({where}) as one of its own"
        )
    ]


def _of_broken(root: Path, broken: Mapping[_Broken, list[str]]) -> list[str]:
    """Say what else was left out, and what to do about it."""
    return [
        f"{root}: {len(paths)} {what.value}, such as {min(paths)}; {_WAYS_OUT[what]}"
        for what, paths in broken.items()
        if paths
    ]


def _is_left_out(
    entry: os.DirEntry[str], real_root: str, links: list[str], broken: Mapping[_Broken, list[str]]
) -> bool:
    """Say whether this is nothing to be read or gone into, and note which kind."""
    if _leads_out(entry, real_root, links):
        return True
    kind = _nothing(entry)
    if kind is not None:
        broken[kind].append(entry.path)
    return kind is not None


def _leads_out(entry: os.DirEntry[str], real_root: str, links: list[str]) -> bool:
    """Say whether this is a link to an adapter or a folder that lies elsewhere, and note it."""
    if not entry.is_symlink():
        return False
    try:
        wanted = entry.is_dir() or entry.name.lower().endswith(SAFETENSORS_SUFFIX)
        if not wanted or within(entry.path, real_root):
            return False
    except OSError:
        return False
    links.append(entry.path)
    return True


def _nothing(entry: os.DirEntry[str]) -> _Broken | None:
    """Say as what this is named as an adapter, or as folders are, and is none."""
    is_adapter = entry.name.lower().endswith(SAFETENSORS_SUFFIX)
    if not is_adapter and (not entry.is_symlink() or _ENDING.search(entry.name)):
        return None
    try:
        mode = entry.stat().st_mode
    except OSError:
        return (_Broken.ADAPTERS if is_adapter else _Broken.FOLDERS) if entry.is_symlink() else None
    return None if stat.S_ISREG(mode) or stat.S_ISDIR(mode) or not is_adapter else _Broken.NO_FILES


def _facts(entry: os.DirEntry[str], real_root: str) -> os.stat_result | None:
    try:
        if entry.is_symlink() and not within(entry.path, real_root):
            return None
        return entry.stat() if entry.is_file() else None
    except OSError:  # a link to nowhere, or gone in between
        return None


def within(path: str | os.PathLike[str], root: str | os.PathLike[str]) -> bool:
    """Tell whether a path, with all links followed, lies in a folder."""
    real, top = os.path.realpath(path), os.path.realpath(root)
    return real == top or real.startswith(top.rstrip(os.sep) + os.sep)


def _walked(path: str, folder: str, name: str, facts: dict[str, os.stat_result]) -> WalkedFile:
    stem = name[: -len(SAFETENSORS_SUFFIX)]
    belonging = [f"{stem}{ending}" for ending in _SIDECARS] + [CONFIG_NAME]
    told = [(each, facts[each].st_size, facts[each].st_mtime_ns) for each in belonging if each in facts]
    preview = next((f"{stem}{ending}" for ending in PICTURES if f"{stem}{ending}" in facts), "")
    return WalkedFile(
        path=str(Path(path) / name),
        folder=folder,
        size=facts[name].st_size,
        mtime_ns=facts[name].st_mtime_ns,
        beside=hashlib.sha256(repr(told).encode("utf-8", "replace")).hexdigest()[:16] if told else "",
        preview=preview,
    )
