"""A source opened for reading: its bytes, its hashes, and the rules of scale that its configuration gives."""

from __future__ import annotations

import io
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from lora_mixer import hashes
from lora_mixer.errors import SourceError
from lora_mixer.formats.header import is_safetensors, open_weights, stamp
from lora_mixer.formats.peft_config import header_rules, refuse_unsupported, scale_rule

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lora_mixer.formats.peft_config import ScaleRule
    from lora_mixer.sources import AdapterSource

_PICKLES = {".pt", ".pth", ".bin", ".ckpt"}


@contextmanager
def stream_of(weights: Path | bytes, label: str) -> Iterator[IO[bytes]]:
    """
    Open a file or bytes.

    Raises:
        SourceError: When the system cannot read on, or there is not enough memory.
    """
    with open_weights(weights, label) if isinstance(weights, Path) else io.BytesIO(weights) as stream:
        yield stream


def is_pickle_file(weights: Path | bytes, stream: IO[bytes]) -> bool:
    """Say whether a file is to be unpickled: its name says so, and its content is nothing safer."""
    return isinstance(weights, Path) and weights.suffix.lower() in _PICKLES and not is_safetensors(stream)


def hashes_of(source: AdapterSource, stream: IO[bytes], data_start: int | None) -> hashes.Hashes:
    """Return the hashes of a source, to be computed when they are asked for."""
    weights = source.weights
    assert not isinstance(weights, Mapping)  # noqa: S101 -- streams are of files and bytes
    file = _FileHashes(weights, data_start, source.label, stamp(stream))
    return hashes.Hashes(file, file.sampled)


@dataclass(frozen=True)
class _FileHashes:
    """Compute the hashes of a file as it was read; a value, so that descriptions can be pickled."""

    weights: Path | bytes
    data_start: int | None
    label: str
    stamp: tuple[int, int] | None

    def __call__(self) -> dict[str, str]:
        with self._opened() as stream:
            return hashes.compute(stream, self.data_start)

    def sampled(self) -> str:
        """Digest a little of the file."""
        with self._opened() as stream:
            return hashes.sample(stream, self.data_start)

    @contextmanager
    def _opened(self) -> Iterator[IO[bytes]]:
        with stream_of(self.weights, self.label) as stream:
            if stamp(stream) != self.stamp:
                raise SourceError(
                    "the file has changed since it was read, so its hashes would be those of another",
                    file=self.label,
                )
            yield stream


def scale_rules(source: AdapterSource, metadata: Mapping[str, str]) -> Mapping[str | None, ScaleRule]:
    """
    Return the rule of scale of each component, that of None for all others.

    Raises:
        UnsupportedAdapterError: When a configuration asks for what cannot be applied.
    """
    if source.config is not None:
        refuse_unsupported(source.config, source.label)
    rules = header_rules(metadata, source.label)
    if source.config is not None:
        rules = {None: scale_rule(source.config, source.label), **rules}
    return rules
