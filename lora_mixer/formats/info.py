"""The description of an adapter from its header alone, without torch, where that can be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

from lora_mixer.formats.describing import describe_adapter, survey
from lora_mixer.formats.header import read_at, read_header
from lora_mixer.formats.opening import hashes_of, is_pickle_file, scale_rules, stream_of

if TYPE_CHECKING:
    from lora_mixer.adapter import AdapterInfo
    from lora_mixer.sources import AdapterSource


def read_info(source: AdapterSource) -> AdapterInfo:
    """
    Describe an adapter, from its header alone where that can be.

    Raises:
        FormatError: As :func:`lora_mixer.formats.reader.read_source` does.
    """
    weights = source.weights
    if isinstance(weights, Mapping) or source.parts:
        return _in_full(source)
    with stream_of(weights, source.label) as stream:
        if is_pickle_file(weights, stream):
            return _in_full(source)
        header = read_header(stream, source.label)
        rules = scale_rules(source, header.metadata)
        outline = survey(header, _Slices(stream, source.label), rules)
        if outline is None:
            from lora_mixer.formats.reader import read_outline

            return read_outline(source, stream, header)
        return describe_adapter(
            source,
            None,
            outline.modules,
            layouts=outline.layouts,
            dtypes=outline.dtypes,
            size=outline.size,
            embeddings=(),
            metadata=header.metadata,
            hashes=hashes_of(source, stream, header.data_start),
        )


def _in_full(source: AdapterSource) -> AdapterInfo:
    from lora_mixer.formats.reader import read_source  # and torch with it, for a second

    return read_source(source).info


@dataclass(frozen=True)
class _Slices:
    """The bytes of a file, of which only those that are asked for are read."""

    stream: IO[bytes]
    label: str

    def __getitem__(self, place: slice) -> bytes:
        return read_at(self.stream, place.start, place.stop - place.start, self.label)
