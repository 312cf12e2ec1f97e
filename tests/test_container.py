"""Bytes to tensors: equal to the safetensors library on good files, and nothing but a clear error on bad ones."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import struct

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_mixer import CorruptFileError, FormatError, NotAnAdapterError, read_adapter
from lora_mixer.formats.container import read_tensors
from lora_mixer.formats.header import HEADER_LIMIT, read_header
from tests.weights import same_bits

DTYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
    *(torch.uint16, torch.uint32, torch.uint64, torch.complex64),
)


def packed(header: object, data: bytes = b"", *, pad_to: int = 0) -> bytes:
    """Write a file with any header: an object as JSON, or bytes as they are."""
    raw = header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode()
    raw = raw.ljust(pad_to)
    return struct.pack("<Q", len(raw)) + raw + data


def entry(shape: list, start: object, end: object, dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def loaded(content: bytes) -> dict[str, torch.Tensor]:
    stream = io.BytesIO(content)
    return read_tensors(stream, read_header(stream, "a.safetensors"), "a.safetensors")


def refused(content: bytes, kind: type[FormatError] = CorruptFileError) -> str:
    """Assert that a file is refused before anything is allocated for its tensors, and give the message."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty", lambda *_, **__: pytest.fail("memory was asked for"))
        with pytest.raises(kind) as caught:
            loaded(content)
    assert type(caught.value) is kind
    assert str(caught.value).startswith("a.safetensors: ")
    return str(caught.value)


@st.composite
def tensors(draw):
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 5), max_size=4))
    size = int(torch.Size(shape).numel()) * dtype.itemsize
    raw = draw(st.binary(min_size=size, max_size=size))
    if dtype == torch.bool:
        raw = bytes(byte & 1 for byte in raw)
    flat = torch.frombuffer(bytearray(raw), dtype=dtype) if raw else torch.empty(0, dtype=dtype)
    return flat.reshape(shape)


names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(
    lambda n: n != "__metadata__"
)


@settings(max_examples=60)
@given(
    table=st.dictionaries(names, tensors(), max_size=6),
    metadata=st.none()
    | st.dictionaries(
        names, st.text(st.characters(exclude_categories=["Cs"]), max_size=9), min_size=1, max_size=3
    ),
)
def test_reads_what_the_safetensors_library_wrote_bit_for_bit(table, metadata):
    content = safetensors.torch.save(table, metadata)
    stream = io.BytesIO(content)

    header = read_header(stream, "a")
    ours = read_tensors(stream, header, "a")

    theirs = safetensors.torch.load(content)
    assert set(ours) == set(theirs)
    assert all(same_bits(ours[name], theirs[name]) for name in theirs)
    assert header.metadata == (metadata or {})


def test_tensors_at_odd_offsets_are_read():
    """The format does not ask for alignment, and other writers do not give any."""
    values = torch.tensor([1.5, -2.0])
    table = {"odd": entry([1], 0, 1, "U8"), "f": entry([2], 1, 9), "h": entry([1], 9, 11, "F16")}
    content = packed(
        table, b"\x07" + values.numpy().tobytes() + torch.tensor([0.25]).half().numpy().tobytes()
    )

    ours = loaded(content)

    assert ours["odd"].tolist() == [7]
    assert torch.equal(ours["f"], values)
    assert ours["h"].tolist() == [0.25]


@pytest.mark.parametrize(
    ("length", "looks_like"), [(0x4B50, b"PK"), (0x3C, b"<"), (0x80, b"\x80"), (0x7B, b"{")]
)
def test_a_header_whose_length_looks_like_another_format_still_reads(length, looks_like):
    content = packed({"a": entry([1], 0, 4)}, struct.pack("<f", 3.0), pad_to=length)
    assert content.startswith(looks_like)

    assert loaded(content)["a"].tolist() == [3.0]


def test_truncated_at_any_byte_is_refused():
    content = packed({"a": entry([2], 0, 8), "b": entry([1], 8, 12)}, bytes(12))
    assert set(loaded(content)) == {"a", "b"}

    for end in range(1, len(content)):
        refused(content[:end])


def test_one_byte_too_many_is_refused():
    assert "longer than its header says" in refused(packed({"a": entry([1], 0, 4)}, bytes(5)))


@pytest.mark.parametrize("length", [HEADER_LIMIT + 1, 2**40, 2**63, 2**64 - 1])
def test_a_header_length_beyond_the_limit_or_the_file_is_refused(length):
    assert f"claim a header of {length} bytes" in refused(struct.pack("<Q", length) + b'{"a":1}')


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"a": entry([2**38], 0, 2**40)}, "truncated: the header lists 1099511627776 bytes"),
        ({"a": entry([2], 0, 8), "b": entry([1], 4, 8)}, "overlap"),
        ({"a": entry([1], 0, 4), "b": entry([1], 0, 4)}, "overlap"),
        ({"a": entry([1], 4, 8)}, "gap"),
        ({"a": entry([1], 0, 4), "e": entry([0], 2, 2), "b": entry([1], 4, 8)}, "overlap"),
        ({"a": entry([1], -4, 0), "b": entry([2], 0, 8)}, "offsets"),
        ({"a": entry([1], 8, 4)}, "offsets"),
        ({"a": entry([2], 0, 4)}, "offsets"),
        ({"a": entry([1], 0, 4.0)}, "not two positions"),
        ({"a": entry([1], "0", 4)}, "not two positions"),
        ({"a": {"dtype": "F32", "shape": [1]}}, "not two positions"),
        ({"a": {"dtype": "F32", "data_offsets": [0, 4]}}, "not a list of sizes"),
        ({"a": entry([-1], 0, 4)}, "not a list of sizes"),
        ({"a": entry([1.0], 0, 4)}, "not a list of sizes"),
        ({"a": entry([True], 0, 4)}, "not a list of sizes"),
        ({"a": entry([2**64], 0, 8)}, "shape"),
        ({"a": entry([2**40, 2**40, 2**40], 0, 8)}, "shape"),
        ({"a": entry([0, 2**70], 0, 0), "b": entry([2], 0, 8)}, "shape"),
        ({"a": entry([0, 2**62, 2**62], 0, 0), "b": entry([2], 0, 8)}, "shape"),
        ({"a": entry([1] * 100_000, 0, 4), "b": entry([1], 4, 8)}, "shape"),
        ({"a": entry([1], 0, 4, "F33")}, "dtype 'F33'"),
        ({"a": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}}, "dtype"),
        ({"a": None}, "not an object"),
        ({"a": "F32"}, "not an object"),
        ([], "JSON list"),
        (3, "JSON int"),
        ({"__metadata__": ["x"]}, "__metadata__ is a list"),
        ({"__metadata__": []}, "__metadata__ is a list"),
        ({"__metadata__": ""}, "__metadata__ is a str"),
        ({"__metadata__": 0}, "__metadata__ is a int"),
    ],
)
def test_an_impossible_header_is_refused_before_memory_is_asked_for(table, message):
    assert message in refused(packed(table, bytes(8)))


@pytest.mark.parametrize(
    "raw",
    [
        b"not json",
        b"",
        b'{"a":',
        b"\xff\xfe\x00",
        '{"a": 1}'.encode("utf-16"),
        b"[" * 200_000,
        b'{"a":' * 100_000,
        b'{"n": ' + b"9" * 10_000 + b"}",
        json.dumps({"a": entry([1], 0, 4)})[:-1].encode()
        + b', "a": '
        + json.dumps(entry([1], 4, 8)).encode()
        + b"}",
        b'{"a": {"dtype": "F32", "dtype": "F16", "shape": [2], "data_offsets": [0, 8]}}',
        b'{"\\ud800": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}',
    ],
    ids=[
        "text",
        "nothing",
        "half",
        "bytes",
        "utf16",
        "lists",
        "objects",
        "digits",
        "twice",
        "twice inside",
        "surrogate",
    ],
)
def test_a_header_that_is_no_json_of_the_format_is_refused(raw):
    assert "the header is not valid JSON" in refused(packed(raw, bytes(8)))


def test_metadata_may_be_absent_or_null():
    for table in ({}, {"__metadata__": None}, {"__metadata__": {}}):
        stream = io.BytesIO(packed(table))
        assert read_header(stream, "a").metadata == {}


@given(st.binary(max_size=200))
def test_no_bytes_at_all_do_worse_than_a_format_error(content):
    """Whatever a file holds: tensors, or one of this package's errors."""
    with contextlib.suppress(FormatError):
        loaded(content)


@given(position=st.integers(0, 200), byte=st.integers(0, 255))
def test_one_changed_byte_gives_tensors_or_a_format_error(position, byte):
    content = bytearray(packed({"a": entry([2], 0, 8), "b": entry([1], 8, 12)}, bytes(12)))
    content[position % len(content)] = byte
    with contextlib.suppress(FormatError):
        loaded(bytes(content))


def _zip_pickle() -> bytes:
    stream = io.BytesIO()
    torch.save({"a": torch.ones(2)}, stream)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (_zip_pickle(), "a PyTorch pickle, not safetensors; if you trust where it is from, name it .pt"),
        (pickle.dumps([1, 2, 3] * 9, protocol=2), "a PyTorch pickle"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "an HTML page"),
        (b"\n\n  <html><body>Log in</body></html>", "an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "a Git LFS pointer"),
        (b"", "the file is empty"),
    ],
    ids=["zip", "pickle", "html", "html behind spaces", "lfs", "empty"],
)
def test_a_file_of_another_kind_is_called_by_its_name(content, message, tmp_path):
    """What a browser or git saves under the name of an adapter."""
    assert message in refused(content, NotAnAdapterError)

    file = tmp_path / "a.safetensors"
    file.write_bytes(content)
    with pytest.raises(NotAnAdapterError, match=message.split(";", maxsplit=1)[0]):
        read_adapter(file)


def test_a_file_that_shrinks_while_it_is_read_is_refused():
    content = packed({"a": entry([4], 0, 16)}, bytes(16))
    header = read_header(io.BytesIO(content), "a")

    with pytest.raises(CorruptFileError, match="truncated while reading: 12 of 16"):
        read_tensors(io.BytesIO(content[:-4]), header, "a")
