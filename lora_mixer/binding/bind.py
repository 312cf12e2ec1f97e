"""Adapter to live modules: resolve every layer, explain what does not fit, change nothing."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from lora_mixer.algorithms import Combined
from lora_mixer.algorithms.columns import Padded
from lora_mixer.algorithms.experts import ParameterPair
from lora_mixer.algorithms.full import Full
from lora_mixer.algorithms.lora import LowRank
from lora_mixer.algorithms.rows import RowCut
from lora_mixer.algorithms.ungrouped import Ungrouped
from lora_mixer.algorithms.values import Values
from lora_mixer.binding.bound_moulds import MouldedBound
from lora_mixer.binding.index import ModuleIndex
from lora_mixer.binding.layers import BoundLayer, Siblings, Widening
from lora_mixer.binding.memory import named, poured
from lora_mixer.binding.packed import refuse_packed
from lora_mixer.binding.parameters import on_parameters
from lora_mixer.binding.report import ComponentMatch, MatchReport
from lora_mixer.components import TEXT_HINTS
from lora_mixer.errors import MatchError
from lora_mixer.families import family_named, family_of_class
from lora_mixer.families.counted_names import CANDIDATES, ORDERS
from lora_mixer.families.of_pipeline import UNKNOWN, describe_base
from lora_mixer.families.telling import CROSS_ATTENTION, TRANSFORMERS, alike, shares_names
from lora_mixer.formats.fronts import COMPONENTS_OF_HINT, ENCODER_HINTS, behind
from lora_mixer.formats.safeloras import PREFIX as ORDINAL
from lora_mixer.problem import AbsenceReason, NoteKind, Problem, Remark, Remedy
from lora_mixer.wording import first_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from torch import nn

    from lora_mixer.adapter import Adapter, AdapterLayer
    from lora_mixer.algorithms import LayerWeights
    from lora_mixer.binding.index import LiveModule, ModuleMatch, Placement
    from lora_mixer.binding.memory import ModelMemory

_SHOWN = 8
_SAME = 1e-3  # two spellings of one change, each rounded by itself
_COPIES = ("controlnet", "motion_adapter")
"""Components with copies of the denoiser's modules: files that do not name them are hardly meant for them."""
_TRANSPOSED = torch.nn.ConvTranspose1d, torch.nn.ConvTranspose2d, torch.nn.ConvTranspose3d
"""Their weights stand the other way round: (in, out / groups, *kernel)."""
_BLOCK = re.compile(r"(?<=[._])\d+(?=[._])")


@dataclass(frozen=True)
class Binding:
    """
    All bound layers of an adapter, and the report of how they were found.

    Attributes:
        layers: One for each live module that is changed.
        report: What was found and what was not.
        base: The family that it is for: the file's word, or the live model's where names do not tell the two apart.
        sources: The layers of the file that each of ``layers`` is from.
    """

    layers: Sequence[BoundLayer]
    report: MatchReport
    sources: tuple[tuple[AdapterLayer, ...], ...] = ()
    base: str = ""

    @property
    def lives(self) -> Sequence[LiveModule]:
        """The live module of each layer."""
        lives: Sequence[LiveModule] | None = getattr(self.layers, "lives", None)
        return [layer.live for layer in self.layers] if lives is None else lives


@dataclass
class _Tally:
    matched: dict[str, None] = field(default_factory=dict)
    unmatched: dict[str, Remark[AbsenceReason]] = field(default_factory=dict)
    named: set[str] = field(default_factory=set)
    """Spellings that mean modules here, whether or not their shapes are right."""
    keys_used: int = 0
    keys_unused: list[str] = field(default_factory=list)


@dataclass
class _LayerShare:
    """What one layer of the file is to one live module."""

    layer: AdapterLayer
    match: ModuleMatch
    placement: Placement
    change: LayerWeights
    widening: Widening | None

    @property
    def weights(self) -> LayerWeights:
        """The change of the live module's rows."""
        live, change = self.placement.live, self.change
        if live.is_bare and not live.is_packed and isinstance(change, Full) and change.weight is not None:
            return replace(change, weight=change.weight.reshape(live.shape))
        place = self.placement
        return RowCut(place.file_rows, self.match.total, place.live_rows, live.shape[0]).of(change)

    @property
    def pattern(self) -> tuple[LayerWeights, RowCut] | None:
        """The file's layer and what is cut from it; None where it is reshaped on the way."""
        live, place = self.placement.live, self.placement
        if live.is_bare and not live.is_packed:
            return None
        return self.change, RowCut(place.file_rows, self.match.total, place.live_rows, live.shape[0])


@dataclass
class _Matches:
    """The modules that were found, by component and path, what was counted, and what has another shape."""

    tallies: dict[str, _Tally] = field(default_factory=dict)
    shares: dict[tuple[str, str], list[_LayerShare]] = field(default_factory=dict)
    misfits: list[Problem] = field(default_factory=list)


def bind(
    adapter: Adapter,
    components: Mapping[str, nn.Module],
    name: str,
    *,
    component: str | None = None,
    memory: ModelMemory | None = None,
) -> Binding:
    """
    Resolve an adapter's layers on the modules of a pipeline.

    Args:
        adapter: What was read.
        components: The pipeline's modules by component name.
        name: The adapter name, for the report.
        component: The component to look in, whatever the keys say.
        memory: What was worked out of these modules before.

    Raises:
        MatchError: When nothing matches, a shape is wrong, two components match alike, two parts of the file land on
            one module and differ, or most of the denoiser's part finds no module. The message names the reason;
            nothing has been changed.
    """
    if component is not None and component not in components:
        raise MatchError(
            f"component {component!r} is not in this pipeline; it has {', '.join(components)}",
            component=component,
        )
    known = None if memory is None else memory.find(adapter, components, component)
    if known is not None:
        layers, told = poured(*known)
        return Binding(
            layers, named(known[0].report, adapter, name, _trained_apart(told)), base=known[0].base
        )
    if component is not None:
        _refuse_several(adapter, component)
    chosen = {component: components[component]} if component is not None else components
    make = ModuleIndex if memory is None else memory.index
    indexes = {part: make(part, root) for part, root in chosen.items()}
    given, adapter = adapter, replace(adapter, layers=on_parameters(adapter.layers, indexes.values()))
    _choose_order(adapter.layers, indexes)
    _prefer_layouts(adapter.layers, indexes, adapter.info.format)
    if component is None:
        fronts = _fronts(indexes)
        adapter = replace(
            adapter, layers=tuple([_in_own_component(layer, fronts) for layer in adapter.layers])
        )
    matches = _matched(adapter, indexes, component)
    tallies, shares, misfits = matches.tallies, matches.shares, matches.misfits
    aside = _for_others(adapter.layers, component)
    _refuse_partial(adapter, components, tallies, indexes, aside, fits=not misfits)
    report = MatchReport(
        adapter_name=name,
        source=adapter.info.source,
        format=adapter.info.format,
        components=tuple(
            ComponentMatch(
                part, tuple(t.matched), t.unmatched, t.keys_used, tuple(t.keys_unused), len(t.named)
            )
            for part, t in sorted(tallies.items())
        ),
        unused_keys=adapter.unused,
        notes=adapter.notes,
    )
    if component not in TEXT_HINTS and not misfits:
        _refuse_foreign(adapter, components, report)
    twice = [] if misfits else _twice(shares, indexes)
    _judge(adapter, components, report, misfits, twice, _given_by(shares, twice))
    bound: Sequence[BoundLayer] = tuple([_bound(group) for group in shares.values()])
    base = _base(adapter.info.base, report, indexes)
    general = replace(
        report, notes=(*_beside_only(bound), *_other_expert(adapter, report, indexes, component))
    )
    apart = _maybe_apart(shares.values())
    if memory is not None and all(map(_is_told_by_names, shares.values())):
        alone = [group[0] if len(group) == 1 else None for group in shares.values()]
        bound = memory.keep(given, component, bound, alone, general, base, apart)
    return Binding(
        bound,
        named(general, adapter, name, _trained_apart(apart)),
        tuple([tuple([share.layer for share in group]) for group in shares.values()]),
        base,
    )


def _matched(adapter: Adapter, indexes: Mapping[str, ModuleIndex], component: str | None) -> _Matches:
    """Look for the module of every layer."""
    unnamed = [layer for layer in adapter.layers if layer.target.hint is None or component is not None]
    home = component
    if home is None:
        said = adapter.component  # by its folder or header, which may be of another pipeline
        home = said if said in indexes else _home(unnamed, indexes, adapter.info.source)
    routes = _routes(adapter.layers, indexes)
    matches = _Matches()
    tallies, shares, misfits = matches.tallies, matches.shares, matches.misfits
    twins: dict[int, str] = {}
    for layer in adapter.layers:
        names = _candidates(layer, home, indexes, routes, adapter.component, forced=component is not None)
        match = _find(layer, names, indexes)
        if match is None:
            tally = tallies.setdefault(names[0] if names else "unnamed", _Tally())
            tally.unmatched[layer.target.module] = _absence(layer, names, indexes)
            tally.keys_unused.extend(layer.keys)
            continue
        live = match.placements[0].live
        tallies.setdefault(live.component, _Tally()).named.add(layer.target.module)
        weights, widening = _resized(_turned(layer.weights, match), match, indexes[live.component])
        misfit = None if widening is not None else _misfit(weights, match)
        if misfit:
            misfits.append(Problem(f"{live.component}.{live.path}", misfit + _within(layer, match)))
            continue
        tally = tallies.setdefault(live.component, _Tally())
        tally.keys_used += len(layer.keys)
        for placement in match.placements:
            tally.matched[placement.live.path] = None
            place = _place(placement.live, weights, twins)
            shares.setdefault((placement.live.component, place), []).append(
                _LayerShare(layer, match, placement, weights, widening)
            )
    return matches


def _is_told_by_names(shares: Sequence[_LayerShare]) -> bool:
    """Say whether no value was looked at to tell whether layers of a file contradict each other."""
    return len(shares) == 1 or all(share.placement.live_rows is not None for share in shares)


def _place(live: LiveModule, weights: LayerWeights, twins: dict[int, str]) -> str:
    """Return the path under which a module's changes are gathered: one for all that share a parameter, where it is its."""
    if live.tied and weights.reaches_twins:  # saved once for each module that shares it
        return twins.setdefault(id(live.weight), live.path)
    return live.path


def _twice(
    shares: Mapping[tuple[str, str], Sequence[_LayerShare]], indexes: Mapping[str, ModuleIndex]
) -> list[str]:
    """List the modules that several layers of the file change in ways that contradict each other."""
    return [
        f"{part}.{path}"
        for (part, path), group in shares.items()
        if _differ(group, known=indexes[part].family is not None or group[0].placement.live.tied)
    ]


def _given_by(shares: Mapping[tuple[str, str], Sequence[_LayerShare]], twice: Sequence[str]) -> list[str]:
    """Name the components that a file or folder says it has modules for which come to be one here; none where it says one."""
    groups = [group for (part, path), group in shares.items() if f"{part}.{path}" in set(twice)]
    said = {share.layer.target.hint: share.placement.live.component for group in groups for share in group}
    names = {
        hint if hint != "denoiser" else "unet" if live in said else live
        for hint, live in said.items()
        if hint is not None
    }
    return sorted(names) if len(names) > 1 else []


def _base(told: str, report: MatchReport, indexes: Mapping[str, ModuleIndex]) -> str:
    """Name the family of what was matched: families whose files share their names are told apart by the live class."""
    for part in report.components:
        family = indexes[part.component].family if part.component in indexes else None
        open_to = family_named(told) is None and (told in TRANSFORMERS or told == UNKNOWN)
        if part.matched and family is not None and (open_to or alike(told, family.name)):
            return family.name
    return told


def refuse_unusable(binding: Binding, pipe: object) -> None:
    """
    Refuse a layer with more inputs than the model has where the pipeline gives it none.

    Args:
        binding: What was bound.
        pipe: The pipeline.

    Raises:
        MatchError: When the pipeline is one of diffusers' that is not made for a second picture beside the latents.
    """
    if isinstance(binding.layers, MouldedBound):  # none of these widens anything
        return
    wider = [layer for layer in binding.layers if layer.widening is not None]
    kind = type(pipe).__name__
    known = type(pipe).__module__.startswith("diffusers.") and kind.endswith("Pipeline")
    if wider and known and not any(word in kind for word in ("Control", "Fill")):
        live = wider[0].live
        columns = wider[0].widening.columns if wider[0].widening is not None else 0
        roots = [layer.widening.root for layer in wider if layer.widening is not None]
        family = family_of_class(type(roots[0]).__name__)
        other = "" if family is None else family.controlled
        way = f"; make a {other} of the same parts ({other}.from_pipe)" if other else ""
        raise MatchError(
            f"the layer of a control adapter, with {columns} inputs in it and {live.shape[1]} here, and {kind} gives the "
            f"model no picture to be controlled by{way}",
            file=binding.report.source,
            key=f"{live.component}.{live.path}",
        )


def _misfit(weights: LayerWeights, match: ModuleMatch) -> str | None:
    """Say why a layer of the file is not for what its name means here, or None."""
    live = match.placements[0].live
    of_kind = _misfit_of_kind(weights, match)
    if of_kind is not None:
        return of_kind
    if live.is_bare and isinstance(weights, ParameterPair):
        return weights.misfit(live.shape)
    if live.is_packed and weights.bias_delta(None, 1.0) is not None:
        return "changes a bias, which stands apart from the rows for queries, keys and values here"
    if live.is_bare and not live.is_packed:
        whole = isinstance(weights, Full) and weights.weight is not None and weights.bias is None
        if not whole or weights.weight.numel() != live.weight.numel():  # type: ignore[attr-defined]
            return (
                f"a parameter {live.shape} that is not a module's weight takes a change of its own size only"
            )
        return None
    misfit = weights.misfit(match.shape)
    if misfit is None:
        misfit = _bias_misfit(weights, match)
    if misfit is None and len({p.live.shape[1:] for p in match.placements}) > 1:
        misfit = "its parts have different inputs here"
    return misfit


def _misfit_of_kind(weights: LayerWeights, match: ModuleMatch) -> str | None:
    """Say why no change of its kind can be what it is here, or None."""
    what = "+".join(weights.algorithms)
    held = not weights.beside_only and _has_beside_only(weights)
    if held or any(
        p.live_rows is not None and weights.take(p.file_rows, match.total).needs_whole(p.live.shape)
        for p in match.placements
    ):
        of = "of a pair over all inputs of a convolution in groups"
        return f"{what} {of if held else 'on a layer of which a module here has a part only'}"
    if match.placements[0].live.tied and weights.took_from_base:
        return (
            f"{what} started from a part of a weight that other modules share; PEFT took it from all of them, so what was "
            "trained is not a change of this module"
        )
    return None


def _bias_misfit(weights: LayerWeights, match: ModuleMatch) -> str | None:
    """Say why a change of a bias is not for this module; the rows of a weight are its outputs, but not where it is transposed."""
    bias = weights.bias_delta(None, 1.0)
    if bias is None:
        return None
    module = match.placements[0].live.module
    if hasattr(module, "num_embeddings"):
        return "changes a bias, and an embedding has none"
    outputs = module.out_channels if isinstance(module, _TRANSPOSED) else match.shape[0]
    if bias.numel() != outputs:
        return f"bias of {bias.numel()} values, the module has {outputs} outputs"
    return None


def _within(layer: AdapterLayer, match: ModuleMatch) -> str:
    """Name the file's layer, and the modules whose sizes are taken together, where the live module is a part of it only."""
    if match.is_whole:
        return ""
    paths = list(dict.fromkeys(placement.live.path for placement in match.placements))
    one = f" (in the file with others as one layer, {layer.target.written}"
    return f"{one}; the size is that of {first_of(paths, _SHOWN)} together)" if len(paths) > 1 else f"{one})"


def _beside_only(bound: Sequence[BoundLayer]) -> list[Remark[NoteKind]]:
    """Say which layers of a load are in no weight, whatever the mix."""
    names = [f"{x.live.component}.{x.live.path}" for x in bound if x.weights.beside_only]
    if not names:
        return []
    note = (
        f"{len(names)} convolutions in groups have a pair over all inputs, which no weight of theirs can hold: it runs "
        f"beside them in every mix ({first_of(names, _SHOWN)})"
    )
    return [Remark(note, NoteKind.BESIDE)]


def _other_expert(
    adapter: Adapter, report: MatchReport, indexes: Mapping[str, ModuleIndex], asked: str | None
) -> list[Remark[NoteKind]]:
    """Say which of two experts a file went to that does not name one: its keys are the same for either."""
    told = asked is not None or adapter.component in indexes
    matched = {part.component for part in report.components if part.matched}
    if (
        told
        or not {"transformer", "transformer_2"} <= indexes.keys()
        or "transformer" not in matched
        or "transformer_2" in matched
    ):
        return []
    note = (
        "it does not say which of the two experts it is for and went to transformer, that of high noise; for the other load it "
        'with component="transformer_2", for both under a second name'
    )
    return [Remark(note, NoteKind.EXPERT)]


def _maybe_apart(shares: Iterable[Sequence[_LayerShare]]) -> tuple[LowRank, Sequence[int]] | None:
    """Return the first pair of a fused layer and the rows of its parts, where its shapes and alpha may be of parts trained apart."""
    fused = (share for each in shares for share in each if len(share.match.placements) > 1)
    first = next((share for share in fused if isinstance(share.change, LowRank) and share.change.alpha), None)
    if first is None or not isinstance(first.change, LowRank):
        return None
    heights = [sum(stop - start for start, stop in place.file_rows) for place in first.match.placements]
    parts, rank = len(heights), first.change.rank
    if (
        rank % parts
        or first.change.scale * parts > 1 + _SAME
        or first.change.up.is_meta
        or first.change.up.shape[0] != sum(heights)
    ):
        return None
    return first.change, heights


def _trained_apart(apart: tuple[LayerWeights, Sequence[int]] | None) -> list[Remark[NoteKind]]:
    """Say so where parts of a fused layer were trained apart (Kohya's ``split_qkv``) and alpha counts against all their ranks."""
    if apart is None or not isinstance(apart[0], LowRank):
        return []
    pair: LowRank = apart[0]
    heights = apart[1]
    parts, rank = len(heights), pair.rank
    rows = torch.split(pair.up.flatten(1).float() != 0, list(heights))  # fp8 cannot be counted
    each = rank // parts
    if any(int(up.sum()) != int(up[:, n * each : (n + 1) * each].sum()) for n, up in enumerate(rows)):
        return []
    note = (
        f"parts of its fused layers were trained apart, at rank {each} each: every reader, this one too, takes alpha "
        f"{pair.alpha:g} over the rank of the whole, {rank}, which is {parts} times less than in training"
    )
    return [Remark(note, NoteKind.TRAINED_APART)]


def _has_beside_only(weights: LayerWeights) -> bool:
    return weights.beside_only or any(_has_beside_only(part) for part in weights.inner_parts())


def _over_all_inputs(weights: LayerWeights, match: ModuleMatch) -> LayerWeights:
    """Return a pair without groups on a convolution in groups as what runs beside it; all else as it is."""
    live = match.placements[0].live
    groups = getattr(live.module, "groups", 1)
    if groups == 1 or live.is_bare or len(live.shape) < 3 or weights.beside_only:
        return weights
    wide = Ungrouped(weights, groups, weights.alpha)
    whole = wide.whole_shape(match.shape)
    fits = weights.misfit(match.shape) is not None and weights.misfit(whole) is None
    return wide if fits and wide.factors(match.shape) is not None else weights


def _turned(weights: LayerWeights, match: ModuleMatch) -> LayerWeights:
    """Return whole weights as (out, in, ...) where the module, and the file with it, stores them the other way round."""
    live = match.placements[0].live
    if not live.transposed:
        return weights
    if isinstance(weights, Combined):
        return replace(weights, parts=tuple(_turned(part, match) for part in weights.parts))
    stored = live.shape[::-1]
    if isinstance(weights, Values) and weights.weight is not None and tuple(weights.weight.shape) == stored:
        return replace(weights, weight=weights.weight.T)
    return weights


def _patched(weights: LayerWeights, match: ModuleMatch) -> LayerWeights:
    """Return the change of a layer that cuts a picture into patches for the form that it has here: a convolution or linear."""
    live = match.placements[0].live
    made_for, kernel = getattr(weights, "shape", None), getattr(live.module, "kernel_size", None)
    if isinstance(weights, Full) and weights.weight is not None:
        made_for = tuple(weights.weight.shape)
    cuts = kernel is None or getattr(live.module, "stride", None) == kernel
    if (
        live.is_bare
        or not cuts
        or made_for is None
        or min(len(made_for), len(live.shape)) != 2
        or len(made_for) == len(live.shape)
    ):
        return weights
    if math.prod(made_for[1:]) != math.prod(live.shape[1:]):
        return weights
    if isinstance(weights, Full) and weights.weight is not None:
        return replace(weights, weight=weights.weight.reshape(match.shape))
    if isinstance(weights, LowRank) and weights.mid is None:
        return replace(weights, up=weights.up.flatten(1), down=weights.down.reshape(-1, *live.shape[1:]))
    return weights


def _resized(
    weights: LayerWeights, match: ModuleMatch, index: ModuleIndex
) -> tuple[LayerWeights, Widening | None]:
    """Return a layer of the inputs that the live module has, or what the module has to become, where its family knows both."""
    weights = (
        _over_all_inputs(_patched(weights, match), match)
        if index.family
        else _over_all_inputs(weights, match)
    )
    live, columns = match.placements[0].live, weights.in_width
    shape = live.shape
    if columns is None or len(shape) < 2 or columns == shape[1] or not index.may_widen(live.path):
        return weights, None
    if columns < shape[1]:
        return Padded(weights, columns, weights.alpha), None
    fits = match.is_whole and weights.misfit((shape[0], columns, *shape[2:])) is None
    return weights, Widening(columns, index.root) if fits else None


def _bound(shares: Sequence[_LayerShare]) -> BoundLayer:
    """Return a live module all that layers of the file change in it: one layer, or several that have rows of their own."""
    live = shares[0].placement.live
    partial = [share for share in shares if share.placement.live_rows is not None]
    if len(partial) > 1:
        parts = tuple(share.weights for share in partial)
        return BoundLayer(live, Combined(parts, parts[0].alpha))
    weights, match = shares[0].weights, shares[0].match
    mixes = not match.is_whole and not partial and weights.needs_whole(live.shape)
    siblings = Siblings(match.placements, match.total) if mixes else None
    return BoundLayer(live, weights, siblings, shares[0].widening)


def _differ(shares: Sequence[_LayerShare], *, known: bool) -> bool:
    """
    Say whether several layers of a file contradict each other in one module.

    Those that change different rows of it do not, nor those that hold one change in two spellings, which counts once.
    """
    if len(shares) == 1:
        return False
    ranges = [share.placement.live_rows for share in shares]
    if all(rows is not None for rows in ranges):
        spans = sorted(span for rows in ranges if rows is not None for span in rows)
        return any(before[1] > after[0] for before, after in pairwise(spans))
    # trainers of transformers write fused and split keys of one change; for UNets no tool is known that does
    return not known or not all(_same(shares[0], other) for other in shares[1:])


def _same(one: _LayerShare, other: _LayerShare) -> bool:
    live = one.placement.live
    first, second = one.weights, other.weights
    if first.needs_whole(live.shape) or second.needs_whole(live.shape):
        return False
    weight = live.weight
    readable = weight.is_floating_point() and tuple(weight.shape) == live.shape and not weight.is_meta
    base = weight.detach().float().cpu() if readable else torch.zeros(live.shape)
    changes = [weights.map(lambda t: t.cpu()).delta(base, 1.0) for weights in (first, second)]
    return float((changes[0] - changes[1]).norm()) <= _SAME * float(changes[0].norm())


def _prefer_layouts(layers: Sequence[AdapterLayer], indexes: Mapping[str, ModuleIndex], said: str) -> None:
    spellings = [layer.target.module for layer in layers if layer.target.hint not in TEXT_HINTS]
    for part, index in indexes.items():
        if part not in TEXT_HINTS:
            index.prefer(spellings, said)


def _absence(
    layer: AdapterLayer, names: Sequence[str], indexes: Mapping[str, ModuleIndex]
) -> Remark[AbsenceReason]:
    present = [part for part in names if part in indexes]
    if not present:
        return Remark("the pipeline has no such component", AbsenceReason.NO_COMPONENT)
    index = indexes[present[0]]
    if index.may_lack(layer.target.module) and index.family is not None:
        return Remark(f"this {index.family.name} model has no such module", AbsenceReason.NOT_IN_FAMILY)
    return Remark("no such module", AbsenceReason.NO_MODULE)


def _refuse_partial(
    adapter: Adapter,
    components: Mapping[str, nn.Module],
    tallies: Mapping[str, _Tally],
    indexes: Mapping[str, ModuleIndex],
    aside: Collection[str],
    *,
    fits: bool,
) -> None:
    """
    Refuse a file that a model of a known family takes a part of by accident.

    A part by family is none: files of sibling models have modules that this one need not have.
    """
    info = adapter.info
    left = {
        part: [x for x, why in t.unmatched.items() if why.kind is AbsenceReason.NO_MODULE and x not in aside]
        for part, t in tallies.items()
    }
    refuse_packed(left, indexes, len(adapter.layers), info.source)
    for part, tally in tallies.items():
        index = indexes.get(part)
        if index is None or index.family is None or not tally.named:
            continue
        foreign = [
            spelling for spelling in tally.unmatched if spelling not in aside and not index.may_lack(spelling)
        ]
        told = family_named(info.base)
        other = (
            told is not None and told is not index.family and not shares_names(told.name, index.family.name)
        )
        here = describe_base(components)
        total = len(tally.named) + len(foreign)
        strange = (
            f"an adapter for {info.base}, and this pipeline is {here}: it has modules called as {len(tally.named)} of its {total} "
            f"are, and none called {', '.join(foreign[:3])}; nothing was changed"
        )
        if foreign and other:
            raise MatchError(strange, file=info.source, problems=_absent(foreign))
        alien = [
            spelling
            for spelling in foreign
            if told is not index.family and _is_alien(spelling, index, tally.named)
        ]
        if alien:
            raise MatchError(
                f"an adapter for {info.base}, and this pipeline is {here}: {len(alien)} of the "
                f"{total} modules are of kinds that none of its blocks has, such as {alien[0]}; "
                "nothing was changed",
                file=info.source,
                problems=_absent(alien),
            )
        deeper = [spelling for spelling in foreign if fits and _is_deeper(spelling, index, tally.named)]
        if deeper:
            raise MatchError(
                f"{len(deeper)} of its {len(adapter.layers)} modules are of blocks that this {here} does not "
                f"have, such as {deeper[0]}: the adapter ({info.base}) was made for a deeper model; nothing was changed",
                file=info.source,
                problems=_absent(deeper),
            )
        if len(foreign) >= len(tally.named):
            raise MatchError(strange, file=info.source, problems=_absent(foreign))


def _absent(spellings: Sequence[str]) -> list[Problem]:
    return [
        Problem(spelling, "this pipeline has no such module", reason=AbsenceReason.NO_MODULE)
        for spelling in spellings
    ]


def _refuse_several(adapter: Adapter, component: str) -> None:
    """Refuse a file that names two denoisers, such as both experts of Wan 2.2, where all of it is asked for in one."""
    hints = {layer.target.hint for layer in adapter.layers} - {None, *TEXT_HINTS}
    named = {str(hint): set(COMPONENTS_OF_HINT.get(str(hint), (hint,))) for hint in hints}
    apart = sorted(
        hint for hint, parts in named.items() if any(parts.isdisjoint(other) for other in named.values())
    )
    if apart and component not in TEXT_HINTS:
        raise MatchError(
            f"its keys name {' and '.join(apart)}, each with changes of its own, and all of them are asked for in one, "
            f"{component!r}; nothing was changed",
            file=adapter.info.source,
            remedy=Remedy("leave component= out, or load a file for each"),
            component=component,
        )


def _for_others(layers: Sequence[AdapterLayer], component: str | None) -> set[str]:
    """Return the spellings of layers that the file names another component for than the one that was asked for."""
    if component is None:
        return set()
    return {
        layer.target.module
        for layer in layers
        if (layer.target.hint in TEXT_HINTS) != (component in TEXT_HINTS) and layer.target.hint is not None
    }


def _is_deeper(spelling: str, index: ModuleIndex, known: Collection[str]) -> bool:
    """Say whether a module is of a block of which nothing is here, and would be if the block's number were smaller."""
    number = _BLOCK.search(spelling)
    if number is None or any(name.startswith(spelling[: number.end() + 1]) for name in known):
        return False
    return int(number[0]) > 0 and index.find(_BLOCK.sub("0", spelling, count=1)) is not None


def _is_alien(spelling: str, index: ModuleIndex, known: Collection[str]) -> bool:
    """Say whether a module is of a block that is here, and of a kind that no block here has."""
    number = _BLOCK.search(spelling)
    if number is None or not any(name.startswith(spelling[: number.end() + 1]) for name in known):
        return False
    return index.find(_BLOCK.sub("0", spelling, count=1)) is None


def _refuse_foreign(adapter: Adapter, components: Mapping[str, nn.Module], report: MatchReport) -> None:
    """Refuse an adapter whose denoiser is another architecture, even where its text encoder part would fit."""
    info = adapter.info
    denoising = sum(1 for layer in adapter.layers if layer.target.hint not in TEXT_HINTS)
    matched = sum(len(part.matched) for part in report.components if part.component not in TEXT_HINTS)
    if info.base not in TRANSFORMERS or matched or not denoising:
        return
    message = (
        f"an adapter for {info.base} in {info.format} names, and this pipeline is "
        f"{describe_base(components)}: none of its {denoising} denoiser modules is here"
    )
    lacking = [
        part.component
        for part in report.components
        if part.component not in TEXT_HINTS
        and any(why.kind is AbsenceReason.NO_COMPONENT for why in part.unmatched.values())
    ]
    if lacking:
        message += f": it has no {' and no '.join(lacking)}, which they name"
    transformer = components.get("transformer")
    if transformer is not None and family_of_class(type(transformer).__name__) is None:
        message += (
            "; other names than its own are not known of this class, so that adapters for it load when their keys are the "
            "module paths of the diffusers model (as diffusers and PEFT save them): convert this one to those names first"
        )
    raise MatchError(
        message,
        file=info.source,
        component=lacking[0] if lacking else None,
        problems=report.problems,
        remedy=Remedy("component= says what else they are for") if lacking else None,
    )


def _judge(
    adapter: Adapter,
    components: Mapping[str, nn.Module],
    report: MatchReport,
    misfits: Sequence[Problem],
    twice: Sequence[str],
    given_by: Sequence[str],
) -> None:
    info = adapter.info
    width = next((width for width, family in CROSS_ATTENTION.items() if family == info.base), None)
    made_with = f"{info.base} (cross-attention {width})" if width else info.base
    made_for = f"the adapter is for {made_with}, this pipeline is {describe_base(components)}"
    if misfits:
        listed = first_of([str(misfit) for misfit in misfits], _SHOWN, between="\n  ", last="\n  ")
        raise MatchError(
            f"{len(misfits)} of {len(adapter.layers)} modules have another shape here ({made_for}):\n  {listed}",
            file=info.source,
            problems=misfits,
        )
    if report.matched == 0:
        reasons = sorted({why for part in report.components for why in part.unmatched.values()})
        first = [spelling for part in report.components for spelling in part.unmatched][:3]
        raise MatchError(
            f"none of its {len(adapter.layers)} modules is in this pipeline: {made_for}. "
            f"Components: {', '.join(components)}; {'; '.join(reasons)}, such as {', '.join(first)}",
            file=info.source,
            problems=report.problems,
        )
    if twice:
        how = (
            f"by its parts {' and '.join(given_by)}, which are one here"
            if given_by
            else "under different spellings"
        )
        raise MatchError(
            f"{len(twice)} modules are given twice {how}: {', '.join(twice[:5])}",
            file=info.source,
            problems=[Problem(module, f"is given twice {how}") for module in twice],
            remedy=Remedy(
                "name the one that is meant by subfolder= or component=, and load the other under a name of its own",
                "name the one that is meant, and the other as an adapter of its own",
                "upload each as an adapter of its own",
            )
            if given_by
            else None,
        )


def _routes(layers: Sequence[AdapterLayer], indexes: Mapping[str, ModuleIndex]) -> dict[str, str]:
    """
    Find the text encoders that hints mean where the component of that name is not it.

    The number in ``te3`` is an order of the tool, not of the pipeline: T5 is the third encoder of SD3 and the second of
    Flux. The names of its modules and their shapes tell.
    """
    routes: dict[str, str] = {}
    for hint in {layer.target.hint for layer in layers if layer.target.hint in TEXT_HINTS}:
        hinted = [layer for layer in layers if layer.target.hint == hint]
        named = [part for part in COMPONENTS_OF_HINT.get(hint or "", (hint,)) if part in indexes]
        if any(_find(layer, [str(part)], indexes) is not None for part in named for layer in hinted):
            continue
        fits = {
            part: sum(_fits(layer, index) for layer in hinted)
            for part, index in indexes.items()
            if part in TEXT_HINTS and part not in named
        }
        best = max(fits, key=lambda part: fits[part], default=None)
        if best is not None and fits[best]:
            routes[str(hint)] = best
    return routes


def _candidates(
    layer: AdapterLayer,
    home: str | None,
    indexes: Mapping[str, ModuleIndex],
    routes: Mapping[str, str],
    said: str | None,
    *,
    forced: bool,
) -> tuple[str, ...]:
    hint = layer.target.hint
    if forced or hint is None:
        return (home,) if home is not None else ()
    if hint == "denoiser" and said is not None and said in indexes and said not in TEXT_HINTS:
        return (said,)  # its names say a denoiser, its header or folder says which
    if hint in routes:
        return (routes[hint],)
    named = COMPONENTS_OF_HINT.get(hint, (hint,))
    present = tuple(part for part in named if part in indexes)
    if present[:1] != named[:1] and hint in ENCODER_HINTS:
        # such as clip_g on a refiner, which has it as its only one; but SDXL without its second encoder has no clip_g
        present = tuple(part for part in present if _fits(layer, indexes[part]))
    # A bare module of a class that says nothing takes what fits it.
    return present[:1] or (("model",) if "model" in indexes else named[:1])


def _find(
    layer: AdapterLayer, names: Sequence[str], indexes: Mapping[str, ModuleIndex]
) -> ModuleMatch | None:
    for part in names:
        index = indexes.get(part)
        if index is None:
            continue
        return _module(layer, index)
    return None


def _module(layer: AdapterLayer, index: ModuleIndex) -> ModuleMatch | None:
    # Spellings with more of their front serve models whose own paths start like a component's or a wrapper's name.
    return next((match for x in _spellings(layer, index) if (match := index.find(x)) is not None), None)


def _fits(layer: AdapterLayer, index: ModuleIndex) -> bool:
    match = _module(layer, index)
    return match is not None and _misfit(layer.weights, match) is None


def _in_own_component(layer: AdapterLayer, fronts: Mapping[str, ModuleIndex]) -> AdapterLayer:
    """Hear a key whose front is the name of a component that this pipeline has, whatever files usually mean by it."""
    target = layer.target
    written, module = target.written, target.module  # the latter without words of diffusers' old processors
    if target.hint is not None and target.hint not in COMPONENTS_OF_HINT:
        module = (
            written  # what stands behind the name of one component (transformer_2.transformer.) is no other's
        )
    for front, index in fronts.items():
        if not (written.startswith(front) or module.startswith(front)):
            continue
        inside = [spelling for spelling in dict.fromkeys((written, module)) if spelling.startswith(front)]
        part = index.component
        if part in COMPONENTS_OF_HINT.get(target.hint or "", (target.hint,)):
            return layer  # that is how it is understood anyway
        for spelling in inside:
            for path in (spelling[len(front) :], behind(front, spelling)):
                if index.find(path) is not None:
                    return replace(layer, target=replace(target, hint=part, module=path))
    return layer


def _fronts(indexes: Mapping[str, ModuleIndex]) -> dict[str, ModuleIndex]:
    """List how keys that name a component may begin, the longer names first."""
    spelt = ("{}.", "lora_{}_", "lora_{}.", "lycoris_{}_")
    parts = sorted(indexes, key=len, reverse=True)
    return {front.format(part): indexes[part] for part in parts for front in spelt}


def _spellings(layer: AdapterLayer, index: ModuleIndex) -> tuple[str, ...]:
    module = layer.target.module
    if not module.startswith(f"{ORDINAL}?:"):
        return layer.target.spellings
    number = module.rpartition(":")[2]
    classes = index.ordinal_classes
    return (f"{ORDINAL}{','.join(classes)}:{number}" if classes else module,)


def _choose_order(layers: Sequence[AdapterLayer], indexes: Mapping[str, ModuleIndex]) -> None:
    """For a counted file: take the order of a block's parts under which most layers fit."""
    counted = [layer for layer in layers if layer.target.module.startswith(ORDINAL)]
    for index in indexes.values() if counted else ():
        _choose_ordinal(counted, index)
        fits = {}
        for index.ordinal_order in ORDERS:
            fits[index.ordinal_order] = sum(_fits(layer, index) for layer in counted)
        index.ordinal_order = max(ORDERS, key=lambda order: fits[order])


def _choose_ordinal(layers: Sequence[AdapterLayer], index: ModuleIndex) -> None:
    """For a counted file without class names: take the classes under which every layer fits."""
    counted = [layer for layer in layers if layer.target.module.startswith(f"{ORDINAL}?:")]
    for classes in CANDIDATES if counted else ():
        paths = index.ordinal_paths(classes)
        if paths and len(paths) == len(counted):
            index.ordinal_classes = classes
            return


def _home(layers: Sequence[AdapterLayer], indexes: Mapping[str, ModuleIndex], label: str) -> str | None:
    """Find the one component that layers without a component's name belong to."""
    if not layers:
        return None
    counts: dict[str, int] = {}
    for part, index in indexes.items():
        counts[part] = sum(_fits(layer, index) for layer in layers)
    best = max(counts.values())
    winners = [part for part, count in counts.items() if count == best]
    if best == 0:  # nothing fits: name the component whose names at least are known, for the message
        known = {part: sum(_module(x, index) is not None for x in layers) for part, index in indexes.items()}
        return max(known, key=lambda part: known[part])
    originals = [part for part in winners if not part.startswith(_COPIES)]
    if len(originals) == 1:
        return originals[0]
    if len(winners) > 1:
        raise MatchError(
            f"its keys do not name a component, and {' and '.join(winners)} match alike ({best} of {len(layers)} "
            "modules each)",
            file=label,
            argument="component",
            problems=[Problem(part, f"matches {best} of {len(layers)} modules") for part in winners],
            remedy=Remedy(f"say which with component={winners[0]!r} or component={winners[1]!r}"),
        )
    return winners[0]
