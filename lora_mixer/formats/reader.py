"""
File to :class:`~lora_mixer.adapter.Adapter`: open, group keys by module, take scales, build layers.

Every problem of a file is collected and raised once.
"""

from __future__ import annotations

import io
import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import torch

from lora_mixer import hashes
from lora_mixer.adapter import Adapter, AdapterInfo
from lora_mixer.errors import NotAnAdapterError, SourceError
from lora_mixer.formats import safeloras
from lora_mixer.formats.building import build_layers
from lora_mixer.formats.container import Header, open_weights, read_header, read_tensors, views
from lora_mixer.formats.embeddings import alone, bundled, token_of
from lora_mixer.formats.families import base_family
from lora_mixer.formats.grouping import group_keys
from lora_mixer.formats.metadata import trigger_words
from lora_mixer.formats.peft_config import header_rules, refuse_unsupported, scale_rule
from lora_mixer.formats.pickles import load_pickle, read_pickle

if TYPE_CHECKING:
    from collections.abc import Callable

    from lora_mixer.formats.embeddings import Embedding
    from lora_mixer.sources import AdapterSource

_PICKLES = {".pt", ".pth", ".bin", ".ckpt"}


def read(source: AdapterSource, *, name: str | None = None) -> Adapter:
    """
    Read an adapter from a resolved source.

    Args:
        source: Where it lies.
        name: The name to give it; None takes the source's own.

    Returns:
        The adapter. Its tensors are still in the file, or are the caller's own: their bytes are read when they are
        looked at, so a description costs no more than a header. Whoever keeps them takes a copy.

    Raises:
        FormatError: When the content is damaged, something else, or not supported; the message says which.
    """
    label = source.label
    metadata: Mapping[str, str] = {}
    compute: Callable[[], dict[str, str]] | None = None
    if isinstance(source.weights, Mapping):
        tensors = _state_dict(source.weights, label)
    else:
        weights = source.weights
        with _stream(weights, label) as stream:
            if isinstance(weights, Path) and weights.suffix.lower() in _PICKLES:
                content = read_pickle(stream, label)
                tensors = safeloras.from_list(content, label) if isinstance(content, list) else content
                compute = _FileHashes(weights, None, label, _stamp(stream))
            else:
                header = read_header(stream, label)
                metadata = header.metadata
                tensors = _map_tensors(stream, header, label)
                compute = _FileHashes(weights, header.data_start, label, _stamp(stream))
    return _assemble(tensors, metadata, source, name, hashes.Hashes(compute))


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
    label, own_name, weights = source.label, name or _own_name(source), source.weights
    if isinstance(weights, Mapping):
        return alone(_state_dict(weights, label), own_name, label)
    with _stream(weights, label) as stream:
        if isinstance(weights, Path) and weights.suffix.lower() in _PICKLES:
            return alone(load_pickle(stream, label), own_name, label)
        return alone(read_tensors(stream, read_header(stream, label), label), own_name, label)


def _stream(weights: Path | bytes, label: str) -> IO[bytes]:
    return open_weights(weights, label) if isinstance(weights, Path) else io.BytesIO(weights)


def _map_tensors(stream: IO[bytes], header: Header, label: str) -> dict[str, torch.Tensor]:
    """Give tensors whose bytes are read from disk when they are looked at."""
    if header.data_bytes == 0 or isinstance(stream, io.BytesIO):
        return read_tensors(stream, header, label)
    # A private mapping: nothing that is done to the tensors reaches the file. It lives as long as they do.
    mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
    return views(torch.frombuffer(mapped, dtype=torch.uint8, offset=header.data_start), header)


def _stamp(stream: IO[bytes]) -> tuple[int, int] | None:
    """Give a file's size and time of change, by which another file of its name is told apart."""
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
                msg = f"{self.label}: the file has changed since it was read, so its hashes would be those of another"
                raise SourceError(msg)
            return hashes.compute(stream, self.data_start)


def _state_dict(table: Mapping[Any, Any], label: str) -> dict[str, torch.Tensor]:
    odd = [
        f"{k!r}: {type(v).__name__}"
        for k, v in table.items()
        if not isinstance(k, str) or not torch.is_tensor(v)
    ]
    if odd:
        msg = f"{label}: expected names and tensors, got {', '.join(odd[:5])}"
        raise NotAnAdapterError(msg)
    return {key: value.detach() for key, value in table.items()}


def _assemble(
    tensors: dict[str, torch.Tensor],
    metadata: Mapping[str, str],
    source: AdapterSource,
    name: str | None,
    file_hashes: hashes.Hashes,
) -> Adapter:
    label = source.label
    if source.config is not None:
        refuse_unsupported(source.config, label)
    rules = header_rules(metadata, label)
    if source.config is not None:
        rules = {None: scale_rule(source.config, label), **rules}
    groups = group_keys(tensors, metadata, label, has_config=source.config is not None)
    layers = build_layers(groups.modules, rules, label)
    if not layers:  # group_keys has refused what is no adapter; this holds only embeddings
        msg = f"{label}: holds no LoRA layers, only embeddings {', '.join(groups.embeddings)}"
        raise NotAnAdapterError(msg)
    embeddings, odd = bundled(
        {key: tensors[key] for key in groups.unused if token_of(key)}, _own_name(source)
    )
    notes = []
    if groups.embeddings:
        notes.append(
            f"holds textual inversions {', '.join(groups.embeddings)}; load_embeddings=True loads them, too"
        )
    idle = [layer for layer in layers if getattr(layer.weights, "scale", 1.0) == 0.0]
    if idle:
        notes.append(f"{len(idle)} of {len(layers)} modules have alpha 0 in the file and change nothing")
    held = [t for layer in layers for t in layer.weights.tensors()]
    components: dict[str, int] = {}
    for layer in layers:
        key = {"denoiser": "unet"}.get(layer.target.hint or "", layer.target.hint) or "unnamed"
        components[key] = components.get(key, 0) + 1
    widths = {}
    for layer in layers:
        width = layer.weights.in_width
        if width is not None:
            widths[layer.target.hint, layer.target.module] = width
    info = AdapterInfo(
        name=name or _own_name(source),
        source=label,
        format="+".join(sorted(groups.layouts)),
        base=base_family(((x.target.hint, x.target.module) for x in layers), widths, metadata),
        algorithms=tuple(sorted({name for x in layers for name in x.weights.algorithms})),
        ranks=tuple(sorted({x.weights.rank for x in layers if x.weights.rank is not None})),
        alphas=tuple(sorted({x.weights.alpha for x in layers if x.weights.alpha is not None})),
        dtypes=tuple(sorted({str(t.dtype).removeprefix("torch.") for t in held})),
        bytes=sum(t.numel() * t.element_size() for t in held),
        components=components,
        embeddings=tuple(groups.embeddings),
        trigger_words=trigger_words(metadata, source.config),
        metadata=dict(metadata),
        hashes=file_hashes,
    )
    return Adapter(info, layers, {**groups.unused, **odd}, tuple(notes), embeddings)


def _own_name(source: AdapterSource) -> str:
    if isinstance(source.weights, Path):
        stem = source.weights.stem
        generic = stem in ("adapter_model", "pytorch_lora_weights")
        return (
            source.repo_id.rpartition("/")[2]
            if generic and source.repo_id
            else source.weights.parent.name
            if generic
            else stem
        )
    return source.label
