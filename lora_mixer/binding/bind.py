"""Adapter to live modules: resolve every layer, explain what does not fit, change nothing."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from lora_mixer.binding.components import base_of
from lora_mixer.binding.index import ModuleIndex
from lora_mixer.binding.ordinal import CANDIDATES, ORDERS
from lora_mixer.binding.report import ComponentMatch, MatchReport
from lora_mixer.errors import MatchError
from lora_mixer.formats.families import CROSS_ATTENTION, DIT_FAMILIES, TEXT_HINTS
from lora_mixer.formats.names import COMPONENTS_OF_HINT, ENCODER_HINTS
from lora_mixer.formats.safeloras import PREFIX as ORDINAL

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

    from lora_mixer.adapter import Adapter, AdapterLayer
    from lora_mixer.algorithms import LayerWeights
    from lora_mixer.binding.index import LiveModule

_SHOWN = 8
_COPIES = ("controlnet", "motion_adapter")
"""Components with copies of the denoiser's modules: files that do not name them are hardly meant for them."""


@dataclass(frozen=True)
class BoundLayer:
    """One module of the pipeline and what an adapter does to it."""

    live: LiveModule
    weights: LayerWeights


@dataclass(frozen=True)
class Binding:
    """All bound layers of an adapter, and the report of how they were found."""

    layers: tuple[BoundLayer, ...]
    report: MatchReport


@dataclass
class _Tally:
    matched: dict[str, None] = field(default_factory=dict)
    unmatched: dict[str, str] = field(default_factory=dict)
    keys_used: int = 0
    keys_unused: list[str] = field(default_factory=list)


def bind(
    adapter: Adapter, components: Mapping[str, nn.Module], name: str, *, component: str | None = None
) -> Binding:
    """
    Resolve an adapter's layers on the modules of a pipeline.

    Args:
        adapter: What was read.
        components: The pipeline's modules by component name.
        name: The adapter name, for the report.
        component: The component to look in, whatever the keys say.

    Raises:
        MatchError: When nothing matches, a shape is wrong, two components match alike, or two parts of the file
            land on one module. The message names the reason; nothing has been changed.
    """
    if component is not None and component not in components:
        msg = f"component {component!r} is not in this pipeline; it has {', '.join(components)}"
        raise MatchError(msg)
    chosen = {component: components[component]} if component is not None else components
    indexes = {part: ModuleIndex(part, root) for part, root in chosen.items()}
    _choose_order(adapter.layers, indexes)
    if component is None:
        fronts = _fronts(indexes)
        adapter = replace(adapter, layers=tuple(_in_own_component(layer, fronts) for layer in adapter.layers))
    unnamed = [layer for layer in adapter.layers if layer.target.hint is None or component is not None]
    home = component
    if home is None:
        said = adapter.component  # by its folder or header, which may be of another pipeline
        home = said if said in indexes else _home(unnamed, indexes, adapter.info.source)
    tallies: dict[str, _Tally] = {}
    bound: list[BoundLayer] = []
    misfits: list[str] = []
    twice: list[str] = []
    for layer in adapter.layers:
        names = _candidates(layer, home, indexes, forced=component is not None)
        live = _find(layer, names, indexes)
        if live is None:
            tally = tallies.setdefault(names[0] if names else "unnamed", _Tally())
            absent = not any(part in indexes for part in names)
            tally.unmatched[layer.target.module] = (
                "the pipeline has no such component" if absent else "no such module"
            )
            tally.keys_unused.extend(layer.keys)
            continue
        misfit = layer.weights.misfit(live.shape)
        if misfit:
            misfits.append(f"{live.component}.{live.path}: {misfit}")
            continue
        tally = tallies.setdefault(live.component, _Tally())
        if live.path in tally.matched:
            twice.append(f"{live.component}.{live.path}")
        tally.matched[live.path] = None
        tally.keys_used += len(layer.keys)
        bound.append(BoundLayer(live, layer.weights))
    report = MatchReport(
        adapter_name=name,
        source=adapter.info.source,
        format=adapter.info.format,
        components=tuple(
            ComponentMatch(part, tuple(t.matched), t.unmatched, t.keys_used, tuple(t.keys_unused))
            for part, t in sorted(tallies.items())
        ),
        unused_keys=adapter.unused,
        notes=adapter.notes,
    )
    if component is None:
        _refuse_foreign(adapter, components, report)
    _judge(adapter, components, report, misfits, twice)
    return Binding(tuple(bound), report)


def _refuse_foreign(adapter: Adapter, components: Mapping[str, nn.Module], report: MatchReport) -> None:
    """Refuse an adapter whose denoiser is another architecture, even where its text encoder part would fit."""
    info = adapter.info
    denoising = sum(1 for layer in adapter.layers if layer.target.hint not in TEXT_HINTS)
    matched = sum(len(part.matched) for part in report.components if part.component not in TEXT_HINTS)
    if info.base not in DIT_FAMILIES or matched or not denoising:
        return
    msg = (
        f"{info.source}: an adapter for {info.base} in {info.format} names, and this pipeline is "
        f"{base_of(dict(components))}: none of its {denoising} denoiser modules is here"
    )
    if "transformer" in components:
        msg += (
            "; adapters for transformers load when their keys are the module paths of the diffusers model (as diffusers "
            "and PEFT save them): convert this one to those names first"
        )
    raise MatchError(msg)


def _judge(
    adapter: Adapter,
    components: Mapping[str, nn.Module],
    report: MatchReport,
    misfits: Sequence[str],
    twice: Sequence[str],
) -> None:
    info = adapter.info
    width = next((width for width, family in CROSS_ATTENTION.items() if family == info.base), None)
    made_with = f"{info.base} (cross-attention {width})" if width else info.base
    made_for = f"the adapter is for {made_with}, this pipeline is {base_of(dict(components))}"
    if misfits:
        more = f"\n  and {len(misfits) - _SHOWN} more" if len(misfits) > _SHOWN else ""
        msg = (
            f"{info.source}: {len(misfits)} of {len(adapter.layers)} modules have another shape here ({made_for}):\n  "
            + "\n  ".join(misfits[:_SHOWN])
            + more
        )
        raise MatchError(msg)
    if report.matched == 0:
        reasons = sorted({why for part in report.components for why in part.unmatched.values()})
        first = [spelling for part in report.components for spelling in part.unmatched][:3]
        msg = (
            f"{info.source}: none of its {len(adapter.layers)} modules is in this pipeline: {made_for}. "
            f"Components: {', '.join(components)}; {'; '.join(reasons)}, such as {', '.join(first)}"
        )
        raise MatchError(msg)
    if twice:
        msg = f"{info.source}: {len(twice)} modules are given twice under different spellings: {', '.join(twice[:5])}"
        raise MatchError(msg)


def _candidates(
    layer: AdapterLayer, home: str | None, indexes: Mapping[str, ModuleIndex], *, forced: bool
) -> tuple[str, ...]:
    hint = layer.target.hint
    if forced or hint is None:
        return (home,) if home is not None else ()
    named = COMPONENTS_OF_HINT.get(hint, (hint,))
    present = tuple(part for part in named if part in indexes)
    if present[:1] != named[:1] and hint in ENCODER_HINTS:
        # such as clip_g on a refiner, which has it as its only one; but SDXL without its second encoder has no clip_g
        present = tuple(part for part in present if _fits(layer, indexes[part]))
    # A bare module of a class that says nothing takes what fits it.
    return present[:1] or (("model",) if "model" in indexes else named[:1])


def _find(layer: AdapterLayer, names: Sequence[str], indexes: Mapping[str, ModuleIndex]) -> LiveModule | None:
    for part in names:
        index = indexes.get(part)
        if index is None:
            continue
        return _module(layer, index)
    return None


def _module(layer: AdapterLayer, index: ModuleIndex) -> LiveModule | None:
    # Spellings with more of their front serve models whose own paths start like a component's or a wrapper's name.
    return next((live for x in _spellings(layer, index) if (live := index.find(x)) is not None), None)


def _fits(layer: AdapterLayer, index: ModuleIndex) -> bool:
    live = _module(layer, index)
    return live is not None and layer.weights.misfit(live.shape) is None


def _in_own_component(layer: AdapterLayer, fronts: Mapping[str, ModuleIndex]) -> AdapterLayer:
    """Hear a key whose front is the name of a component that this pipeline has, whatever files usually mean by it."""
    written = layer.target.written
    for front, index in fronts.items():
        if written.startswith(front):
            part = index.component
            if part in COMPONENTS_OF_HINT.get(layer.target.hint or "", (layer.target.hint,)):
                return layer  # that is how it is understood anyway
            module = written[len(front) :]
            if index.find(module) is not None:
                return replace(layer, target=replace(layer.target, hint=part, module=module))
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
        msg = (
            f"{label}: its keys do not name a component, and {' and '.join(winners)} match alike ({best} of {len(layers)} "
            f"modules each); say which with component={winners[0]!r} or component={winners[1]!r}"
        )
        raise MatchError(msg)
    return winners[0]
