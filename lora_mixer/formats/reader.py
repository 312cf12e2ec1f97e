"""
File to :class:`~lora_mixer.adapter.Adapter`: open, group keys by module, take scales, build layers.

Every problem of a file is collected and raised once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import IO, TYPE_CHECKING, Any

import torch

from lora_mixer import hashes
from lora_mixer.adapter import Adapter
from lora_mixer.errors import (
    InvalidAdapterError,
    NotAnAdapterError,
    UnsupportedAdapterError,
)
from lora_mixer.formats import safeloras
from lora_mixer.formats.building import build_layers
from lora_mixer.formats.container import FileTensors, read_data, read_tensors, torch_dtype
from lora_mixer.formats.describing import Modules, describe_adapter, own_name
from lora_mixer.formats.file_moulds import MouldedLayers, find_mould, keep_mould
from lora_mixer.formats.fronts import COMPONENT_KEY
from lora_mixer.formats.grouping import group_keys, said_again
from lora_mixer.formats.header import ITEM_BYTES, read_at, read_header
from lora_mixer.formats.leaves import split_key
from lora_mixer.formats.opening import hashes_of, is_pickle_file, scale_rules, stream_of
from lora_mixer.formats.peft_config import rule_for
from lora_mixer.formats.pickles import load_pickle, read_pickle
from lora_mixer.problem import NoteKind, Problem, Remark, Remedy
from lora_mixer.textual_inversion.files import alone, bundled
from lora_mixer.word_keys import token_of
from lora_mixer.wording import first_of

if TYPE_CHECKING:
    from lora_mixer.adapter import AdapterInfo, AdapterLayer
    from lora_mixer.formats.container import Memory
    from lora_mixer.formats.header import Header
    from lora_mixer.formats.peft_config import ScaleRule
    from lora_mixer.problem import UnusedReason
    from lora_mixer.sources import AdapterSource
    from lora_mixer.textual_inversion.files import Embedding

_DTYPES = (*ITEM_BYTES, "float8_e4m3fnuz", "float8_e5m2fnuz", "complex128")
"""Types of tensors in state dicts: those of files, and what kin of them torch works with likewise."""
_FOLDED_AT_LEAST, _FOLDED_TIMES = 1 << 28, 4
_HEADS = frozenset(("classifier", "score"))
"""PEFT's configurations of classifiers name both, whichever the model has."""
_SMALL = 1 << 16  # bytes of a tensor that a description reads
_SHOWN, _LONG = 5, 200  # names in a message, and letters of each


def read_source(
    source: AdapterSource, *, name: str | None = None, pinned: bool = False, moulded: bool = False
) -> Adapter:
    """
    Read an adapter from a resolved source.

    Args:
        source: Where it lies.
        name: The name to give it; None takes the source's own.
        pinned: Whether its tensors go on to a GPU and may lie in pinned memory until then.
        moulded: Whether its layers may be :class:`~lora_mixer.formats.file_moulds.MouldedLayers`, made when they are asked for.

    Returns:
        The adapter. Its tensors are in memory, or are the caller's own.

    Raises:
        FormatError: When the content is damaged, something else, or not supported; the message says which.
    """
    adapter = _read_source(source, name, pinned=pinned, moulded=moulded)
    return (
        replace(adapter, notes=(*adapter.notes, _left_out(source.left_out))) if source.left_out else adapter
    )


def _read_source(source: AdapterSource, name: str | None, *, pinned: bool, moulded: bool) -> Adapter:
    """Read an adapter, whatever lies beside it."""
    label, weights = source.label, source.weights
    if source.parts:
        return _joined(source, [read_source(part, pinned=pinned) for part in source.parts], name)
    if isinstance(weights, Mapping):
        return _assemble(_state_dict(weights, label), {}, source, name, hashes.Hashes(None))
    with stream_of(weights, label) as stream:
        if not is_pickle_file(weights, stream):
            header = read_header(stream, label)
            tensors = _map_tensors(stream, header, label, "pinned" if pinned else "plain")
            digests = hashes_of(source, stream, header.data_start)
            if moulded and source.config is None:
                return _moulded(tensors, source, name, digests)
            return _assemble(tensors, header.metadata, source, name, digests)
        content, others = read_pickle(stream, label)
        table = safeloras.from_list(content, label) if isinstance(content, list) else content
        unpickled = _state_dict(table, label)
        adapter = _assemble(unpickled, {}, source, name, hashes_of(source, stream, None))
    if not others:
        return adapter
    names = ", ".join(name[:_LONG] for name in others[:_SHOWN])
    note = f"{len(others)} entries are not tensors and have no effect: {names}"
    return replace(adapter, notes=(*adapter.notes, Remark(note, NoteKind.NOT_TENSORS)))


def _left_out(folders: Sequence[str]) -> Remark[NoteKind]:
    """Say which adapters beside this one were not read."""
    listed = first_of([repr(folder) for folder in folders], _SHOWN)
    return Remark(
        f"folders beside it hold adapters that were not loaded: {listed}",
        NoteKind.LEFT_OUT,
        Remedy(
            f"load one by subfolder={folders[0]!r}, and say by component= which part of the pipeline it is for where its keys "
            "do not",
            "name such a folder to load what is in it",
            "upload what is in such a folder by itself",
        ),
    )


def read_trainable(source: AdapterSource, *, name: str) -> tuple[Adapter, dict[str, torch.Tensor]]:
    """
    Read an adapter that is to be trained, and its tensors by key; the adapter's are these, or views of them.

    Raises:
        FormatError: As :func:`read_source` does.
        UnsupportedAdapterError: When it is a pickle or of several components.
    """
    label, weights, metadata = source.label, source.weights, dict[str, str]()
    if isinstance(weights, Mapping):
        tensors = _state_dict(weights, label)
    else:
        with stream_of(weights, label) as stream:
            if source.parts or is_pickle_file(weights, stream):
                raise UnsupportedAdapterError(
                    "pickles and folders of several components cannot be trained on; save it as one safetensors file",
                    file=label,
                )
            header = read_header(stream, label)
            tensors, metadata = read_tensors(stream, header, label), dict(header.metadata)
    held = {
        key: tensor.detach().contiguous().clone()
        for key, tensor in tensors.items()
        if said_again(key, tensors) is None  # what is written again would be what it was before the training
    }
    return _assemble(held, metadata, source, name, hashes.Hashes(None)), held


def _joined(source: AdapterSource, adapters: Sequence[Adapter], name: str | None) -> Adapter:
    """Make one adapter of those of single components, each in a folder of the component's name."""
    layers: list[AdapterLayer] = []
    unused: dict[str, Remark[UnusedReason]] = {}
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
    info = describe_adapter(
        source,
        name,
        _facts(layers),
        layouts={layout for adapter in adapters for layout in adapter.info.format.split("+")},
        dtypes={str(t.dtype).removeprefix("torch.") for t in held},
        size=sum(t.numel() * t.element_size() for t in held),
        embeddings=[word for adapter in adapters for word in adapter.info.embeddings],
        metadata=metadata,
        hashes=hashes.Hashes(None),
    )
    notes = tuple(dict.fromkeys(note for adapter in adapters for note in adapter.notes))
    embeddings = tuple(word for adapter in adapters for word in adapter.embeddings)
    return Adapter(info, tuple(layers), unused, notes, embeddings)


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
    with stream_of(weights, label) as stream:
        if is_pickle_file(weights, stream):
            return alone(load_pickle(stream, label), word, label)
        return alone(read_tensors(stream, read_header(stream, label), label), word, label)


def _map_tensors(stream: IO[bytes], header: Header, label: str, memory: Memory) -> FileTensors:
    """Return the tensor of every key, read into memory: a mapped file that another program cuts ends the process (SIGBUS)."""
    return FileTensors(read_data(stream, header, label, memory), header)


def read_outline(source: AdapterSource, stream: IO[bytes], header: Header) -> AdapterInfo:
    """
    Describe an adapter from its header and the small ones of its tensors.

    Raises:
        FormatError: As :func:`read_source` does.
    """
    tensors = _outline(stream, header, source.label)
    return _assemble(
        tensors, header.metadata, source, None, hashes_of(source, stream, header.data_start)
    ).info


def _outline(stream: IO[bytes], header: Header, label: str) -> dict[str, torch.Tensor]:
    """Return tensors for a description: those that are small as they are, of others the shape and dtype only."""
    tensors = {}
    for key, spec in header.tensors.items():
        if spec.end - spec.start > _SMALL:
            tensors[key] = torch.ones((), dtype=torch_dtype(spec.dtype)).expand(spec.shape)
            continue
        raw = read_at(stream, header.data_start + spec.start, spec.end - spec.start, label)
        flat = (
            torch.frombuffer(bytearray(raw), dtype=torch.uint8) if raw else torch.empty(0, dtype=torch.uint8)
        )
        tensors[key] = flat.view(torch_dtype(spec.dtype)).view(spec.shape)
    return tensors


def _state_dict(table: Mapping[Any, Any], label: str) -> dict[str, torch.Tensor]:
    odd = [
        Problem(f"{k!r}"[:_LONG], type(v).__name__)
        for k, v in table.items()
        if not isinstance(k, str) or not torch.is_tensor(v)
    ]
    if odd:
        raise NotAnAdapterError(
            f"expected names and tensors, got {', '.join(map(str, odd[:5]))}", file=label, problems=odd
        )
    return {key: _plain(key, value, label) for key, value in table.items()}


def _plain(key: str, tensor: torch.Tensor, label: str) -> torch.Tensor:
    """
    Return a tensor without its gradient.

    Raises:
        InvalidAdapterError: When it is sparse, nested, quantised or without memory.
    """
    if not is_plain(tensor):
        kind = "nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.")
        raise InvalidAdapterError(
            f"is a tensor that cannot be read ({kind}, {tensor.dtype}); expected a plain dense one",
            file=label,
            key=key[:_LONG],
        )
    name = str(tensor.dtype).removeprefix("torch.")
    if name not in _DTYPES:
        raise InvalidAdapterError(
            f"has dtype {name}; known are {', '.join(_DTYPES)}", file=label, key=key[:_LONG]
        )
    if is_folded(tensor):
        raise InvalidAdapterError(
            f"of shape {tuple(tensor.shape)} has {tensor.untyped_storage().nbytes()} bytes: its values lie over each other",
            file=label,
            key=key[:_LONG],
        )
    return tensor.detach().resolve_conj().resolve_neg()


def is_plain(tensor: torch.Tensor) -> bool:
    """Say whether a tensor has its values, or on the meta device would have them, in memory in the plain way."""
    if tensor.is_nested or tensor.layout is not torch.strided or tensor.is_quantized:
        return False
    if tensor.is_meta:
        return True
    last = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True)) + 1
    needed = (tensor.storage_offset() + last) * tensor.element_size() if tensor.numel() else 0
    return tensor.untyped_storage().nbytes() >= needed


def is_folded(tensor: torch.Tensor) -> bool:
    """Say whether a tensor stands for much more than it has in memory, such as one number in each place of a huge matrix."""
    size = 0 if tensor.is_meta else tensor.numel() * tensor.element_size()
    return size > _FOLDED_AT_LEAST and size > _FOLDED_TIMES * tensor.untyped_storage().nbytes()


def check_held(adapter: Adapter) -> None:
    """
    Refuse an adapter whose tensors have shapes and no values.

    Raises:
        InvalidAdapterError: When any of them is on the meta device.
    """
    if isinstance(
        adapter.layers, MouldedLayers
    ):  # read from a file that holds values; pickles may hold shapes alone
        return
    for layer in adapter.layers:
        if any(tensor.is_meta for tensor in layer.weights.tensors()):
            raise InvalidAdapterError(
                "is on the meta device, so it has no values to load",
                file=adapter.info.source,
                key=layer.keys[0][:_LONG],
            )


def _moulded(
    tensors: FileTensors, source: AdapterSource, name: str | None, file_hashes: hashes.Hashes
) -> Adapter:
    """Read the tensors of a file by the mould of its kind, or as any others where there is none yet."""
    header, raw = tensors.header, tensors.buffer
    metadata = header.metadata
    rules = scale_rules(source, metadata)
    mould = find_mould(header, rules, raw)
    if mould is None:
        made: list[tuple[Modules, set[str]]] = []
        adapter = _assemble(tensors, metadata, source, name, file_hashes, made)
        facts, layouts = made[0]
        plain = not adapter.embeddings and not adapter.info.embeddings and not layouts & {"safeloras"}
        return keep_mould(adapter, header, rules, raw, facts=facts, layouts=layouts) if plain else adapter
    layers = MouldedLayers(mould, raw)
    info = describe_adapter(
        source,
        name,
        mould.facts,
        layouts=mould.layouts,
        dtypes=mould.dtypes,
        size=mould.size,
        embeddings=(),
        metadata=metadata,
        hashes=file_hashes,
    )
    component = metadata.get(COMPONENT_KEY) or source.component
    notes = mould.notes or _note_zeros(mould.each(raw), len(layers))
    return Adapter(info, layers, mould.unused, notes, (), component)


def _note_zeros(layers: Iterable[AdapterLayer], count: int) -> tuple[Remark[NoteKind], ...]:
    """Say so where nothing is changed; the first layer that changes something ends the look."""
    if not all(layer.weights.is_zero() for layer in layers):
        return ()
    said = f"all {count} modules change nothing: they hold zeros, or a scale of zero, as a file that is saved before training"
    return (Remark(said, NoteKind.ALL_ZERO),)


def _is_change(key: str) -> bool:
    """Say whether a key is a part of a change, and so no value that takes the place of a module's."""
    split = split_key(key)
    return split is not None and split[1].algorithm not in ("", "set")


def _note_not_held(
    layers: Sequence[AdapterLayer],
    rules: Mapping[str | None, ScaleRule],
    keys: Iterable[str],
) -> list[Remark[NoteKind]]:
    """Say what configurations speak of and the file has no tensors for: what it holds is applied as it is."""
    notes = []
    for part, rule in rules.items():
        where = "" if part is None else f"{part}: "
        asked = layers if rule.config.get("use_dora") else ()
        own = [layer for layer in asked if rule_for(layer.target, rules) is rule]
        plain = [layer for layer in own if layer.weights.algorithms == ("lora",)]
        if plain:
            said = (
                f"{where}the configuration has use_dora, and {len(plain)} of {len(own)} modules have no magnitude in the file: they "
                "are plain LoRA here (PEFT would give them the lengths of the base's rows)"
            )
            notes.append(Remark(said, NoteKind.NOT_HELD))
        saved = rule.config.get("modules_to_save") or ()
        named = [saved] if isinstance(saved, str) else saved if isinstance(saved, list | tuple) else ()
        paths = [f".{key}." for key in keys if not _is_change(key)] if named else []
        held = {name for name in map(str, named) if any(f".{name}." in path for path in paths)}
        held |= _HEADS if held & _HEADS else set()
        absent = [name for name in map(str, named) if name not in held]
        if absent:
            said = (
                f"{where}the configuration has modules_to_save {first_of(absent, 3)}, and the file holds nothing of "
                f"{'them' if len(absent) > 1 else 'it'}: the base's own stay"
            )
            notes.append(Remark(said, NoteKind.NOT_HELD))
    return notes


def _assemble(
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str],
    source: AdapterSource,
    name: str | None,
    file_hashes: hashes.Hashes,
    made: list[tuple[Modules, set[str]]] | None = None,
) -> Adapter:
    """Build an adapter; ``made`` takes what its description goes by."""
    label = source.label
    rules = scale_rules(source, metadata)
    groups = group_keys(tensors, metadata, label, has_config=source.config is not None)
    layers = build_layers(groups.modules, rules, label)
    if not layers:  # group_keys has refused what is not an adapter; this holds only embeddings
        raise NotAnAdapterError(
            f"holds no LoRA layers, only embeddings {', '.join(groups.embeddings)}",
            file=label,
            problems=[Problem(name, "is an embedding") for name in groups.embeddings],
        )
    embeddings, odd = bundled({key: tensors[key] for key in groups.unused if token_of(key)}, own_name(source))
    notes: list[Remark[NoteKind]] = []
    if groups.embeddings:
        said = f"holds textual inversions {', '.join(groups.embeddings)}"
        load = Remedy("load_embeddings=True loads them, too", "--load-embeddings loads them, too")
        notes.append(Remark(said, NoteKind.WORDS_LEFT, load))
    idle = [layer for layer in layers if getattr(layer.weights, "scale", 1.0) == 0.0]
    if idle:
        said = f"{len(idle)} of {len(layers)} modules have alpha 0 in the file and change nothing"
        notes.append(Remark(said, NoteKind.ALPHA_ZERO))
    elif not source.is_fresh:
        notes += _note_zeros(layers, len(layers))
    notes += _note_not_held(layers, rules, tensors)
    held = [t for layer in layers for t in layer.weights.tensors()]
    facts = _facts(layers)
    if made is not None:
        made.append((facts, groups.layouts))
    info = describe_adapter(
        source,
        name,
        facts,
        layouts=groups.layouts,
        dtypes={str(dtype).removeprefix("torch.") for dtype in {t.dtype for t in held}},
        size=sum([t.nbytes for t in held]),
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
        tuple([layer.target.hint for layer in layers]),
        tuple([layer.target.module for layer in layers]),
        tuple([every.in_width for every in weights]),
        {name for names in {every.algorithms for every in weights} for name in names},
        {every.rank for every in weights if every.rank is not None},
        {every.alpha for every in weights if every.alpha is not None},
    )
