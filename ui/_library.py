"""A thin stand-in for ``lora_mixer.library``, behind the same interface."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_mixer import LoraMixerError, Mix, read_adapter
from lora_mixer.binding.components import base_of, find_components


@dataclass(frozen=True)
class Entry:
    """An adapter of the library."""

    id: str
    name: str
    path: Path
    folder: Path
    base: str = ""
    algorithms: tuple[str, ...] = ()
    ranks: tuple[int, ...] = ()
    bytes: int = 0
    mtime_ns: int = 0
    trigger_words: tuple[str, ...] = ()
    title: str = ""
    tags: tuple[str, ...] = ()
    preview: Path | None = None
    notes: str = ""
    weight: float | None = None
    offline: bool = False
    problem: str = ""
    metadata: Any = field(default_factory=dict)


@dataclass(frozen=True)
class Page:
    """A page of entries."""

    entries: tuple[Entry, ...]
    total: int


class Library:
    """Folders of adapters."""

    def __init__(self, folders: Any, index: Any = None) -> None:
        self.folders = [Path(f) for f in folders]
        self._entries: dict[str, Entry] = {}
        self._user: dict[str, dict[str, Any]] = {}
        self._lock = threading.RLock()
        self.refresh()

    def refresh(self, progress: Any = None) -> None:
        found = {}
        for folder in self.folders:
            paths = sorted(folder.glob("*.safetensors")) + sorted(p.parent for p in folder.glob("*/adapter_config.json"))
            for path in paths:
                id_ = hashlib.sha256(str(path).encode()).hexdigest()[:24]
                previews = [p for p in (path.with_suffix(".preview.webp"), Path(f"{path}.preview.webp")) if p.exists()]
                common = {
                    "id": id_, "name": path.stem, "path": path, "folder": folder, "mtime_ns": path.stat().st_mtime_ns,
                    "preview": previews[0] if previews else None, "title": path.stem,
                    "bytes": path.stat().st_size,
                }
                try:
                    info = read_adapter(path)
                    common |= {
                        "base": info.base, "algorithms": info.algorithms, "ranks": info.ranks,
                        "trigger_words": info.trigger_words, "metadata": info.metadata,
                    }
                except LoraMixerError as error:
                    common["problem"] = str(error)
                found[id_] = Entry(**common, **self._user.get(id_, {}))
        self._entries = found

    def search(self, text="", base=None, algorithm=None, folder=None, sort="name", descending=False, page=0, page_size=60):
        rows = [e for e in self._entries.values() if text.lower() in (e.name + " ".join(e.trigger_words)).lower()]
        rows = [e for e in rows if base in (None, e.base)]
        key = {"name": lambda e: e.name, "date": lambda e: e.mtime_ns, "size": lambda e: e.bytes,
               "rank": lambda e: max(e.ranks, default=0), "uses": lambda e: 0}[sort]
        rows.sort(key=key, reverse=descending)
        return Page(tuple(rows[page * page_size : (page + 1) * page_size]), len(rows))

    def bases(self):
        return sorted({e.base for e in self._entries.values() if e.base})

    def get(self, id_):
        return self._entries.get(id_)

    def find(self, name):
        return next((e for e in self._entries.values() if e.name == name), None)

    def hashes(self, id_):
        return dict(read_adapter(self._entries[id_].path).hashes)

    def thumbnail(self, id_, side):
        return self._entries[id_].preview

    def set_default(self, id_, **values):
        self._user.setdefault(id_, {}).update(values)
        self.refresh()

    def compatible(self, entry, base):
        ok = entry.base in (base, "", "unknown")
        return ok, "" if ok else f"made for {entry.base}; the pipeline is {base}"

    def add(self, source, name):
        target = self.folders[0] / Path(name).name
        spare = target.with_name(f".{secrets.token_hex(4)}")
        data = Path(source).read_bytes()
        spare.write_bytes(data)
        try:
            read_adapter(data and __import__("io").BytesIO(data))
            os.link(spare, target)
        finally:
            spare.unlink()
        self.refresh()
        return next(e for e in self._entries.values() if e.path == target)

    def add_from_hub(self, repo_id, weight_name=None):
        raise LoraMixerError("no Hub in the stand-in")


def base_family(pipe: Any) -> str:
    found = base_of(find_components(pipe))
    name, _, rest = found.partition(" (")
    return f"UNet with {rest.rstrip(')')}" if name == "a UNet" else name


def strengths(source: Any) -> dict[str, float]:
    return {"down_blocks.0": 0.5, "mid_block": 0.7, "up_blocks.1": 1.0}


class MixBook:
    """Saved mixes."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def _all(self) -> dict[str, str]:
        return json.loads(self._path.read_text()) if self._path.exists() else {}

    def _put(self, table: dict[str, str]) -> None:
        spare = self._path.with_suffix(".tmp")
        spare.write_text(json.dumps(table))
        spare.replace(self._path)

    def names(self) -> list[str]:
        return sorted(self._all())

    def save(self, name: str, mix: Any) -> None:
        self._put({**self._all(), name: Mix.of(mix).to_text()})

    def load(self, name: str) -> Mix:
        return Mix.of(self._all()[name])

    def delete(self, name: str) -> None:
        self._put({k: v for k, v in self._all().items() if k != name})
