"""
The merged engine: a mix is written into the weights themselves, so a step costs what the base costs.

If a write fails half-way, the mix from before is written again from the kept bases; a weight counts as blended from
before its first write until its base is back, whatever fails in between. What has to be written for a set of adapters is
worked out once (:class:`_WritingPlan`); a change of weights, or back to an earlier set, reuses it.
"""

from __future__ import annotations

import math
import operator
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import repeat
from typing import TYPE_CHECKING, Any

import torch

from lora_mixer.algorithms.columns import Padded
from lora_mixer.algorithms.whole import WholeLayer, gathered
from lora_mixer.engines.denoiser.steps import START
from lora_mixer.engines.engine import Call, Engine
from lora_mixer.engines.hooks import HookHandle, hook_output
from lora_mixer.engines.merged.as_left import is_as_written, that_differ
from lora_mixer.engines.merged.base_places import find_room
from lora_mixer.engines.merged.bias_hook import AddBias
from lora_mixer.engines.merged.blend import Term, accumulator, bias_change, blend_weight, write
from lora_mixer.engines.merged.cores import on_all_cores
from lora_mixer.engines.merged.group_files import tensors_in_files, write_tensors
from lora_mixer.engines.merged.grouped import Groups
from lora_mixer.engines.merged.kept_weight import (
    AT_ONCE,
    KeepBase,
    KeptRecord,
    KeptWeight,
    Restoration,
    Watch,
    begin_numbers,
    check,
    count_write,
    in_host_memory,
    in_lots,
    make_whole,
    raise_problems,
    refuse_lost,
    renumber,
    restore,
    unsupported,
)
from lora_mixer.engines.merged.tied_use import OwnWeight, TiedUse
from lora_mixer.engines.merged.versions import Contents, Same, in_graphs
from lora_mixer.engines.modes import exact_matmul, writing
from lora_mixer.engines.products import weight_of
from lora_mixer.engines.side.support import layer_kind
from lora_mixer.errors import MixError
from lora_mixer.interrupts import Interruptible, uninterrupted
from lora_mixer.mixes import TEXT_ENCODERS
from lora_mixer.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from torch import nn

    from lora_mixer.algorithms import Factors, LayerWeights
    from lora_mixer.binding import BoundLayer
    from lora_mixer.binding.index import LiveModule
    from lora_mixer.engines.denoiser.steps import Step
    from lora_mixer.engines.engine import Effect, Shares, Wish
    from lora_mixer.engines.fused import FusedProjections
    from lora_mixer.engines.gains import MixGains

    Gains = Mapping[str, Sequence[float]]
    """The gain of each layer of each adapter, by name and in the order given to ``take``."""


_READ_FROM_FILES = "its weights are read from files at each call (group offloading, offload_to_disk_path)"

_FREE: AbstractContextManager[None] = nullcontext()
"""Gradients are off already where weights are written: a guard for each of a thousand layers costs as much as small layers do."""

_is_blended: Any = operator.attrgetter("blended")

_PLANS = 16
"""How many plans are kept: lists and addresses, no weights."""

_Key = tuple[tuple[str, bytes], ...]
"""Adapters, and which of their layers have a gain."""


@dataclass(eq=False)
class _Touched:
    """A module that adapters change: its weight, its bias if it has one, and who needs it."""

    module: nn.Module
    weight: KeptWeight
    bias: KeptWeight | None
    transposed: bool
    root: nn.Module | None = None
    """The component, where an adapter widens the weight."""
    is_tied: bool = False
    """Whether this is a parameter of several modules, for all of them."""
    shared: _Touched | None = None
    """The parameter as all its modules have it, where this is one of several modules that do."""

    @property
    def key(self) -> tuple[int, str]:
        """The module's identity, and what of it this is."""
        return id(self.module), f"tied {self.weight.attribute}" if self.is_tied else self.weight.attribute

    @property
    def slots(self) -> tuple[KeptWeight, ...]:
        """The weight, and the bias where there is one."""
        return (self.weight,) if self.bias is None else (self.weight, self.bias)


@dataclass(frozen=True)
class _HeldLayer:
    """A layer of an adapter: what it changes, how, and to how many inputs it widens the weight."""

    entry: _Touched
    weights: LayerWeights
    columns: int | None = None


if TYPE_CHECKING:
    _Content = Mapping[str, tuple[tuple[float, ...], Sequence[_HeldLayer]]]
    """What is in weights: by adapter, the gains of its layers, and these."""


@dataclass(frozen=True)
class MergedRecord:
    """What a merged engine held at one time."""

    adapters: Mapping[str, list[_HeldLayer]]
    wholes: Mapping[str, list[WholeLayer]]
    touched: Mapping[tuple[int, str], _Touched]
    active: Gains


@dataclass(frozen=True)
class _GainPart:
    """One adapter's part in one module; ``place`` is where its gain stands in the list of all gains."""

    weights: LayerWeights
    pair: Factors | None
    place: int

    def term(self, gains: Sequence[float]) -> Term:
        return Term(self.weights, self.pair, gains[self.place])


@dataclass
class _WritingPlan:
    """What to write for one set of adapters, whatever their weights."""

    groups: Groups = field(default_factory=Groups)
    singles: list[tuple[_Touched, list[_GainPart]]] = field(default_factory=list)
    biases: list[tuple[_Touched, list[_GainPart]]] = field(default_factory=list)
    lots: list[tuple[_Touched, list[_GainPart]]] = field(default_factory=list)
    """Those whose bases are whole only while they are written, some at a time."""
    written: set[KeptWeight] = field(default_factory=set)
    """All others of which bases are kept."""
    others: Restoration = field(default_factory=lambda: Restoration([]))
    """Those that hold their base under this mix."""
    kept: list[KeptWeight] = field(default_factory=list)
    """Whose bases it is written from."""


@dataclass
class MergedGains:
    """
    The gains that are written into weights at a step.

    Args:
        mix: The mix on the layers of its adapters.
        shares: For each adapter, which of its layers are written.
    """

    mix: MixGains
    shares: Shares

    def at(self, step: Step, turn: int | None) -> dict[str, list[float]]:
        """Return the gain of every layer of every adapter; those of text encoders as before the first step."""
        return self._mine(self.mix.at(step, turn))

    @property
    def ever(self) -> dict[str, list[float]]:
        """The gain of every layer of every adapter without schedule, method and scale: 0 for those that never have a part."""
        return self._mine({name: self.mix.constant(name) for name in self.shares})

    def _mine(self, table: Mapping[str, list[float]]) -> dict[str, list[float]]:
        return {
            name: table[name]
            if all(shares)
            else [gain if mine else 0.0 for gain, mine in zip(table[name], shares, strict=True)]
            for name, shares in self.shares.items()
            if name in table
        }


def _readable(entry: _Touched, live: LiveModule) -> torch.Tensor:
    """Return a part of a fused layer's clean base; of a linear layer whose weight cannot be read, by its products."""
    if entry.weight.locked and not entry.weight.has_base and layer_kind(live.module) == "linear":
        return weight_of(live.module, live.shape)
    return entry.weight.clean()


def _is_of_text(slot: KeptWeight) -> bool:
    return slot.name.partition(".")[0] in TEXT_ENCODERS


def _key(content: _Content | None, *, of_text: bool) -> Hashable:
    """Name what the weights of text encoders hold, or all others; those keep theirs while the others' go from step to step."""
    if content is None:
        return object()
    parts = [
        (
            name,
            Same(layers),
            tuple(
                gain if _is_of_text(layer.entry.weight) is of_text else 0.0
                for gain, layer in zip(gains, layers, strict=True)
            ),
        )
        for name, (gains, layers) in content.items()
    ]
    return tuple(part for part in parts if any(part[-1]))


def _is_grouped(entry: _Touched, parts: Sequence[_GainPart]) -> bool:
    """Tell whether a weight may be written with others; where a module has a weight of its own, its memory is another one each time."""
    plain = not entry.transposed and not entry.weight.is_wide and entry.shared is None
    return plain and all(part.pair is not None for part in parts)


def _add(groups: Groups, target: torch.Tensor, base: torch.Tensor, parts: Sequence[_GainPart]) -> bool:
    """Have a weight written with others, or say that it has to go another way."""
    pairs = [part.pair for part in parts if part.pair is not None]
    return groups.add(target, base, pairs, [part.place for part in parts])


def _blend(
    target: torch.Tensor,
    base: torch.Tensor,
    parts: Sequence[_GainPart],
    gains: Sequence[float],
    *,
    transposed: bool,
) -> None:
    """Write a base and all parts of it into a weight; terms are made one weight at a time, as thousands at once wake the collector."""
    blend_weight(target, base, [part.term(gains) for part in parts], transposed=transposed)


def _patch(entry: _Touched, parts: Sequence[_GainPart], gains: Sequence[float]) -> None:
    """Leave a weight's base in the mix that was just written into it, where that gives it back."""
    weight = entry.weight
    if entry.shared is not None or entry.is_tied:
        weight.whole_because = "several modules have it"
    elif weight.is_wide:
        weight.whole_because = "an adapter gives it more inputs"
    elif any(part.pair is None for part in parts):
        weight.whole_because = "an adapter changes it by more than a low-rank pair"
    else:
        pairs = [(part.pair, gains[part.place]) for part in parts if part.pair is not None]
        weight.patch(pairs, transposed=entry.transposed)


def _blend_bias(target: torch.Tensor, base: torch.Tensor, terms: Sequence[Term]) -> None:
    """Write a base and all changes of it into a bias, rounded once."""
    exact = base.to(target.device, accumulator(target))
    change = bias_change(exact, terms)
    write(target, exact if change is None else exact + change.to(exact))


class MergedEngine(Engine):
    """
    Writes mixes into weights and puts the base back; it keeps the bases for all engines.

    Args:
        keep_on: Where bases are kept; ``"none"`` has nothing written into weights.
        fused: Layers that are copies of others, which are copied anew when those are written.
    """

    name = "merged"
    is_asked_for = True

    def __init__(self, keep_on: KeepBase, fused: FusedProjections) -> None:
        """Start with nothing touched."""
        self._keep_on: KeepBase = keep_on
        self._may_be_patched = keep_on == "patch"
        self._fused = fused
        self._generations: Counter[str] = (
            Counter()
        )  # by component; another number: a weight of it is another tensor
        self._gains: MergedGains | None = None
        self._is_moving = False
        self._call = Call()  # that whose gains are in the weights
        self._roots: dict[str, nn.Module] = {}
        self._has_stored = False  # whether any weight is read from a file at each call
        self._adapters: dict[str, list[_HeldLayer]] = {}
        self._wholes: dict[str, list[WholeLayer]] = {}
        # by id of the module, which it keeps alive, and the parameter's name
        self._touched: dict[tuple[int, str], _Touched] = {}
        self._plans: dict[_Key, _WritingPlan] = {}
        self._active: Gains = {}
        self._is_pruned = True
        self._widening: set[str] = set()  # names of adapters that give weights more inputs
        self._hooks: list[HookHandle] = []
        self._given_up: list[tuple[KeptWeight, KeptRecord]] = []
        self._others_values: list[tuple[KeptWeight, torch.Tensor]] = []  # on a way back, until it is gone
        self._watch: Watch | None = None
        # what is in the weights, and the numbers of that for graphs that are alive: of text encoders or not
        self._content: _Content | None = {}
        self._contents = {of_text: Contents() for of_text in (False, True)}
        # for which table of touched modules, how large, and roots: the attributes of all modules under these
        self._hooked: tuple[Any, int, tuple[nn.Module, ...], list[dict[str, Any]]] = (None, 0, (), [])
        self._watched = (0, 0)  # which table of touched modules, and how large
        self._has_locked = True  # as of the last look
        self._beside_only: set[str] = set()  # names of adapters with layers that no weight can hold
        self._fresh: list[KeptWeight] = []  # whose bases were kept since the last record

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy of the modules needs; plans hold addresses of these ones."""
        touched = list(self._touched.values())
        return {
            **vars(self),
            "_plans": {},
            "_watch": None,
            "_contents": {of_text: Contents() for of_text in (False, True)},
            "_hooked": (None, 0, (), []),
            "_roots": {},
            "_touched": touched,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Stand on copied modules."""
        vars(self).update(state)
        self._touched = {entry.key: entry for entry in state["_touched"]}

    def take(self, name: str, layers: Sequence[BoundLayer]) -> None:
        """Take an adapter's layers, in the place of those that it has; nothing is written yet."""
        tied: dict[int, _Touched] | None = None
        taken: list[_HeldLayer] = []
        wholes: dict[int, WholeLayer] = {}
        before = len(self._touched)
        for layer in layers:
            live = layer.live
            entry = None if live.tied else self._touched.get((id(live.module), live.attribute))
            if entry is None or entry.shared is not None:
                if tied is None:  # where all modules are known already, as nearly always, nobody asks
                    tied = {id(e.weight.parameter): e for e in self._touched.values() if e.shared is None}
                entry = self._entry(layer, tied)
            columns = None
            if layer.widening is not None:
                columns, entry.root = layer.widening.columns, layer.widening.root
                self._widening.add(name)
            taken.append(_HeldLayer(entry, layer.weights, columns))
        for place, layer in enumerate(layers):  # all siblings are touched by now
            siblings = layer.siblings
            if siblings is not None:
                # siblings were bound each with its own copy of what the file says of them all
                mark = id(siblings.parts[0].live.module)
                if mark not in wholes:
                    parts = [
                        (
                            partial(_readable, self._touched[id(p.live.module), p.live.attribute], p.live),
                            p.file_rows,
                        )
                        for p in siblings.parts
                    ]
                    wholes[mark] = WholeLayer(parts, siblings.total)
                whole = gathered(layer.weights, wholes[mark], layer.live.shape)
                taken[place] = replace(taken[place], weights=whole)
        replaced = name in self._adapters
        self._adapters[name] = taken
        self._note_beside_only({name})
        self._wholes[name] = list(wholes.values())
        if replaced or len(self._touched) > before:  # plans say which weights hold their base
            self._plans.clear()
        if replaced:
            self._prune()

    def _note_beside_only(self, names: Collection[str]) -> None:
        """Note which of some adapters have layers that no weight can hold."""
        self._beside_only.difference_update(names)
        self._beside_only.update(
            name for name in names if any(held.weights.beside_only for held in self._adapters[name])
        )

    def _entry(self, layer: BoundLayer, tied: dict[int, _Touched]) -> _Touched:
        """Return what a layer changes: a module, a parameter of several modules, or one module's use of such a parameter."""
        live = layer.live
        known = self._touched.get((id(live.module), live.attribute))
        shared = tied.get(id(live.weight))
        if not live.tied:
            entry = known or shared or self._touch(live)
            tied[id(live.weight)] = entry
            return entry
        if shared is None:
            shared = tied[id(live.weight)] = self._touch(live, whole=True)
        if layer.weights.reaches_twins:
            return shared
        return known or self._touch(live, shared=shared)

    def _touch(self, live: LiveModule, *, whole: bool = False, shared: _Touched | None = None) -> _Touched:
        path = f"{live.component}.{live.path}"
        bias = None
        if not live.is_bare and not whole and getattr(live.module, "bias", None) is not None:
            bias = KeptWeight(f"{path}.bias", live.module, "bias", self._keep_on)
        name = path if live.is_bare else f"{path}.weight"
        weight = (
            KeptWeight(name, live.module, live.attribute, self._keep_on)
            if shared is None
            else TiedUse(name, live.module, live.attribute, self._keep_on, shared.weight)
        )
        entry = _Touched(live.module, weight, bias, live.transposed, shared=shared, is_tied=whole)
        for slot in entry.slots:
            slot.stamp()
        self._touched[entry.key] = entry
        return entry

    def forget(self, name: str) -> None:
        """Forget an adapter that is out of the weights, and free the bases that nobody else needs."""
        del self._adapters[name]
        self._wholes.pop(name, None)
        self._plans.clear()
        self._prune()

    def _prune(self) -> None:
        """Let modules go that no adapter changes any more, once they hold their base."""
        held = {id(layer.entry): layer.entry for taken in self._adapters.values() for layer in taken}
        needed = {*held, *(id(entry.shared) for entry in held.values())}
        odd = {key: entry for key, entry in self._touched.items() if id(entry) not in needed}
        self._is_pruned = not any(slot.blended for entry in odd.values() for slot in entry.slots)
        if self._is_pruned and odd:
            self._touched = {key: entry for key, entry in self._touched.items() if key not in odd}

    @property
    def modules(self) -> Collection[int]:
        """The identities of the modules that adapters change."""
        return {number for number, _ in self._touched}

    @property
    def touched_modules(self) -> list[nn.Module]:
        """The modules that adapters change."""
        return [entry.module for entry in self._touched.values()]

    def keep_on(self, place: KeepBase) -> None:
        """Keep bases elsewhere from now on."""
        self._keep_on = place
        self._may_be_patched |= place == "patch"
        for slot in self._all_slots():
            slot.keep_on = place
        self._plans.clear()

    # --- all or nothing --------------------------------------------------------------------------------------------

    def record(self) -> MergedRecord:
        """Note what is held, for :meth:`roll_back`."""
        self._fresh.clear()
        self._given_up = []
        return MergedRecord(dict(self._adapters), dict(self._wholes), dict(self._touched), self._active)

    def settle(self, *, undone: bool = False) -> None:
        """Let go of what only a way back needs; after one, also of bases that were kept since the record and no mix needs."""
        self._given_up = []
        for slot in self._fresh if undone else ():
            if not slot.blended:
                slot.base = None
        self._fresh.clear()
        for slot, values in self._others_values if undone else ():
            if slot.live.shape == values.shape:
                with writing(slot.live):
                    slot.live.copy_(values)  # what somebody else has written was no mistake of his
        self._others_values = []
        if undone:
            self._plans.clear()

    def roll_back(self, record: MergedRecord) -> None:
        """Hold what was recorded, with the base in all else; the mix is for the caller to write."""
        for slot, state in self._given_up:
            slot.roll_back(state)
            if slot.blended and not slot.locked and not slot.stored:
                self._others_values.append(
                    (slot, slot.live.clone())
                )  # the mix is about to be written over it
        self._given_up = []
        kept = {id(entry) for entry in record.touched.values()}
        odd = [entry for entry in self._touched.values() if id(entry) not in kept]
        for entry in odd:
            if entry.root is not None:
                entry.weight.resize(None, entry.root)
        self._restore([slot for entry in odd for slot in entry.slots])
        self.put_back(record)

    @staticmethod
    def _restore(slots: Sequence[KeptWeight]) -> None:
        """Put the base back into weights beside the way of mixes."""
        held = [slot for slot in slots if slot.blended]
        restore(slots)
        count_write(held)

    def put_back(self, record: MergedRecord) -> None:
        """Hold the adapters that were recorded, where weights were not written since, or will be now."""
        self._adapters, self._touched = dict(record.adapters), dict(record.touched)
        self._beside_only.clear()
        self._note_beside_only(self._adapters.keys())
        self._wholes = dict(record.wholes)
        self._plans.clear()

    def blended(self, modules: Collection[int]) -> list[str]:
        """Name those of some modules, by identity, that a mix is in."""
        return [
            entry.weight.name.rpartition(".")[0]
            for (number, _), entry in self._touched.items()
            if number in modules and any(slot.blended for slot in entry.slots)
        ]

    def mixed(self, parameters: Collection[int]) -> list[str]:
        """Name those of some parameters, by identity, that a mix is in or stands for."""
        return [slot.name for slot in self._all_slots() if slot.blended and id(slot.parameter) in parameters]

    def leave(self, modules: Collection[int]) -> None:
        """Put the base back into modules, by identity, that are in the pipeline no more, where that can still be done."""
        for (number, _), entry in self._touched.items():
            if number in modules:
                self._force(entry, gone=True)
                for slot in entry.slots:
                    slot.blended = False  # what could not be written then is nobody's any more

    def force_base(self, record: MergedRecord) -> list[str]:
        """
        Put the base back weight by weight, whatever fails, and hold the adapters that were recorded.

        Returns:
            The names of weights that could not be written; they stay blended, and their bases kept.
        """
        self._plans.clear()
        self._drop_hooks()
        self._active, self._content = {}, None
        left = [name for entry in self._touched.values() for name in self._force(entry)]
        odd = {key: x for key, x in self._touched.items() if any(slot.blended for slot in x.slots)}
        self.put_back(record)
        self._touched.update(odd)
        self._is_pruned = False
        return left

    @classmethod
    def _force(cls, entry: _Touched, *, gone: bool = False) -> list[str]:
        """Put the base of a module back; give the names of what cannot be written, of one that is gone what never can."""
        left = []
        for slot in entry.slots:
            try:
                if slot is entry.weight and entry.root is not None:
                    slot.resize(None, entry.root)
                cls._restore([slot])
            except Exception:  # what cannot be written is told by name
                if gone and slot.can_restore:
                    raise
                left.append(slot.name)
        return left

    @property
    def acts(self) -> bool:
        """Whether any gain is in the weights."""
        return any(any(gains) for gains in self._active.values())

    @property
    def is_in_parameters(self) -> bool:
        """Whether no part of the mix, such as a bias on a module without one, is in a hook."""
        return not self._hooks

    def generation(self, component: str) -> int:
        """Return a number that is another one as soon as a weight of a component is another tensor."""
        return self._generations[component]

    # --- who carries out what ----------------------------------------------------------------------------------------

    def look(self, wish: Wish) -> None:  # noqa: ARG002 -- whatever is wished for
        """
        Look at what others did to the weights since, before anything is planned.

        Raises:
            PipelineStateError: When a mix in the weights cannot be changed any more.
        """
        self._look()
        self.refuse_lost()

    def refuse_lost(self) -> None:
        """
        Refuse to go on where somebody has written over a mix that a base is in; nothing is changed.

        Raises:
            PipelineStateError: With all such weights.
        """
        if self._may_be_patched:
            refuse_lost(self._all_slots())

    def cost(self, wish: Wish) -> float:
        """Return the cost: nothing for a constant mix; writing at each step is dearer than two more products."""
        if self._keep_on == "none":
            return math.inf
        return 2.0 if wish.is_moving or wish.is_by_place or wish.is_reserved else 0.0

    def share(self, wish: Wish) -> Shares:
        """
        Take all layers whose weights can be rewritten.

        Raises:
            MixError: When gains differ by place, or no base is to be kept.
            PipelineStateError: When this engine was asked for, and weights cannot be rewritten.
        """
        if self._keep_on == "none":
            raise MixError(
                "keep_base='none' keeps no base that weights could be restored from, so that nothing is merged into them: "
                "LoraMixer(pipe, keep_base='device') can",
                argument="keep_base",
            )
        if wish.is_by_place:
            raise MixError(
                "masks and mixes per image cannot be merged into weights; use engine='side' or 'auto'",
                argument="engine",
            )
        shares = {name: self._free(name) for name in wish.names}
        if wish.setting.engine == self.name:
            raise_problems(
                [
                    Problem(
                        f"{layer.live.component}.{layer.live.path}",
                        f"{self.refusal(wish, name, place)}; engine='auto' runs beside it",
                    )
                    for name, taken in shares.items()
                    for place, (layer, free) in enumerate(zip(wish.layers[name], taken, strict=True))
                    if not free
                ]
            )
        return shares

    def _free(self, name: str) -> list[bool]:
        """Tell which layers of an adapter can be rewritten, as of the last :meth:`look`."""
        if not self._has_locked and name not in self._beside_only:
            return [True] * len(self._adapters[name])  # nearly always
        return [
            not (held.entry.weight.locked or held.entry.weight.stored or held.weights.beside_only)
            for held in self._adapters[name]
        ]

    def refusal(self, wish: Wish, name: str, place: int) -> str | None:
        """Return why a layer's weight cannot be rewritten, as of the last :meth:`look`; None where it can."""
        if self._keep_on == "none":
            return "its weight could not be restored, since keep_base='none' keeps no base"
        component = wish.layers[name][place].live.component
        if wish.images > 1 or (wish.is_by_place and component not in TEXT_ENCODERS):
            return "its weight is one for all rows and places"
        held = self._adapters[name][place]
        if held.weights.beside_only:
            return "no weight of a convolution in groups can hold a pair over all of its inputs"
        if held.entry.weight.locked:
            return unsupported(wish.layers[name][place].live.weight)
        return _READ_FROM_FILES if held.entry.weight.stored is not None else None

    def held_at(self, name: str, place: int) -> LayerWeights:
        """Return the tensors of one layer of an adapter, with the whole base of a fused layer in reach."""
        return self._adapters[name][place].weights

    # --- taking effect -------------------------------------------------------------------------------------------------

    def clear(self) -> None:
        """Follow no mix any more; what is in the weights stays until the next one is written."""
        self._gains, self._is_moving = None, False

    def enter(self, effect: Effect) -> None:
        """Write the layers that this engine was given; with no mix, and where rows have mixes of their own, the base."""
        if len(effect.mixes) != 1:
            self._put({}, within=True)
            return
        self._gains, self._call = MergedGains(effect.mixes[0], effect.served[self.name]), Call()
        self._put(self._gains.at(START, None), within=True)
        self._is_moving = effect.is_moving and effect.has_denoiser(self.name)

    def show(self, call: Call) -> None:
        """Write the weights of a step and a pass, where they are others."""
        if self._is_moving:
            self._call = call
            self.show_again("")

    def show_again(self, component: str) -> None:  # noqa: ARG002 -- all weights of a mix are written at once
        """Write what was written last, where it is something else by now."""
        gains = {} if self._gains is None else self._gains.at(self._call.step, self._call.turn)
        if self._gains is not None and gains != self._active:
            self._put(gains)

    def _put(self, gains: Gains, *, within: bool = False) -> None:
        """Write gains into weights, and fused projections after them."""
        fused = self._fused.in_step()
        self._fused.clear()
        try:
            self.apply(gains, within=within)
        finally:
            self._fused.copy(fused)
            self._fused.stand()

    # --- bases -----------------------------------------------------------------------------------------------------

    def held(self, name: str) -> Iterator[tuple[nn.Module, LayerWeights, torch.Tensor, torch.Tensor | None]]:
        """Return each layer of an adapter: module, tensors, the clean weight (out, in, *kernel) and the clean bias."""
        for layer in self._adapters[name]:
            entry, weights = layer.entry, layer.weights
            clean = entry.weight.clean()
            bias = entry.bias
            yield (
                entry.module,
                weights,
                clean.T if entry.transposed else clean,
                None if bias is None else bias.clean(),
            )

    def clean_weights(self, name: str) -> list[Callable[[], torch.Tensor]]:
        """Return what gives the clean weight (out, in, *kernel) of each layer of an adapter, as it is by then."""

        def clean(entry: _Touched) -> torch.Tensor:
            weight = entry.weight.clean()
            return weight.T if entry.transposed else weight

        return [partial(clean, layer.entry) for layer in self._adapters[name]]

    def clean_of(self, live: LiveModule) -> torch.Tensor:
        """Return the clean weight (out, in, *kernel) of any module, whether adapters change it or not."""
        weight = live.weight
        entry = self._touched.get((id(live.module), live.attribute)) or next(
            (one for one in self._touched.values() if one.shared is None and one.weight.parameter is weight),
            None,
        )
        clean = weight.detach() if entry is None else entry.weight.clean()
        return clean.T if live.transposed else clean

    def find_stored(self, components: Mapping[str, nn.Module]) -> None:
        """Note which weights are read from files at each call by now, in these modules of the pipeline."""
        self._roots = dict(components)
        self._find_stored()

    def clear_stored(self, theirs: Collection[KeptWeight] = ()) -> None:
        """
        Put the base into files that hold a mix, all or nothing; the mix goes on beside, or ends.

        Args:
            theirs: Weights whose files stay as they are.

        Raises:
            SaveError: When the disk is in the way; the files hold the mix then.
        """
        held = (
            [slot for slot in self._all_slots() if slot.stored and slot.blended and slot not in theirs]
            if self._has_stored
            else []
        )
        write_tensors([(x.stored, x.base) for x in held if x.stored is not None and x.base is not None])
        for slot in held:
            slot.blended = False
            if slot.is_patched:
                slot.base = None  # the file has it

    def _find_stored(self) -> None:
        if not self._has_stored and not self._may_be_stored():
            return
        slots = self._all_slots()
        parts = {slot.name.partition(".")[0] for slot in slots} & self._roots.keys()
        stored = {
            number: one for part in parts for number, one in tensors_in_files(self._roots[part]).items()
        }
        if not stored and not self._has_stored:
            return
        for slot in slots:
            slot.stored = stored.get(id(slot.parameter))
        self._has_stored = bool(stored)
        self._plans.clear()

    def _may_be_stored(self) -> bool:
        """Look whether diffusers has hooks on any module; the walk through all of them is made once for a table of layers."""
        roots = tuple(self._roots.values())
        table, count, known, attributes = self._hooked
        same = table is self._touched and count == len(self._touched) and len(known) == len(roots)
        if not same or not all(map(operator.is_, known, roots)):
            attributes = [module.__dict__ for root in roots for module in root.modules()]
            self._hooked = (self._touched, len(self._touched), roots, attributes)
        return any(map(operator.contains, attributes, repeat("_diffusers_hook")))

    def _look(self) -> None:
        # adapters come and go by changing the table or making a new one
        same = self._watched == (id(self._touched), len(self._touched))
        if same and self._watch is not None and self._watch.holds():
            return
        slots = self._all_slots()
        if check(slots):
            self._plans.clear()
            self._find_stored()
        self._watch, self._watched = Watch(slots), (id(self._touched), len(self._touched))
        self._has_locked = any(slot.locked or slot.stored for slot in slots)

    def apply(self, gains: Gains, *, within: bool = False) -> None:
        """
        Make the weights hold exactly this mix; an adapter that is not named has no part in it.

        Args:
            gains: By adapter, the gain of each of its layers.
            within: Whether this is within a change that has just looked at the weights and takes back what fails: there the mix
                before may be of layers that are no longer held.

        Raises:
            PipelineStateError: When a weight cannot be worked on; nothing has been written then.
        """
        if not within:
            self._look()
            self.refuse_lost()
        before = self._active

        @uninterrupted
        def end(error: BaseException | None) -> None:
            if error is not None:
                self._plans.clear()
                if not within:
                    self._write(before)

        with Interruptible(lambda: None, end):
            self._write(gains)

    def restore(self) -> None:
        """Put the base back, whatever state others left the weights in."""
        held = [slot for slot in self._all_slots() if slot.has_base]
        packed = [slot for slot in held if not slot.can_restore]
        raise_problems(
            [
                Problem(slot.name, str(unsupported(slot.parameter)))
                for slot in packed
                if slot.blended and not slot.replace_by_base()
            ]
        )
        for slot in held:
            slot.blended = slot.can_restore  # others may have written where no adapter is active, too
        for slot in self._all_slots():
            slot.stamp()
        self._watch, self._content = None, None
        self._plans.clear()
        self._write({})

    def give_up(self, slots: Iterable[KeptWeight]) -> None:
        """Note weights whose base is about to be given up: a way back leaves in them what they hold now."""
        self._given_up = [(slot, slot.record()) for slot in slots]

    def everything(self) -> set[KeptWeight]:
        """Return all weights and biases that adapters change."""
        return set(self._all_slots())

    def written_by_others(self) -> tuple[set[KeptWeight], bool]:
        """
        Find the weights whose values are not this engine's, by their object and version, else by reading them.

        Returns:
            Those that hold anything else than the mix that was written, or that no mix is in; and whether a mix was in any, and
            nothing else has written those.
        """
        theirs: set[KeptWeight] = set()
        doubtful: dict[_Touched, list[KeptWeight]] = {}
        for entry in self._touched.values():
            for slot in entry.slots:
                if isinstance(slot, TiedUse):
                    continue  # what it has of its own is in no parameter
                is_mixed = slot.has_base and (slot.blended or slot.is_wide)
                if not is_mixed or slot.is_others or slot.is_left:
                    theirs.add(slot)
                elif slot.is_patched:
                    continue  # the base came out of what it holds
                else:
                    doubtful.setdefault(entry, []).append(slot)
        theirs |= self._rewritten(doubtful)
        mixed = [x.shared if isinstance(x, TiedUse) else x for x in self._all_slots() if x.blended]
        return theirs, bool(mixed) and not any(x in theirs and x.is_written for x in mixed)

    @torch.no_grad()
    def _rewritten(self, doubtful: Mapping[_Touched, Sequence[KeptWeight]]) -> set[KeptWeight]:
        """Find those of some weights and biases that do not hold the mix which was written, by writing it once more beside them."""
        names = sorted(n for n, gains in self._active.items() if any(gains) and n in self._adapters)
        flat = [gain for name in names for gain in self._active[name]]
        parts = self._parts(names, self._active)
        differing: set[KeptWeight] = set()
        waiting: list[tuple[_Touched, Sequence[KeptWeight]]] = []
        size = 0
        with exact_matmul():
            for entry, slots in doubtful.items():
                if entry not in parts:
                    continue  # a mix that could not be taken out: nobody else has written it
                waiting.append((entry, slots))
                size += sum(slot.base.nbytes for slot in slots if slot.base is not None)
                if size >= AT_ONCE:
                    differing |= self._differing(waiting, parts, flat)
                    waiting, size = [], 0
            differing |= self._differing(waiting, parts, flat)
        for whole in (whole for name in names for whole in self._wholes.get(name, ())):
            whole.forget()
        return differing

    @staticmethod
    def _differing(
        waiting: Sequence[tuple[_Touched, Sequence[KeptWeight]]],
        parts: Mapping[_Touched, Sequence[_GainPart]],
        flat: Sequence[float],
    ) -> set[KeptWeight]:
        groups, writes, weights = Groups(), [], 0
        written: list[tuple[KeptWeight, torch.Tensor]] = []
        for entry, slots in waiting:
            for slot in slots:
                base = slot.base
                if base is None:
                    continue
                far = slot.keep_on == "host" and slot.parameter.device.type != "meta"
                copy = torch.empty_like(base, device=slot.parameter.device if far else base.device)
                written.append((slot, copy))
                if slot is not entry.weight:
                    _blend_bias(copy, base, [p.term(flat) for p in parts[entry]])
                elif not _is_grouped(entry, parts[entry]) or not _add(groups, copy, base, parts[entry]):
                    writes.append(
                        partial(_blend, copy, base, parts[entry], flat, transposed=entry.transposed)
                    )
                    weights += base.numel()
        groups.write(flat)
        on_all_cores(writes, weights)
        values = [(slot, slot.held, copy) for slot, copy in written]
        return {slot for slot, held, copy in values if held is not None and not is_as_written(held, copy)}

    def rebase(self, theirs: Collection[KeptWeight]) -> None:
        """
        Take what some weights hold now as the new base, and put the kept one back into all others; no mix is active afterwards.

        Args:
            theirs: Those that somebody else has written.
        """
        fused = self._fused.in_step()
        self._drop_hooks()
        self._plans.clear()
        for entry in self._touched.values():
            if entry.root is not None and entry.weight not in theirs:
                entry.weight.resize(None, entry.root)
        self._restore([slot for slot in self._all_slots() if slot not in theirs])
        self._fused.copy(fused)
        self._active, self._content = {}, None
        for slot in theirs:
            slot.rebase()
        self._watch = None

    def base_bytes(self) -> dict[str, int]:
        """Count the bytes of kept bases by device."""
        table: dict[str, int] = {}
        for slot in self._all_slots():
            place = None if slot.locked else slot.base_place
            if place is not None:
                table[str(place[0])] = table.get(str(place[0]), 0) + place[1]
        return table

    def whole_bases(self) -> dict[str, str]:
        """Name the weights whose base is kept whole where that was not asked for, and say why."""
        return {
            slot.name: slot.whole_because
            for slot in self._all_slots()
            if slot.whole_because is not None and slot.has_base
        }

    def _all_slots(self) -> list[KeptWeight]:
        return [slot for entry in self._touched.values() for slot in entry.slots]

    @torch.no_grad()
    def _write(self, gains: Gains) -> None:
        is_saved = self._is_in_graphs()
        # An adapter at weight 0 has no part: the base comes out exactly, even beside NaN.
        names = sorted(name for name, values in gains.items() if any(values))
        key = tuple((name, bytes(map(bool, gains[name]))) for name in names)
        self._reshape(names, gains)
        self._let_go_of_stale(names, gains, self._plans.get(key))
        plan = self._plans.get(key)
        if plan is None:
            plan = self._make_plan(names, gains)
            if len(self._plans) >= _PLANS:
                del self._plans[next(iter(self._plans))]
            self._plans[key] = plan
        flat = [gain for name in names for gain in gains[name]]
        self._drop_hooks()
        plan.others.restore()
        for entry, _ in plan.biases if plan.lots else ():
            if entry.bias is not None:
                entry.bias.keep()  # it was let go of when the bias was clean
        for slot in plan.written:
            slot.blended = True
        with exact_matmul():
            for lot in in_lots(plan.lots, lambda each: each[0].weight.base_bytes):
                self._write_patched(lot, flat)
            plan.groups.write(flat)
            self._write_singles(plan.singles, flat)
            for entry, parts in plan.biases:
                self._write_bias(entry, [p.term(flat) for p in parts])
        before = self._content
        self._content = {name: (tuple(gains[name]), self._adapters[name]) for name in names}
        self._tell_graphs(before, is_saved=is_saved)
        torch.clear_autocast_cache()  # inside of torch.autocast the halves of weights are kept as they were
        for whole in (whole for name in names for whole in self._wholes.get(name, ())):
            whole.forget()
        self._active = gains
        if not self._is_pruned:
            self._prune()
            self._plans.clear()  # they would keep bases that nobody needs any more

    def _is_in_graphs(self) -> bool:
        """Say whether a graph that is alive has saved any weight; asked right after the look at all of them, it costs next to nothing."""
        if self._watch is not None:
            return self._watch.in_graphs()
        return in_graphs(slot.counted for slot in self._all_slots() if slot.counted is not None)

    def _tell_graphs(self, before: _Content | None, *, is_saved: bool) -> None:
        """
        Give weights the versions of what they hold now, where a graph can tell.

        Args:
            before: What they held until now; None where nobody knows.
            is_saved: Whether a graph that is alive has saved any.
        """
        if not is_saved:
            for contents in self._contents.values():
                contents.forget()
            return
        slots = self._all_slots()
        for of_text, contents in self._contents.items():
            mine = [slot for slot in slots if _is_of_text(slot) is of_text]
            if not contents:
                begin_numbers(mine)
                contents.begin(_key(before, of_text=of_text))
            renumber(mine, contents.number(_key(self._content, of_text=of_text)))
        if self._watch is not None:
            self._watch.count()

    def _let_go_of_stale(self, names: Sequence[str], gains: Gains, plan: _WritingPlan | None) -> None:
        """Keep no base of a weight that was clean and is something else by now: writes past autograd move no counter."""
        kept = self._kept_for(names, gains) if plan is None else plan.kept
        if all(map(_is_blended, kept)):
            return
        slots = {
            slot: base
            for slot in kept
            if not (slot.blended or slot.locked or slot.stored or slot.is_wide)
            and (base := slot.base) is not None
        }
        odd = that_differ((slot.live, base) for slot, base in slots.items())
        for slot, is_odd in zip(slots, odd, strict=True):
            if is_odd:
                slot.base = None
                self._plans.clear()

    def _kept_for(self, names: Sequence[str], gains: Gains) -> list[KeptWeight]:
        """Return what may be written for some gains, and the parameters of which there is a use of its own."""
        entries = {
            id(held.entry): held.entry
            for name in names
            for held, gain in zip(self._adapters[name], gains[name], strict=True)
            if gain
        }
        return [
            slot
            for entry in entries.values()
            for slot in (*entry.slots, *(entry.shared.slots if entry.shared else ()))
        ]

    def _write_singles(
        self, singles: Sequence[tuple[_Touched, list[_GainPart]]], flat: Sequence[float]
    ) -> None:
        writes: list[Callable[[], None]] = []
        weights = 0
        for entry, parts in singles:
            base = entry.weight.keep()  # where a module gets a weight of its own, that is made here
            live = entry.weight.live
            blend = partial(_blend, live, base, parts, flat, transposed=entry.transposed)
            if live.is_inference():
                with writing(live):
                    blend()
            elif live.device.type == "cpu" and all(part.pair is not None for part in parts):
                writes.append(blend)  # the changes of others may share what they compute
                weights += live.numel()
            else:
                blend()
            if isinstance(entry.weight, TiedUse):
                self._hooks.append(hook_output(entry.module, OwnWeight(entry.weight), first=True))
        on_all_cores(writes, weights)

    def _write_patched(self, lot: Sequence[tuple[_Touched, list[_GainPart]]], flat: Sequence[float]) -> None:
        """Write some weights whose bases are in the mix before, and leave bases in the mix that they hold then."""
        make_whole([entry.weight for entry, _ in lot])
        groups, singles = Groups(), []
        for entry, parts in lot:
            base, live = entry.weight.keep(), entry.weight.live
            entry.weight.blended = True
            if not _is_grouped(entry, parts) or not _add(groups, live, base, parts):
                singles.append((entry, parts))
        groups.write(flat)
        self._write_singles(singles, flat)
        on_all_cores(
            [partial(_patch, entry, parts, flat) for entry, parts in lot],
            in_host_memory(entry.weight for entry, _ in lot),
        )

    def _reshape(self, names: Sequence[str], gains: Gains) -> None:
        """
        Give every weight the inputs that the adapters in effect need, and those that it had where none does.

        A mix that changes from step to step has one number of inputs for all of them: pipelines ask for it once a picture.
        """
        if not any(name in self._widening for name in self._adapters):
            return
        wanted: dict[int, int] = {}
        ever = self._gains.ever if gains and self._gains is not None else {}
        for table in ({name: gains[name] for name in names}, ever):
            for name, values in table.items():
                for layer, gain in zip(self._adapters[name], values, strict=True):
                    if gain and layer.columns is not None:
                        mark = id(layer.entry)
                        wanted[mark] = max(wanted.get(mark, 0), layer.columns)
        for entry in self._touched.values():
            if entry.root is None:
                continue
            columns = wanted.get(id(entry))
            if entry.weight.resize(columns, entry.root):
                self._plans.clear()
                self._generations[entry.weight.name.partition(".")[0]] += 1

    def _parts(self, names: Sequence[str], gains: Gains) -> dict[_Touched, list[_GainPart]]:
        """Tell what is written where; a module's own weight has what all modules of its parameter have, too."""
        parts: dict[_Touched, list[_GainPart]] = {}
        place = 0
        for name in names:  # sorted: one order of summation, whatever the order of the mix
            for layer, gain in zip(self._adapters[name], gains[name], strict=True):
                if gain:
                    entry, weights = layer.entry, layer.weights
                    shape = tuple(entry.weight.parameter.shape)
                    if entry.weight.is_wide and (weights.in_width or shape[1]) < shape[1]:
                        weights = Padded(weights, weights.in_width or shape[1], weights.alpha)
                    pair = weights.factors(shape[::-1] if entry.transposed else shape)
                    parts.setdefault(entry, []).append(_GainPart(weights, pair, place))
                place += 1
        return {
            entry: sorted([*own, *parts.get(entry.shared, [])], key=lambda part: part.place)
            if entry.shared is not None and entry.shared in parts
            else own
            for entry, own in parts.items()
        }

    def _make_plan(self, names: Sequence[str], gains: Gains) -> _WritingPlan:
        plan = _WritingPlan()
        parts = self._parts(names, gains)
        self._fresh += [slot for entry in parts for slot in entry.slots if not slot.has_base]
        raise_problems(  # what was offloaded or packed since the mix was set
            [
                Problem(
                    e.weight.name,
                    f"{_READ_FROM_FILES if e.weight.stored else unsupported(e.weight.parameter)}; set the mix again",
                )
                for e in parts
                if e.weight.locked or e.weight.stored
            ]
        )
        if self._keep_on == "auto":
            find_room([slot for entry in parts for slot in (entry.shared or entry).slots])
        for entry, entry_parts in parts.items():
            clean = None if entry.bias is None else entry.bias.clean()
            biased = [part for part in entry_parts if part.weights.bias_delta(clean, 1.0) is not None]
            if biased:
                plan.biases.append((entry, biased))
                if entry.bias is not None:
                    entry.bias.keep()
                    plan.written.add(entry.bias)
            if self._keep_on == "patch":
                plan.lots.append((entry, entry_parts))
                continue
            base, live = entry.weight.keep(), entry.weight.live
            plan.written.add(entry.weight)
            if not _is_grouped(entry, entry_parts) or not _add(plan.groups, live, base, entry_parts):
                plan.singles.append((entry, entry_parts))
        written = plan.written | {entry.weight for entry, _ in plan.lots}
        plan.kept = [slot.shared if isinstance(slot, TiedUse) else slot for slot in written]
        plan.others = Restoration([slot for slot in self._all_slots() if slot not in written])
        return plan

    def _write_bias(self, entry: _Touched, terms: Sequence[Term]) -> None:
        if entry.bias is None:
            change = bias_change(None, terms)
            if change is not None:
                self._hooks.append(hook_output(entry.module, AddBias(change)))
            return
        live = entry.bias.live
        with writing(live) if live.is_inference() else _FREE:
            _blend_bias(live, entry.bias.keep(), terms)

    def _drop_hooks(self) -> None:
        for handle in self._hooks:
            handle.remove()
        self._hooks.clear()
