"""
Adapter files to parts, without a pipeline: bound to a skeleton of their base, or by their own names.

A base family that is known gives the skeleton; ``--model`` names another. Files of other families, whose keys have
dotted names, are taken by these names.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lora_mixer.algorithms import Combined
from lora_mixer.algorithms.values import Values
from lora_mixer.algorithms.whole import WholeLayer, gathered
from lora_mixer.binding import bind
from lora_mixer.errors import MatchError, SaveError
from lora_mixer.families import family_named, is_translated
from lora_mixer.families import skeleton as skeletons
from lora_mixer.families.skeleton import Skeleton, of_family
from lora_mixer.families.telling import EITHER, TRANSFORMERS, families_of, one_label, shares_names
from lora_mixer.formats import read_source
from lora_mixer.formats.container import read_tensors
from lora_mixer.formats.describing import own_name
from lora_mixer.formats.header import open_weights, read_header
from lora_mixer.formats.leaves import split_key
from lora_mixer.formats.reader import check_held, is_folded, is_plain
from lora_mixer.mixes.unet_blocks import block_position
from lora_mixer.problem import Problem, Remedy, SaveProblem, SaveReason, Surface
from lora_mixer.sources import resolve_source
from lora_mixer.writing.layers import AdapterParts, ModulePlace, Part
from lora_mixer.writing.names import Names, names_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from lora_mixer.adapter import Adapter, AdapterLayer
    from lora_mixer.algorithms import LayerWeights
    from lora_mixer.binding.index import LiveModule
    from lora_mixer.families import Family
    from lora_mixer.sources import AdapterSource

_LEAVES = ("kohya", "lycoris", "comfyui")  # layouts whose leaf names are those of Kohya's files


@dataclass(frozen=True)
class FileSet:
    """
    Adapters of one base.

    Attributes:
        adapters: In the order given.
        names: The spelling of their modules.
        skeleton: The base's modules, or None where the files' own names had to do.
        denoiser: The component that layers belong to whose file names none, where there is no skeleton.
    """

    adapters: tuple[AdapterParts, ...]
    names: Names
    skeleton: Skeleton | None
    denoiser: str = "model"

    def locate(self, adapter: Adapter) -> list[tuple[ModulePlace, LayerWeights]]:
        """
        Find the modules of an adapter of the same base.

        Raises:
            MatchError: When not all of it is there.
            SaveError: When its names do not tell.
        """
        if self.skeleton is None:
            return [(part.place, part.weights) for part in _by_own_names(adapter, {}, self.denoiser)]
        return located(adapter, self.skeleton.components)


def open_files(
    sources: Sequence[Any],
    *,
    model: str | Path | None = None,
    allow_pickle: bool = False,
) -> FileSet:
    """
    Read adapters of one base.

    Args:
        sources: Files, folders or repositories.
        model: A diffusers folder that they are for; by default the base family that they name.
        allow_pickle: Open ``.pt`` and ``.bin`` files.

    Returns:
        The adapters, named after their files (twins get numbers, by where they lie), their modules under the same names.

    Raises:
        SourceError: When a file or the model is not there.
        FormatError: When a file is not an adapter.
        MatchError: When adapters are for different bases, or do not fit the model in full.
    """
    resolved = [resolve_source(source, allow_pickle=allow_pickle) for source in sources]
    names = _different([own_name(source) for source in resolved], [_identity(source) for source in resolved])
    adapters = [read_source(source, name=name) for source, name in zip(resolved, names, strict=True)]
    for adapter in adapters:
        check_held(adapter)
    skeleton = _model(model, allow_pickle=allow_pickle) if model is not None else _skeleton_for(adapters)
    raws = [
        _raw(source) if set(a.info.format.split("+")) <= set(_LEAVES) else {}
        for source, a in zip(resolved, adapters, strict=True)
    ]
    if skeleton is None:
        denoiser = _denoiser(adapters)
        parts = [_by_own_names(adapter, raw, denoiser) for adapter, raw in zip(adapters, raws, strict=True)]
        paths: dict[str, list[str]] = {}
        for part in (part for file_parts in parts for part in file_parts):
            paths.setdefault(part.place.component, []).append(part.place.path)
        return FileSet(_together(adapters, parts), Names(paths, _same_names(adapters)), None, denoiser)
    parts = [_bound(adapter, raw, skeleton) for adapter, raw in zip(adapters, raws, strict=True)]
    return FileSet(_together(adapters, parts), names_of(skeleton.components), skeleton)


def _same_names(adapters: Sequence[Adapter]) -> Family | None:
    """Return the family of the files where all tools have the live model's own names for it."""
    family = family_named(adapters[0].info.base)
    alone = family is not None and all(adapter.info.base == family.name for adapter in adapters)
    return (
        family
        if family and alone and family.is_transformer and not (family.kohya_flat or family.comfyui)
        else None
    )


def _together(adapters: Sequence[Adapter], parts: Sequence[tuple[Part, ...]]) -> tuple[AdapterParts, ...]:
    return tuple(
        AdapterParts(a.info, adapter_parts, a.unused)
        for a, adapter_parts in zip(adapters, parts, strict=True)
    )


def _different(names: Sequence[str], identities: Sequence[str]) -> list[str]:
    """Number names that stand twice, by what they are the names of: draws go by names, and must not go by an order."""
    different: dict[int, str] = {}
    for place in sorted(range(len(names)), key=lambda place: identities[place]):
        number, one = 1, names[place]
        while one in different.values():
            number += 1
            one = f"{names[place]}_{number}"
        different[place] = one
    return [different[place] for place in range(len(names))]


def _identity(source: AdapterSource) -> str:
    """Return where a source lies, or what it holds where it lies nowhere."""
    weights = source.weights
    if isinstance(weights, Path):
        return f"{weights}"
    digest = hashlib.sha256()
    if isinstance(weights, bytes):
        digest.update(weights)
    else:
        for key in sorted(weights):
            digest.update(key.encode("utf-8", "replace"))
            if is_plain(weights[key]) and not (
                weights[key].is_meta or is_folded(weights[key])
            ):  # of others the reader says what is wrong
                held = weights[key].detach().resolve_conj().resolve_neg().cpu().contiguous().flatten()
                digest.update(held.view(torch.uint8).numpy().tobytes() if held.numel() else b"")
    return digest.hexdigest()


def located(adapter: Adapter, components: Mapping[str, nn.Module]) -> list[tuple[ModulePlace, LayerWeights]]:
    """
    Find the modules of a written adapter on components, in the component that its header names if it does.

    Raises:
        MatchError: When not all of it is there.
    """
    binding = bind(adapter, dict(components), adapter.info.name)
    if not binding.report.complete:
        raise MatchError(
            f"not all of it is there:\n{binding.report.table_on(Surface.PYTHON)}",
            file=adapter.info.source,
            problems=binding.report.problems,
        )
    return [(ModulePlace.of(b.live), b.weights) for b in binding.layers]


def _model(model: str | Path, *, allow_pickle: bool) -> Skeleton:
    from lora_mixer.pictures.outline import load_outline

    return load_outline(str(model), allow_pickle=allow_pickle)


def _skeleton_for(adapters: Sequence[Adapter]) -> Skeleton | None:
    infos = [adapter.info for adapter in adapters]
    bases = {info.base for info in infos}
    # text encoders alone do not tell between UNets: the first has what any of them has
    untold = {base for base in bases if set(EITHER.get(base, ())) & set(skeletons.UNETS)}
    bases = bases - untold or {EITHER[base][0] for base in untold}
    base = one_label(bases)
    if base is None:
        table = ", ".join(f"{info.source} ({info.base})" for info in infos)
        raise MatchError(
            f"these adapters are for different bases and cannot become one: {table}",
            problems=[Problem(info.source, f"is for {info.base}") for info in infos],
        )
    if base in skeletons.UNETS:
        return of_family(base)
    hints = {layer.target.hint for adapter in adapters for layer in adapter.layers}
    experts = tuple({str(hint) for hint in hints} & {"transformer_2"})

    def of(name: str) -> Skeleton | None:
        # transformers of one family come in several sizes: where no known one is it, the files' own names have to do
        sized = (of_family(name, size, experts=experts) for size in range(skeletons.SIZES[name]))
        return next((skeleton for skeleton in sized if all(_is_whole(a, skeleton) for a in adapters)), None)

    own = of(base) if base in skeletons.SIZES else None
    if own is not None:
        return own
    # the label is that of a family whose names others have: the one of these whose sizes they are, if there is one alone
    others = [of(name) for name in skeletons.SIZES if shares_names(base, name)]
    fitting = [skeleton for skeleton in others if skeleton is not None]
    return fitting[0] if len(fitting) == 1 else None


def _is_whole(adapter: Adapter, skeleton: Skeleton) -> bool:
    try:
        return bind(adapter, skeleton.components, adapter.info.name).report.complete
    except MatchError:
        return False


def _bound(adapter: Adapter, raw: Mapping[str, torch.Tensor], skeleton: Skeleton) -> tuple[Part, ...]:
    binding = bind(adapter, skeleton.components, adapter.info.name)
    if binding.report.unmatched:
        raise MatchError(
            f"a part of it is not in {skeleton.name}, so it would be lost:\n"
            f"{binding.report.table_on(Surface.PYTHON)}",
            file=adapter.info.source,
            problems=binding.report.problems,
        )
    parts = []
    for bound, sources in zip(binding.layers, binding.sources, strict=True):
        live = bound.live
        place = ModulePlace.of(live)
        weights, base = bound.weights, None
        if _needs_base(weights):
            base = _base(live, skeleton)
        if bound.siblings is not None:
            whole = WholeLayer(
                [(partial(_known_base, p.live, skeleton), p.file_rows) for p in bound.siblings.parts],
                bound.siblings.total,
            )
            weights = gathered(weights, whole, live.shape) if base is not None else weights
        bias = skeleton.tensor(live.component, f"{live.path}.bias")
        layer = sources[0]
        if bias is None and getattr(live.module, "bias", None) is not None:
            _refuse_unknown_bias(layer)
        # leaves of a fused layer are those of no module here
        leaves = _leaves(layer, raw) if weights is layer.weights else {}
        parts.append(Part(place, weights, base, bias, leaves, bound.columns))
    return tuple(parts)


def _base(live: LiveModule, skeleton: Skeleton) -> torch.Tensor | None:
    """Read a module's clean weight, where the base's weights are at hand."""
    name = live.path if live.is_bare else f"{live.path}.weight"
    return skeleton.tensor(live.component, name)


def _known_base(live: LiveModule, skeleton: Skeleton) -> torch.Tensor:
    """Read a module's clean weight from a folder that has all weights."""
    base = _base(live, skeleton)
    assert base is not None  # noqa: S101 -- asked for only where a sibling's was there
    return base


def _needs_base(weights: Any) -> bool:
    return bool(weights.algorithm != "lora")


BASE_REMEDY = Remedy(
    "name the base model, a checkpoint or a diffusers folder, with model=",
    "name the base model, a checkpoint or a diffusers folder, with --model",
)
"""What can be done where the base's weights are needed."""


def _refuse_unknown_bias(layer: AdapterLayer) -> None:
    """Refuse a trained bias whose base is not at hand: the change of it cannot be told."""
    if any(isinstance(part, Values) and part.bias is not None for part in _each(layer.weights)):
        raise SaveError(
            "holds a trained bias that replaces the model's own, and its change can be written where the base is known",
            key=layer.target.written,
            remedy=BASE_REMEDY,
            problems=(SaveProblem(layer.target.written, SaveReason.BASE, "set"),),
        )


def _each(weights: LayerWeights) -> Iterator[LayerWeights]:
    yield weights
    if isinstance(weights, Combined):
        for part in weights.parts:
            yield from _each(part)


def _denoiser(adapters: Sequence[Adapter]) -> str:
    """
    Name the denoiser of a base that is not known, once for all files of a set.

    One file may say ``transformer.``, the next ``diffusion_model.`` and the third nothing at all.
    """
    targets = [layer.target for adapter in adapters for layer in adapter.layers]
    hints = {target.hint for target in targets}
    if "transformer" in hints or any(adapter.info.base in TRANSFORMERS for adapter in adapters):
        return "transformer"
    of_denoiser = [target for target in targets if target.hint in (None, "denoiser")]
    if any(block_position(target.module) for target in of_denoiser) or any(
        t.written.startswith("unet.") for t in of_denoiser
    ):
        return "unet"
    return "transformer" if "denoiser" in hints else "model"


def _component(hint: str | None, denoiser: str, base: str) -> str:
    if hint in (None, "denoiser", "transformer"):
        return denoiser
    if hint == "t5":
        family = family_named(base)
        return (family.t5 if family is not None else "") or "text_encoder"
    return "text_encoder_2" if hint == "clip_g" else hint or denoiser


def _by_own_names(adapter: Adapter, raw: Mapping[str, torch.Tensor], denoiser: str) -> tuple[Part, ...]:
    written = adapter.component
    parts: dict[ModulePlace, Part] = {}
    twice = []
    families = families_of(adapter.info.base)
    for layer in adapter.layers:
        shape = getattr(layer.weights, "shape", None)
        module = layer.target.module
        flat = "." not in module and module != layer.target.written
        if shape is None or flat or any(is_translated(family.layouts, module) for family in families):
            raise SaveError(
                f"for a base that is not known ({adapter.info.base}) the module's own name "
                "or shape cannot be told",
                remedy=BASE_REMEDY,
                key=layer.target.written,
            )
        _refuse_unknown_bias(layer)
        hint = written if layer.target.hint is None and written is not None else layer.target.hint
        component = _component(hint, denoiser, adapter.info.base)
        path = layer.target.module
        if component.startswith("text_encoder"):
            path = path.removeprefix("text_model.")  # older transformers had this root, newer do not
        place = ModulePlace(component, path, tuple(shape))
        if place in parts:
            twice.append(str(place))
        parts[place] = Part(place, layer.weights, leaves=_leaves(layer, raw))
    if twice:
        raise MatchError(
            f"two parts of it are for one module: {', '.join(twice[:5])}",
            file=adapter.info.source,
            problems=[Problem(place, "stands in two parts of it") for place in twice],
        )
    return tuple(parts.values())


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
