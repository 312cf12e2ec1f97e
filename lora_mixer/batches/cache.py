"""Adapters in memory: no more than fit, those used last, and the next ones read from disk while a picture is made."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import warnings
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_mixer.demo import local_source
from lora_mixer.errors import SourceNotFoundError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from lora_mixer.mixer import LoraMixer

AHEAD = 8
"""The most adapters that are read ahead."""


@dataclass(frozen=True)
class AdapterPlace:
    """
    Where an adapter is.

    Attributes:
        source: A path, a repository, a URL that fsspec reads, or ``demo:NAME``.
        options: What ``load_lora_weights`` takes besides.
    """

    source: str
    options: Mapping[str, Any]

    @property
    def reading(self) -> dict[str, Any]:
        """The options that ``read_adapter`` takes, too."""
        return {
            key: value
            for key, value in self.options.items()
            if key not in ("component", "strict", "max_rank")
        }


@dataclass(frozen=True)
class _Prepared:
    source: str
    size: int
    hashes: Mapping[str, str]


class AdapterCache:
    """
    Keeps a mixer's adapters within bounds.

    Args:
        mixer: The mixer.
        places: Where adapters are, by name.
        most: The most adapters at once.
        most_bytes: The most bytes of them at once; what one picture needs is loaded even if it is more.
    """

    def __init__(
        self, mixer: LoraMixer, places: Mapping[str, AdapterPlace], most: int, most_bytes: float
    ) -> None:
        """Start with none."""
        self._mixer, self._places = mixer, places
        self._most, self._most_bytes = most, most_bytes
        self._sizes: OrderedDict[str, int] = OrderedDict()  # the one used last stands last
        self._hashes: dict[str, Mapping[str, str]] = {}
        self._coming: dict[str, Future[_Prepared]] = {}
        self._reader = ThreadPoolExecutor(1, "read-ahead")
        self._spool: Path | None = None
        self.loads = 0

    @property
    def resident(self) -> tuple[str, ...]:
        """What is in memory."""
        return tuple(self._sizes)

    def hashes(self, names: Sequence[str]) -> dict[str, Mapping[str, str]]:
        """Return the hashes of adapters that are in memory."""
        return {name: self._hashes[name] for name in names}

    def expect(self, names: Sequence[str]) -> None:
        """Begin to read what will be needed next."""
        # what another worker took instead is let go
        self._coming = {
            name: future for name, future in self._coming.items() if name in names or not future.done()
        }
        for name in names:
            wanted = name in self._places and name not in self._sizes and name not in self._coming
            if wanted and len(self._coming) < AHEAD:
                self._coming[name] = self._reader.submit(self._prepare, name)

    def want(self, names: Sequence[str]) -> None:
        """
        Load what is needed now, and let go of what was not used for longest.

        Raises:
            LoraMixerError: When an adapter cannot be read or does not fit.
        """
        for name in names:
            if name in self._sizes:
                self._sizes.move_to_end(name)
                continue
            coming = self._coming.pop(name, None)
            ready = self._prepare(name) if coming is None else coming.result()
            self._make_room(ready.size, names)
            place = self._places[name]
            with warnings.catch_warnings():
                warnings.simplefilter(
                    "ignore", UserWarning
                )  # partial matches were told when the plan was checked
                self._mixer.load_lora_weights(
                    ready.source, adapter_name=name, activate=False, **place.options
                )
            self._sizes[name] = ready.size
            self._hashes[name] = ready.hashes
            self.loads += 1

    def close(self) -> None:
        """Stop reading, and remove what was downloaded."""
        self._reader.shutdown(wait=True, cancel_futures=True)
        self.discard()

    def discard(self) -> None:
        """Remove what was downloaded, whoever may still read it: the process is about to end."""
        if self._spool is not None:
            shutil.rmtree(self._spool, ignore_errors=True)

    def _make_room(self, size: int, keep: Collection[str]) -> None:
        for name in list(self._sizes):
            full = len(self._sizes) >= self._most or sum(self._sizes.values()) + size > self._most_bytes
            if not full:
                return
            if name not in keep:
                self._mixer.delete_adapters(name)
                del self._sizes[name], self._hashes[name]
                if self._spool is not None:
                    self._spooled(name).unlink(missing_ok=True)

    def _prepare(self, name: str) -> _Prepared:
        """Read a file once: its hashes are known then, and the system has it in memory when it is loaded."""
        from lora_mixer.inspection import read_adapter

        place = self._places[name]
        source = self._fetch(name, place.source) if "://" in place.source else local_source(place.source)
        info = read_adapter(source, **place.reading)
        return _Prepared(source, info.bytes, dict(info.hashes))

    def _spooled(self, name: str) -> Path:
        import hashlib

        if self._spool is None:
            self._spool = Path(tempfile.mkdtemp(prefix="lora-mixer-"))
        return self._spool / f"{hashlib.sha256(name.encode()).hexdigest()[:24]}.safetensors"

    def _fetch(self, name: str, url: str) -> str:
        import fsspec

        place = self._spooled(name)
        try:
            filesystem, path = fsspec.core.url_to_fs(url)
            filesystem.get_file(path, str(place))
        except Exception as error:  # each kind of file system raises what it likes
            with contextlib.suppress(OSError):
                place.unlink(missing_ok=True)
            raise SourceNotFoundError(f"cannot be read: {error}", file=url) from error
        return str(place)
