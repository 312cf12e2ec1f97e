"""
File to :class:`~lora_mixer.adapter.Adapter`: open, group keys by module, take scales, build layers.

Every problem of a file is collected and raised once.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import torch

from lora_mixer import hashes
from lora_mixer.adapter import Adapter
from lora_mixer.errors import (
    CorruptFileError,
    InvalidAdapterError,
    LoraMixerError,
    NotAnAdapterError,
    SourceError,
    UnsupportedAdapterError,
)
from lora_mixer.formats import safeloras
from lora_mixer.formats.building import build_layers
from lora_mixer.formats.container import (
    Header,
    is_safetensors,
    open_weights,
    read_at,
    read_header,
    read_tensors,
)
from lora_mixer.formats.describing import Modules, describe, own_name, survey
from lora_mixer.formats.grouping import group_keys
from lora_mixer.formats.names import COMPONENT_KEY
from lora_mixer.formats.peft_config import header_rules, refuse_unsupported, scale_rule
from lora_mixer.formats.pickles import load_pickle, read_pickle
from lora_mixer.textual_inversion.files import alone, bundled, token_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lora_mixer.adapter import AdapterInfo, AdapterLayer
    from lora_mixer.formats.peft_config import ScaleRule
    from lora_mixer.sources import AdapterSource
    from lora_mixer.textual_inversion.files import Embedding

_PICKLES = {".pt", ".pth", ".bin", ".ckpt"}
_SMALL = 1 << 16  # bytes of a tensor that a description reads
_SHOWN, _LONG = 5, 200  # names in a message, and letters of each


def read(source: AdapterSource, *, name: str | None = None) -> Adapter:
    """
    Read an adapter from a resolved source.

    Args:
        source: Where it lies.
        name: The name to give it; None takes the source's own.

    Returns:
        The adapter. Its tensors are in memory, or are the caller's own.

    Raises:
        FormatError: When the content is damaged, something else, or not supported; the message says which.
    """
    label, weights = source.label, source.weights
    if source.parts:
        return _joined(source, [read(part) for part in source.parts], name)
    if isinstance(weights, Mapping):
        return _assemble(_state_dict(weights, label), {}, source, name, hashes.Hashes(None))
    with _stream(weights, label) as stream:
        if not _is_pickle(weights, stream):
            header = read_header(stream, label)
            return _from_header(stream, header, source, name)
        content, others = read_pickle(stream, label)
        table = safeloras.from_list(content, label) if isinstance(content, list) else content
        tensors = _state_dict(table, label)
        adapter = _assemble(tensors, {}, source, name, _hashes(source, stream, None))
    if not others:
        return adapter
    names = ", ".join(name[:_LONG] for name in others[:_SHOWN])
    note = f"{len(others)} entries are no tensors and have no effect: {names}"
    return replace(adapter, notes=(*adapter.notes, note))


def read_trainable(source: AdapterSource, *, name: str) -> tuple[Adapter, dict[str, torch.Tensor]]:
    """
    Read an adapter that is to be trained, and its tensors by key; the adapter's are these, or views of them.

    Raises:
        FormatError: As :func:`read` does.
        UnsupportedAdapterError: When it is a pickle or of several components.
    """
    label, weights, metadata = source.label, source.weights, dict[str, str]()
    if isinstance(weights, Mapping):
        tensors = _state_dict(weights, label)
    else:
        with _stream(weights, label) as stream:
            if source.parts or _is_pickle(weights, stream):
                raise UnsupportedAdapterError(
                    f"{label}: pickles and folders of several components cannot be trained on; save it as one safetensors file"
                )
            header = read_header(stream, label)
            tensors, metadata = read_tensors(stream, header, label), dict(header.metadata)
    own = {key: tensor.detach().contiguous().clone() for key, tensor in tensors.items()}
    return _assemble(own, metadata, source, name, hashes.Hashes(None)), own


def _joined(source: AdapterSource, adapters: Sequence[Adapter], name: str | None) -> Adapter:
    """Make one adapter of those of single components, each in a folder of the component's name."""
    layers: list[AdapterLayer] = []
    unused: dict[str, str] = {}
    metadata: dict[str, str] = {}
    for part, adapter in zip(source.parts, adapters, strict=True):
        hint = {"unet": "denoiser"}.get(part.component or "", part.component)
        layers += (
            replace(x, target=replace(x.target, hint=hint)) if x.target.hint is None else x
            for x in adapter.layers
        )
        unused |= {f"{part.component}/{key}": why for key, why in adapter.unused.items()}
        metadata = {**adapter.info.metadata, **metadata}
    metadata.pop(COMPONENT_KEY, None)
    held = [t for layer in layers for t in layer.weights.tensors()]
    info = describe(
        source,
        name,
        _facts(layers),
        layouts={layout for adapter in adapters for layout in adapter.info.format.split("+")},
        dtypes={t.dtype for t in held},
        size=sum(t.numel() * t.element_size() for t in held),
        embeddings=[word for adapter in adapters for word in adapter.info.embeddings],
        metadata=metadata,
        hashes=hashes.Hashes(None),
    )
    notes = tuple(dict.fromkeys(note for adapter in adapters for note in adapter.notes))
    embeddings = tuple(word for adapter in adapters for word in adapter.embeddings)
    return Adapter(info, tuple(layers), unused, notes, embeddings)


def read_info(source: AdapterSource) -> AdapterInfo:
    """
    Describe an adapter, from its header alone where that can be.

    Raises:
        FormatError: As :func:`read` does.
    """
    weights = source.weights
    if isinstance(weights, Mapping) or source.parts:
        return read(source).info
    with _stream(weights, source.label) as stream:
        if _is_pickle(weights, stream):
            return read(source).info
        header = read_header(stream, source.label)
        rules = _rules(source, header.metadata)
        found = survey(header, _Slices(stream, source.label), rules)
        if found is None:
            tensors = _outline(stream, header, source.label)
            file_hashes = _hashes(source, stream, header.data_start)
            return _assemble(tensors, header.metadata, source, None, file_hashes).info
        return describe(
            source,
            None,
            found.modules,
            layouts=found.layouts,
            dtypes=found.dtypes,
            size=found.size,
            embeddings=(),
            metadata=header.metadata,
            hashes=_hashes(source, stream, header.data_start),
        )


def _is_pickle(weights: Path | bytes, stream: IO[bytes]) -> bool:
    """Say whether a file is to be unpickled: its name says so, and its content is nothing safer."""
    return isinstance(weights, Path) and weights.suffix.lower() in _PICKLES and not is_safetensors(stream)


@dataclass(frozen=True)
class _Slices:
    """The bytes of a file, of which only those that are asked for are read."""

    stream: IO[bytes]
    label: str

    def __getitem__(self, place: slice) -> bytes:
        return read_at(self.stream, place.start, place.stop - place.start, self.label)


def _hashes(source: AdapterSource, stream: IO[bytes], data_start: int | None) -> hashes.Hashes:
    weights = source.weights
    assert not isinstance(weights, Mapping)  # noqa: S101 -- streams are of files and bytes
    return hashes.Hashes(_FileHashes(weights, data_start, source.label, _stamp(stream)))


def _from_header(stream: IO[bytes], header: Header, source: AdapterSource, name: str | None) -> Adapter:
    tensors = _map_tensors(stream, header, source.label)
    return _assemble(tensors, header.metadata, source, name, _hashes(source, stream, header.data_start))


def _rules(source: AdapterSource, metadata: Mapping[str, str]) -> Mapping[str | None, ScaleRule]:
    if source.config is not None:
        refuse_unsupported(source.config, source.label)
    rules = header_rules(metadata, source.label)
    if source.config is not None:
        rules = {None: scale_rule(source.config, source.label), **rules}
    return rules


def read_embeddings(source: AdapterSource, *, name: str | None = None) -> tuple[Embedding, ...]:
    """
    Read a file that holds textual inversions only.

    Args:
        source: Where it lies.
        name: The word for vectors that name none; None takes the file's name.

    Returns:
        The words.

    Raises:
        FormatError: When the content is damaged or something else.
    """
    label, word, weights = source.label, name or own_name(source), source.weights
    if isinstance(weights, Mapping):
        return alone(_state_dict(weights, label), word, label)
    with _stream(weights, label) as stream:
        if _is_pickle(weights, stream):
            return alone(load_pickle(stream, label), word, label)
        return alone(read_tensors(stream, read_header(stream, label), label), word, label)


@contextmanager
def _stream(weights: Path | bytes, label: str) -> Iterator[IO[bytes]]:
    """
    Open a file or bytes.

    Raises:
        SourceError: When the system cannot read on, or there is not enough memory.
    """
    try:
        with open_weights(weights, label) if isinstance(weights, Path) else io.BytesIO(weights) as stream:
            yield stream
    except OSError as error:
        if isinstance(error, LoraMixerError):
            raise
        raise SourceError(f"cannot be read ({error.strerror or error})", file=label) from error


def _map_tensors(stream: IO[bytes], header: Header, label: str) -> dict[str, torch.Tensor]:
    """
    Give every key its tensor, read into memory.

    Nothing is mapped: a mapped file that is cut or written anew by another program ends the process (SIGBUS).

    Raises:
        CorruptFileError: When the file is shorter than its header says, or has changed meanwhile.
    """
    before = _stamp(stream)
    tensors = read_tensors(stream, header, label)
    if _stamp(stream) != before:
        msg = "the file changed while it was read; wait until the program that writes it is done"
        raise CorruptFileError(msg, file=label)
    return tensors


def _outline(stream: IO[bytes], header: Header, label: str) -> dict[str, torch.Tensor]:
    """Return tensors for a description: those that are small as they are, of others the shape and dtype only."""
    found = {}
    for key, spec in header.tensors.items():
        if spec.end - spec.start > _SMALL:
            found[key] = torch.ones((), dtype=spec.dtype).expand(spec.shape)
            continue
        raw = read_at(stream, header.data_start + spec.start, spec.end - spec.start, label)
        flat = (
            torch.frombuffer(bytearray(raw), dtype=torch.uint8) if raw else torch.empty(0, dtype=torch.uint8)
        )
        found[key] = flat.view(spec.dtype).view(spec.shape)
    return found


def _stamp(stream: IO[bytes]) -> tuple[int, int] | None:
    """Return a file's size and time of change, by which another file of its name is told apart."""
    if isinstance(stream, io.BytesIO):
        return None
    facts = os.fstat(stream.fileno())
    return facts.st_size, facts.st_mtime_ns


@dataclass(frozen=True)
class _FileHashes:
    """Compute the hashes of a file as it was read; a value, so that descriptions can be pickled."""

    weights: Path | bytes
    data_start: int | None
    label: str
    stamp: tuple[int, int] | None

    def __call__(self) -> dict[str, str]:
        with _stream(self.weights, self.label) as stream:
            if _stamp(stream) != self.stamp:
                msg = "the file has changed since it was read, so its hashes would be those of another"
                raise SourceError(msg, file=self.label)
            return hashes.compute(stream, self.data_start)


def _state_dict(table: Mapping[Any, Any], label: str) -> dict[str, torch.Tensor]:
    odd = [
        f"{k!r}: {type(v).__name__}"
        for k, v in table.items()
        if not isinstance(k, str) or not torch.is_tensor(v)
    ]
    if odd:
        msg = f"expected names and tensors, got {', '.join(odd[:5])}"
        raise NotAnAdapterError(msg, file=label)
    return {key: _plain(key, value, label) for key, value in table.items()}


def _plain(key: str, tensor: torch.Tensor, label: str) -> torch.Tensor:
    """
    Return a tensor without its gradient.

    Raises:
        InvalidAdapterError: When it is sparse, nested, quantised or without memory.
    """
    odd = tensor.is_nested or tensor.layout is not torch.strided or tensor.is_quantized
    if not odd and not tensor.is_meta:
        last = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True)) + 1
        needed = (tensor.storage_offset() + last) * tensor.element_size() if tensor.numel() else 0
        odd = tensor.untyped_storage().nbytes() < needed
    if odd:
        kind = "nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.")
        msg = f"{key[:_LONG]!r} is a tensor that cannot be read ({kind}, {tensor.dtype}); expected a plain dense one"
        raise InvalidAdapterError(msg, file=label)
    return tensor.detach()


def check_held(adapter: Adapter) -> None:
    """
    Refuse an adapter whose tensors have shapes and no values.

    Raises:
        InvalidAdapterError: When any of them is on the meta device.
    """
    for layer in adapter.layers:
        if any(tensor.is_meta for tensor in layer.weights.tensors()):
            msg = f"{layer.keys[0][:_LONG]!r} is on the meta device, so it has no values to load"
            raise InvalidAdapterError(msg, file=adapter.info.source)


def _assemble(
    tensors: dict[str, torch.Tensor],
    metadata: Mapping[str, str],
    source: AdapterSource,
    name: str | None,
    file_hashes: hashes.Hashes,
) -> Adapter:
    label = source.label
    rules = _rules(source, metadata)
    groups = group_keys(tensors, metadata, label, has_config=source.config is not None)
    layers = build_layers(groups.modules, rules, label)
    if not layers:  # group_keys has refused what is no adapter; this holds only embeddings
        msg = f"holds no LoRA layers, only embeddings {', '.join(groups.embeddings)}"
        raise NotAnAdapterError(msg, file=label)
    embeddings, odd = bundled({key: tensors[key] for key in groups.unused if token_of(key)}, own_name(source))
    notes = []
    if groups.embeddings:
        notes.append(
            f"holds textual inversions {', '.join(groups.embeddings)}; load_embeddings=True loads them, too"
        )
    idle = [layer for layer in layers if getattr(layer.weights, "scale", 1.0) == 0.0]
    if idle:
        notes.append(f"{len(idle)} of {len(layers)} modules have alpha 0 in the file and change nothing")
    elif all(layer.weights.is_zero() for layer in layers):  # the first that is trained ends the search
        notes.append(
            f"all {len(layers)} modules hold zeros and change nothing: the file was saved before training began"
        )
    held = [t for layer in layers for t in layer.weights.tensors()]
    info = describe(
        source,
        name,
        _facts(layers),
        layouts=groups.layouts,
        dtypes={t.dtype for t in held},
        size=sum(t.numel() * t.element_size() for t in held),
        embeddings=groups.embeddings,
        metadata=metadata,
        hashes=file_hashes,
    )
    component = metadata.get(COMPONENT_KEY) or source.component
    config = source.config or {}
    return Adapter(
        info,
        layers,
        {**groups.unused, **odd},
        tuple(notes),
        embeddings,
        component,
        tensors if config else {},
        config,
    )


def _facts(layers: Sequence[AdapterLayer]) -> Modules:
    weights = [layer.weights for layer in layers]
    return Modules(
        [layer.target.hint for layer in layers],
        [layer.target.module for layer in layers],
        [every.in_width for every in weights],
        {name for every in weights for name in every.algorithms},
        {every.rank for every in weights if every.rank is not None},
        {every.alpha for every in weights if every.alpha is not None},
    )
