"""
Adapter files to parts, without a pipeline: bound to a skeleton of their base, or by their own names.

A base family that is known gives the skeleton; ``--model`` names another. Files of other families, whose keys have
dotted names, are taken by these names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from lora_mixer.binding import bind
from lora_mixer.errors import MatchError, SaveError
from lora_mixer.formats import read
from lora_mixer.formats.container import open_weights, read_header, read_tensors
from lora_mixer.formats.leaves import split_key
from lora_mixer.sources import resolve_source
from lora_mixer.writing.layers import Part, Place
from lora_mixer.writing.names import Names
from lora_mixer.writing.skeleton import FAMILIES, Skeleton, of_family, of_folder

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from lora_mixer.adapter import Adapter, AdapterInfo, AdapterLayer

_COMPONENT = {"denoiser": "unet", "clip_g": "text_encoder_2"}
_LEAVES = ("kohya", "lycoris")  # layouts whose leaf names are those of Kohya's files


@dataclass(frozen=True)
class FileAdapter:
    """
    One adapter from a file.

    Attributes:
        info: Its description.
        parts: Its layers.
        unused: What of the file is in none, with the reason.
    """

    info: AdapterInfo
    parts: tuple[Part, ...]
    unused: Mapping[str, str]


@dataclass(frozen=True)
class FileSet:
    """
    Adapters of one base.

    Attributes:
        adapters: In the order given.
        names: The spelling of their modules.
        skeleton: The base's modules, or None where the files' own names had to do.
    """

    adapters: tuple[FileAdapter, ...]
    names: Names
    skeleton: Skeleton | None


def open_files(
    sources: Sequence[str],
    adapter_names: Sequence[str],
    *,
    model: str | None = None,
    allow_pickle: bool = False,
) -> FileSet:
    """
    Read adapters of one base.

    Args:
        sources: Files, folders or repositories.
        adapter_names: A name for each.
        model: A diffusers folder that they are for; by default the base family that they name.
        allow_pickle: Open ``.pt`` and ``.bin`` files.

    Returns:
        The adapters, their modules under the same names.

    Raises:
        SourceError: When a file or the model is not there.
        FormatError: When a file is no adapter.
        MatchError: When adapters are for different bases, or do not fit the model in full.
    """
    found = [resolve_source(source, allow_pickle=allow_pickle) for source in sources]
    adapters = [read(source, name=name) for source, name in zip(found, adapter_names, strict=True)]
    skeleton = of_folder(model) if model is not None else _skeleton_for([a.info for a in adapters])
    raws = [
        _raw(source) if set(a.info.format.split("+")) <= set(_LEAVES) else {}
        for source, a in zip(found, adapters, strict=True)
    ]
    if skeleton is None:
        parts = [_by_own_names(adapter, raw) for adapter, raw in zip(adapters, raws, strict=True)]
        paths: dict[str, list[str]] = {}
        for part in (part for own in parts for part in own):
            paths.setdefault(part.place.component, []).append(part.place.path)
        return FileSet(_together(adapters, parts), Names(paths), None)
    parts = [_bound(adapter, raw, skeleton) for adapter, raw in zip(adapters, raws, strict=True)]
    return FileSet(_together(adapters, parts), Names(skeleton.paths), skeleton)


def _together(adapters: Sequence[Adapter], parts: Sequence[tuple[Part, ...]]) -> tuple[FileAdapter, ...]:
    return tuple(FileAdapter(a.info, own, a.unused) for a, own in zip(adapters, parts, strict=True))


def _skeleton_for(infos: Sequence[AdapterInfo]) -> Skeleton | None:
    bases = {info.base for info in infos}
    if bases == {"SD 1.x or SDXL"}:  # text encoders of 768 alone
        bases = {"SD 1.x"}
    bases.discard("SD 1.x or SDXL")
    if len(bases) > 1:
        table = ", ".join(f"{info.source} ({info.base})" for info in infos)
        msg = f"these adapters are for different bases and cannot become one: {table}"
        raise MatchError(msg)
    (base,) = bases
    return of_family(base) if base in FAMILIES else None


def _bound(adapter: Adapter, raw: Mapping[str, torch.Tensor], skeleton: Skeleton) -> tuple[Part, ...]:
    binding = bind(adapter, skeleton.components, adapter.info.name)
    if binding.report.unmatched:
        msg = f"{adapter.info.source}: a part of it is not in {skeleton.name}, so it would be lost:\n{binding.report}"
        raise MatchError(msg)
    by_weights = {id(layer.weights): layer for layer in adapter.layers}
    parts = []
    for bound in binding.layers:
        live = bound.live
        place = Place(live.component, live.path, live.shape, isinstance(live.module, nn.Embedding))
        base = skeleton.tensor(live.component, f"{live.path}.weight") if _needs_base(bound.weights) else None
        bias = skeleton.tensor(live.component, f"{live.path}.bias")
        layer = by_weights[id(bound.weights)]
        _refuse_unknown_bias(layer, bias, skeleton)
        parts.append(Part(place, bound.weights, base, bias, _leaves(layer, raw)))
    return tuple(parts)


def _needs_base(weights: Any) -> bool:
    return bool(weights.algorithm != "lora")


def _refuse_unknown_bias(layer: AdapterLayer, bias: torch.Tensor | None, skeleton: Skeleton | None) -> None:
    if (
        getattr(layer.weights, "set_bias", None) is not None
        and bias is None
        and (skeleton is None or skeleton.folder is None)
    ):
        raise SaveError(
            f"{layer.target.written}: holds a trained bias that replaces the model's own; name the base model "
            "(--model), so that the change of it can be written"
        )


def _by_own_names(adapter: Adapter, raw: Mapping[str, torch.Tensor]) -> tuple[Part, ...]:
    parts = []
    for layer in adapter.layers:
        own = getattr(layer.weights, "shape", None)
        if own is None or ("." not in layer.target.module and layer.target.module != layer.target.written):
            raise SaveError(
                f"{layer.target.written}: for a base that is not known ({adapter.info.base}) the module's own name "
                "or shape cannot be told; name the base model, a diffusers folder (--model)"
            )
        _refuse_unknown_bias(layer, None, None)
        component = _COMPONENT.get(layer.target.hint or "", layer.target.hint) or "model"
        place = Place(component, layer.target.module, tuple(own))
        parts.append(Part(place, layer.weights, leaves=_leaves(layer, raw)))
    return tuple(parts)


def _raw(source: Any) -> dict[str, torch.Tensor]:
    """Read the tensors under their own keys, for leaves that are kept as they are."""
    path = source.weights
    if not hasattr(path, "suffix") or path.suffix.lower() != ".safetensors":
        return {}
    with open_weights(path, source.label) as stream:
        return read_tensors(stream, read_header(stream, source.label), source.label)


def _leaves(layer: AdapterLayer, raw: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    table = {}
    for key in layer.keys:
        split = split_key(key)
        if key not in raw or split is None:
            return {}
        table[key[len(split[0]) :]] = raw[key]
    return table
