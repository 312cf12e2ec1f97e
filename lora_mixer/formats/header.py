"""
Headers of safetensors files, read without trust and without torch.

A header is checked completely before anything is allocated, so a file that claims a terabyte costs
nothing. Layout: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import io
import json
import math
import os
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from lora_mixer.errors import (
    CorruptFileError,
    LoraMixerError,
    NotAnAdapterError,
    SourceError,
    SourceNotFoundError,
)
from lora_mixer.formats.signatures import is_pickle, other_kind
from lora_mixer.parsing.files import open_regular
from lora_mixer.parsing.json_text import loose_json, loose_json_at
from lora_mixer.problem import Remedy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

HEADER_LIMIT = 100_000_000
"""Largest header in bytes; the same bound as the safetensors library keeps."""

ITEM_BYTES = {
    "float64": 8,
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint8": 1,
    "uint16": 2,
    "uint32": 4,
    "uint64": 8,
    "complex64": 8,
    "bool": 1,
}
"""Bytes of a number, by the name that torch has for its dtype."""
_LONGEST_KEY = 200
"""Letters of a key in an error."""
_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "U16": "uint16",
    "U32": "uint32",
    "U64": "uint64",
    "C64": "complex64",
    "BOOL": "bool",
}
"""Names of dtypes in headers, and torch's."""
_QUICK = {name: (dtype, ITEM_BYTES[dtype]) for name, dtype in _DTYPES.items()}
_DIMENSIONS_AT_MOST = 64
_ELEMENTS_AT_MOST = 1 << 60  # what a tensor's sizes and strides can count, also beside a size of 0


class TensorSpec(NamedTuple):
    """Where one tensor lies: its dtype by torch's name, shape and byte range in the data section."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


_new_spec: Callable[[tuple[object, ...]], TensorSpec] = partial(
    tuple.__new__, TensorSpec
)  # no Python call for each


@dataclass(frozen=True)
class Header:
    """A safetensors header: every tensor's place, the free-form metadata, where data begin, and the file's stamp as it was read."""

    tensors: Mapping[str, TensorSpec]
    metadata: Mapping[str, str]
    data_start: int
    data_bytes: int
    stamp: tuple[int, int] | None = None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any] | TensorSpec:
    """
    Take an object of a header: no key may stand twice.

    Nearly all are entries that are plainly right, in the order in which they are always written. Those become a
    :class:`TensorSpec` at once; the others are judged one by one, later.
    """
    try:
        (one, dtype), (two, shape), (three, (start, end)) = pairs
        kind, size = _QUICK[dtype]
        if one == "dtype" and two == "shape" and three == "data_offsets" and type(shape) is list:
            for n in shape:
                # bool is an int as well, and no size
                size *= n if type(n) is int and n > 0 else 0
            # that positions are within the file is seen when all are there
            if (
                size
                and end - start == size
                and type(start) is type(end) is int
                and start >= 0
                and len(shape) <= 5
            ):
                return _new_spec((kind, tuple(shape), start, end))
    except (KeyError, TypeError, ValueError):  # any other object
        pass
    table = dict(pairs)
    if len(table) != len(pairs):
        ((name, _),) = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {name!r} stands twice")
    return table


def _spec(key: str, entry: Any, label: str) -> TensorSpec:
    if type(entry) is TensorSpec:
        return entry
    try:
        dtype = _DTYPES[entry["dtype"]]
        shape, (start, end) = entry["shape"], entry["data_offsets"]
        numbers = [start, end, *shape]
    except (KeyError, TypeError, ValueError):
        raise _bad_entry(key, entry, label) from None
    if (
        type(shape) is not list
        or {*map(type, numbers)} != {int}
        or min(numbers) < 0
        or len(shape) > _DIMENSIONS_AT_MOST
        or math.prod(n or 1 for n in shape) > _ELEMENTS_AT_MOST
        or end - start != math.prod(shape) * ITEM_BYTES[dtype]
    ):
        raise _bad_entry(key, entry, label)
    return TensorSpec(dtype, tuple(shape), start, end)


def _bad_entry(key: str, entry: Any, label: str) -> CorruptFileError:
    """Say what is wrong with a header's entry."""

    def bad(what: str) -> CorruptFileError:
        return CorruptFileError(
            f"the header entry {what}; download the file again", file=label, key=key[:_LONGEST_KEY]
        )

    if not isinstance(entry, dict):
        return bad(f"is {type(entry).__name__}, not an object")
    dtype = _DTYPES.get(str(entry.get("dtype")))
    if dtype is None:
        return bad(f"has dtype {entry.get('dtype')!r}; known are {', '.join(_DTYPES)}")
    shape, offsets = entry.get("shape"), entry.get("data_offsets")
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
        return bad(f"has shape {shape!r}, not a list of sizes")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(n) is int for n in offsets):
        return bad(f"has data_offsets {offsets!r}, not two positions")
    if len(shape) > _DIMENSIONS_AT_MOST or math.prod(n or 1 for n in shape) > _ELEMENTS_AT_MOST:
        return bad(f"has a shape of {len(shape)} sizes that no tensor can have, at most {max(shape)}")
    expected = math.prod(shape) * ITEM_BYTES[dtype]
    return bad(f"has shape {shape} of {entry['dtype']}, {expected} bytes, but offsets {offsets}")


_METADATA = '{"__metadata__":'
_KEPT_AT_MOST = 1 << 20
"""Letters of a header that is kept; those of a whole SDXL model have 300,000."""


@lru_cache(maxsize=8)  # most files of a person are of a few trainers, with one list of tensors for each
def _known_table(text: str) -> tuple[Mapping[str, TensorSpec], int]:
    """
    Read the tensors of a header that is plainly right, and where they end.

    Raises:
        ValueError: When anything has to be judged.
    """
    table = loose_json(text, _object)
    if not isinstance(table, dict) or {*map(type, table.values())} != {TensorSpec}:
        raise ValueError
    return table, _end_of(table, "")


def _known_parts(raw: bytes) -> tuple[dict[str, str], tuple[Mapping[str, TensorSpec], int]] | None:
    """
    Return the metadata of a header and its tensors, which files of one trainer have in common; None where it has to be judged.

    Metadata stand in front, as all programs write them, and nothing is spelled by escapes that would hide a name.
    """
    try:
        text = raw.decode()
        if len(text) > _KEPT_AT_MOST or "\\u" in text:
            return None
        metadata: dict[str, str] = {}
        if text.startswith(_METADATA):
            metadata, end = loose_json_at(text, len(_METADATA), _object)
            if type(metadata) is not dict or not all(type(value) is str for value in metadata.values()):
                return None
            if text[end : end + 1] != ",":
                return None
            text = "{" + text[end + 1 :]
        return None if '"__metadata__"' in text else (metadata, _known_table(text))
    except (ValueError, RecursionError, CorruptFileError):
        return None


def parse_header(raw: bytes, total: int, label: str) -> tuple[Mapping[str, TensorSpec], dict[str, str]]:
    """
    Check the JSON text of a header against the size of the data section.

    Args:
        raw: The header's bytes, without the 8 bytes of its length.
        total: Size of the data section in bytes.
        label: What to call the file in messages.

    Raises:
        CorruptFileError: On anything that the format does not allow.
    """
    known = _known_parts(raw)
    if known is not None and known[1][1] == total:
        return known[1][0], known[0]
    try:
        table = loose_json(raw.decode(), _object)
        if b"\\u" in raw:  # half a surrogate pair is a name that cannot be printed
            json.dumps(table, ensure_ascii=False, default=str).encode()
    except (ValueError, RecursionError) as error:
        raise CorruptFileError(
            f"the header is not valid JSON ({error}); the file is damaged, download it again", file=label
        ) from None
    if not isinstance(table, dict):
        raise CorruptFileError(f"the header is a JSON {type(table).__name__}, expected an object", file=label)
    metadata = table.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata
    if not isinstance(metadata, dict):
        raise CorruptFileError(
            f"__metadata__ is a {type(metadata).__name__}, expected an object of strings", file=label
        )
    specs = table
    if {*map(type, table.values())} != {TensorSpec}:
        specs = {key: _spec(key, entry, label) for key, entry in table.items()}
    position = _end_of(specs, label)
    if position != total:
        what = "truncated" if position > total else "longer than its header says"
        raise CorruptFileError(
            f"{what}: the header lists {position} bytes of tensors, the file has {total}", file=label
        )
    return specs, {k: v if isinstance(v, str) else json.dumps(v, default=str) for k, v in metadata.items()}


def _end_of(specs: Mapping[str, TensorSpec], label: str) -> int:
    """Return the position after the last tensor; there is no gap between them."""
    position = 0
    for _, _, start, end in specs.values():
        if start != position:
            break
        position = end
    else:  # they stand in the order of their data, as nearly always
        return position
    position = 0
    for start, end, key in sorted([(spec[2], spec[3], key) for key, spec in specs.items()]):
        if start != position:
            raise CorruptFileError(
                f"starts at byte {start}, expected {position}: tensors overlap or leave a gap",
                file=label,
                key=key[:_LONGEST_KEY],
            )
        position = end
    return position


def stamp(stream: IO[bytes]) -> tuple[int, int] | None:
    """Return a file's size and time of change, by which another file of its name is told apart; None for bytes in memory."""
    if isinstance(stream, io.BytesIO):
        return None
    facts = os.fstat(stream.fileno())
    return facts.st_size, facts.st_mtime_ns


def refuse_changed(stream: IO[bytes], before: tuple[int, int] | None, label: str) -> None:
    """
    Refuse a file that another program has written to since it was stamped: what was read may be of both.

    Raises:
        CorruptFileError: When its stamp is another.
    """
    if stamp(stream) != before:
        raise CorruptFileError(
            "the file changed while it was read; wait until the program that writes it is done", file=label
        )


def read_header(stream: IO[bytes], label: str) -> Header:
    """
    Read and check the header of a safetensors stream; the stream is left at the first data byte.

    Raises:
        CorruptFileError: On a damaged or hostile file.
        NotAnAdapterError: When the stream is empty or clearly of another kind (pickle, zip, HTML).
    """
    before = stamp(stream)
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    if size == 0:
        raise NotAnAdapterError(
            "the file is empty (0 bytes); the download was probably interrupted", file=label
        )
    first = stream.read(8)
    length = int.from_bytes(first, "little")
    if len(first) < 8 or length > HEADER_LIMIT or 8 + length > size:
        raise _foreign(stream, first, size, label)
    total = size - 8 - length
    raw = stream.read(length)
    if (
        raw[:1] != b"{" and (kind := other_kind(stream)) is not None
    ):  # such as gzip, which begins with small numbers
        raise NotAnAdapterError(f"not safetensors but {kind}", file=label)
    specs, metadata = parse_header(raw, total, label)
    return Header(specs, metadata, 8 + length, total, before)


def is_safetensors(stream: IO[bytes]) -> bool:
    """Say whether a stream begins as safetensors files do; it is left at its start."""
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    first = stream.read(9)
    stream.seek(0)
    return len(first) == 9 and first[8:] == b"{" and 8 + int.from_bytes(first[:8], "little") <= size


def _foreign(stream: IO[bytes], first: bytes, size: int, label: str) -> CorruptFileError | NotAnAdapterError:
    """Say what a stream is whose first 8 bytes are not a possible header length."""
    kind = other_kind(stream)
    if kind is not None:
        return NotAnAdapterError(f"not safetensors but {kind}", file=label)
    if is_pickle(first):
        return NotAnAdapterError(
            "a PyTorch pickle, not safetensors",
            file=label,
            remedy=Remedy(
                "if you trust where it is from, name it .pt and pass allow_pickle=True",
                "if you trust where it is from, name it .pt and give --allow-pickle",
                "the page takes safetensors only",
            ),
        )
    return CorruptFileError(
        f"not a safetensors file, or cut short in a download: its first 8 bytes claim a header of "
        f"{int.from_bytes(first, 'little')} bytes, the file has {size} (limit {HEADER_LIMIT})",
        file=label,
    )


@contextmanager
def open_weights(path: Path, label: str) -> Iterator[IO[bytes]]:
    """
    Open a file for reading, with this package's errors, those of reading on in the block included.

    Raises:
        SourceNotFoundError: It is not there, or no regular file.
        SourceError: The system cannot read on.
    """
    try:
        stream = open_regular(path)
    except FileNotFoundError:
        raise SourceNotFoundError("there is no such file", file=label) from None
    except OSError as error:
        raise SourceNotFoundError(f"cannot be read ({error.strerror or error})", file=label) from error
    except ValueError as error:
        raise SourceNotFoundError(f"is not a regular file ({error})", file=label) from error
    with stream:
        try:
            yield stream
        except OSError as error:
            if isinstance(error, LoraMixerError):
                raise
            raise SourceError(f"cannot be read ({error.strerror or error})", file=label) from error


def read_at(stream: IO[bytes], start: int, size: int, label: str) -> bytes:
    """
    Read some bytes.

    Raises:
        CorruptFileError: When they are not there any more.
    """
    stream.seek(start)
    raw = stream.read(size)
    if len(raw) != size:
        raise CorruptFileError(f"truncated while reading: {len(raw)} of {size} bytes came", file=label)
    return raw
