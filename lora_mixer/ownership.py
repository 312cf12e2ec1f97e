"""
Whose modules these are: what a mixer holds belongs to the modules that it changes.

Adapters, kept bases, hooks and words are held by the modules themselves, in one :class:`MixerState` for all parts that a
mix reaches. It outlives the mixer: the next one on the same modules takes it over, and only who deletes the model
deletes the base. A mixer is a front door to it.
"""

from __future__ import annotations

import threading
import weakref
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch

from lora_mixer import guards
from lora_mixer.binding import Lineage, ModelMemory, Rebinder, find_components
from lora_mixer.components import TEXT_ENCODERS
from lora_mixer.engines import BASE, EngineController
from lora_mixer.engines.placement import copy_to_devices
from lora_mixer.engines.trainable.parameters import Trained
from lora_mixer.errors import LoraMixerError, MixLostError, PipelineStateError, SaveError
from lora_mixer.holding import Holder, HoldingLock
from lora_mixer.interrupts import Interruptible, uninterrupted
from lora_mixer.problem import Problem
from lora_mixer.textual_inversion import TokenSet
from lora_mixer.writing.full_as_values import full_as_values
from lora_mixer.writing.trained import write_peft

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from torch import nn

    from lora_mixer.adapter import AdapterInfo
    from lora_mixer.binding import BoundLayer, MatchReport
    from lora_mixer.engines import ActiveMixes, KeepBase
    from lora_mixer.engines.controller import ControllerRecord
    from lora_mixer.engines.engine import Own
    from lora_mixer.textual_inversion.tokens import TokenRecord
    from lora_mixer.writing.originals import Original

_MARK = "_lora_mixer_state"
"""Under this name a part holds the state that it belongs to: no module, parameter or buffer, so no key changes."""

Parts = Literal["bind", "leave", "take", "put back", "ignore"]

_states: weakref.WeakSet[MixerState] = weakref.WeakSet()
"""All states that are alive; what keeps one alive is its marks, and the mixer while there is one."""

_claims = threading.RLock()
"""Held while states are compared and one is noted, never while one waits for a state's own lock."""


@dataclass(frozen=True)
class Loaded:
    """What is remembered of a loaded adapter."""

    info: AdapterInfo
    report: MatchReport
    original: Original | None = None


@dataclass(eq=False)
class Before:
    """What was in effect before a block, and who began it; another one that ends first may change it."""

    held: ActiveMixes
    enabled: bool
    holder: Holder = field(default_factory=Holder.now)


@dataclass(frozen=True)
class _Record:
    """What a state held at one time."""

    loaded: Mapping[str, Loaded]
    inherited: frozenset[str]
    inherited_tokens: frozenset[str]
    held: ActiveMixes
    enabled: bool
    tokens: TokenRecord
    controller: ControllerRecord
    lineage: Lineage | None
    roots: Mapping[str, nn.Module]


class MixerState:
    """
    All that adapters are on one pipeline.

    Args:
        pipe: The pipeline, or a bare module.
        keep_base: Where bases are kept.

    Attributes:
        loaded: The adapters by name.
        inherited: Names that a mixer loaded which is gone; loading under one of them replaces what it left.
        inherited_tokens: The same for words that were loaded by themselves.
        held: The mixes in effect, or those that ``enable_lora`` brings back.
        enabled: Whether they are in effect.
        memory: What was worked out of the pipeline's modules, for adapters to come.
        roots: The parts that adapters and words reach, by component, as they were when these were bound.
        owner: The mixer that works on it, as long as it is alive.
        blocks: What was in effect before each block of ``applied`` that is open, in the order in which they began.
    """

    def __init__(self, pipe: Any, keep_base: KeepBase) -> None:
        """Start with nothing."""
        self.keep_base: KeepBase = keep_base
        self.controller = EngineController(pipe, keep_base)
        self.tokens = TokenSet(pipe)
        self.memory = ModelMemory()
        self.loaded: dict[str, Loaded] = {}
        self.inherited: set[str] = set()
        self.inherited_tokens: set[str] = set()
        self.held = BASE
        self.enabled = True
        self.blocks: list[Before] = []
        self.roots: dict[str, nn.Module] = {}
        self._reach: tuple[str, ...] = ()
        self._lineage: Lineage | None = None
        self._is_noted = True  # whether that knows all modules that adapters change
        self._claimed: list[tuple[str, nn.Module]] = []
        self._claimed_modules: set[int] = set()
        self._open = 0
        self._opener: Holder | None = None
        self.lock = HoldingLock()
        self.owner: weakref.ref[Any] | None = None
        _remember(self)

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy of the parts needs: all but the lock, and the mixer, which stays with the original."""
        fresh = {
            "lock": None, "owner": None, "_lineage": None, "_open": 0, "_opener": None, "memory": ModelMemory()
        }  # fmt: skip
        return {**vars(self), **fresh, "_claimed": [], "_claimed_modules": set(), "blocks": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Be the state of copied parts, for the next mixer on them."""
        vars(self).update(state)
        self.lock = HoldingLock()
        _remember(self)

    # --- all or nothing --------------------------------------------------------------------------------------------

    def transaction(self, mixer: Any, parts: Parts = "bind") -> Interruptible[MixerState]:
        """
        Change what is held, alone; if that fails, all is exactly as before.

        One that begins within another is a part of it: what fails in it takes the outer one back as well.

        Args:
            mixer: The mixer that works on it from now on.
            parts: What to do where others have replaced parts of the pipeline: ``bind`` adapters to the new ones;
                ``leave`` those that no adapter fits, for calls that only give the base back; ``take`` the new ones
                whatever they were made from; ``put back`` the old ones where a mix is in them; ``ignore`` them, before a
                call that does one of these.

        Raises:
            MixLostError: When a change failed and so did the way back; no adapter is in effect then.
        """
        record: list[_Record] = []
        gradients = torch.is_grad_enabled()

        @uninterrupted
        def begin() -> MixerState:
            if self._opener is not None and self._opener.is_gone:  # its transaction never ends
                self._open = 0
            self._open, self._opener = self._open + 1, Holder.now()
            try:
                if self._open == 1:
                    record.append(self._record())
                self.owner = weakref.ref(mixer)
                self._follow(parts)
                self._end_lost(parts)
            except BaseException as error:
                end(error)
                raise
            return self

        @uninterrupted
        def end(error: BaseException | None) -> None:
            self._open -= 1
            if not self._open:
                self._close(record, error, gradients)
            elif error is None:
                self._commit()

        return Interruptible(begin, end, self.lock)

    @uninterrupted
    def _close(self, record: Sequence[_Record], error: BaseException | None, gradients: bool) -> None:
        """End the outermost transaction: let the change stand, or take it back where there is a record."""
        try:
            if error is None:
                try:
                    self._commit()
                except BaseException as raised:
                    error = raised
                    self._roll_back(record[0], raised)
                    raise
                # What is let go is the way back: from here on the change stands, and the next record lets go of the rest.
                with suppress(Exception):
                    self.controller.settle()
            elif record:
                self._roll_back(record[0], error)
        finally:
            if error is not None:
                # Ctrl-C may have come between the end of torch.no_grad() and what it puts back
                torch.set_grad_enabled(gradients)
            self._claimed, self._claimed_modules = [], set()

    @property
    def has_new_parts(self) -> bool:
        """Whether adapters were bound to parts which others have put into the pipeline, in the transaction that is open."""
        return self._lineage is None

    @property
    def has_lost_blocks(self) -> bool:
        """Whether a block is open whose thread has ended: nobody else will end it."""
        return any(block.holder.is_gone for block in self.blocks)

    def _end_lost(self, parts: Parts) -> None:
        """Put back what was there before blocks whose threads have ended; calls that give the base anyway only note it."""
        lost = next((block for block in self.blocks if block.holder.is_gone), None)
        if lost is None:
            return
        kept = lost.held.without(name for name in lost.held.names if name not in self.loaded)
        self.held, self.enabled = kept, lost.enabled
        if parts == "bind":
            self.tokens.change(shown=self.enabled)
            self.controller.apply(kept if self.enabled else BASE, self.components())

    def _held(self) -> Interruptible[None]:
        """Keep all others out."""
        return Interruptible(lambda: None, lambda _: None, self.lock)

    def _commit(self) -> None:
        self.blocks = [block for block in self.blocks if not block.holder.is_gone]
        self.mark()
        self._guard()

    def _follow(self, parts: Parts) -> None:
        """Bind adapters and words to what stands in the pipeline now."""
        if self.has_nothing or parts == "ignore":
            return
        components = self.components()
        if not self._trace().holds(components):
            if parts == "put back":
                self._trace().put_back({m for m in self.controller.modules if self.controller.blended({m})})
            self._rebind(components, parts)
        self.tokens.follow()

    def _trace(self) -> Lineage:
        """Return where bound modules hang; a copy, or one that was bound anew, has to look first."""
        if self._lineage is None:
            self._lineage = Lineage(self.roots, self.controller.modules)
        return self._lineage

    def _rebind(self, components: Mapping[str, nn.Module], parts: Parts) -> None:
        finder = Rebinder(self.roots, components)
        bound = {name: finder.layers(layers) for name, layers in self.controller.layers.items()}
        if finder.problems:
            if parts in ("leave", "put back"):
                return
            raise PipelineStateError(
                f"parts of the pipeline were replaced, and {len(finder.problems)} modules that the adapters change "
                f"({', '.join(self.loaded)}) are not in the new ones: {'; '.join(map(str, finder.problems[:3]))}. Put the old parts "
                "back, or call unload_lora_weights() and load adapters that fit",
                problems=finder.problems,
            )
        inner = {
            number
            for number, one in finder.replaced.items()
            if components.get(one.new.component) is self.roots.get(one.old.component)
        }
        odd = [] if parts == "take" else self.controller.blended(inner)
        if odd:
            now = next(type(finder.replaced[n].new.module).__name__ for n in inner)
            raise PipelineStateError(
                f"{len(odd)} modules ({', '.join(odd[:3])}) were replaced (by {now}) while a mix was in their weights, so "
                "that what stands there now was made from the mix: call restore_base() to put the old modules with their "
                "base back, or rebase() to take what is there now as the base; replace modules under disable_lora()",
                problems=[Problem(name, f"was replaced (by {now}) while a mix was in it") for name in odd],
            )
        new = {finder.component(part): root for part, root in self.roots.items()}
        roots = {part: components.get(part, root) for part, root in new.items()}
        for root in roots.values():
            self._take_copy(root)
        self.claim(roots, [one.new.module for one in finder.replaced.values()])
        moved = {
            name: copy_to_devices(layers)
            if any(id(old.live.module) in finder.replaced for old in self.controller.layers[name])
            else layers
            for name, layers in bound.items()
        }
        self.controller.rebind(
            moved, components, mixed=parts != "take"
        )  # what is there is to be taken as it is
        self._stand_on(roots)
        self._lineage = None

    def _stand_on(self, roots: Mapping[str, nn.Module]) -> None:
        """Reach other parts from now on; mark() gives marks and guards to them."""
        if roots is self.roots:
            return
        for root in self.roots.values():
            if root.__dict__.get(_MARK) is self:
                del root.__dict__[_MARK]
        guards.take_away(self.pipe, self.roots.values())
        self.roots, self._reach = dict(roots), ()

    def _take_copy(self, root: nn.Module) -> None:
        """Give a part its base that bears a state without mixer, such as a copy of a part of this pipeline."""
        other = root.__dict__.get(_MARK)
        if isinstance(other, MixerState) and other is not self and other.mixer is None:
            other.controller.apply(BASE, other.components())
            other.tokens.drop_all()
            other.loaded.clear()
            del root.__dict__[_MARK]
            with _claims:
                _states.discard(other)

    def _record(self) -> _Record:
        return _Record(
            dict(self.loaded),
            frozenset(self.inherited),
            frozenset(self.inherited_tokens),
            self.held,
            self.enabled,
            self.tokens.record(),
            self.controller.record(),
            self._lineage,
            self.roots,
        )

    def _roll_back(self, record: _Record, error: BaseException) -> None:
        self.loaded, self.inherited = dict(record.loaded), set(record.inherited)
        self.inherited_tokens = set(record.inherited_tokens)
        self.held, self.enabled, self._lineage = record.held, record.enabled, record.lineage
        self._stand_on(record.roots)
        try:
            self.tokens.roll_back(record.tokens)
            self.controller.roll_back(record.controller, self.components())
        except BaseException as again:
            self.enabled = False
            self.tokens.drop_all()
            left = self.controller.force_base(record.controller, self.components())
            state = (
                f"{len(left)} weights could not be given their base back either ({', '.join(left[:3])}); it is kept, and "
                "the next call writes it"
                if left
                else "the base is back"
            )
            lost = MixLostError(
                f"{type(error).__name__} ({error}), and on the way back {type(again).__name__} ({again}): no adapter is "
                f"active, {state}; enable_lora() brings the mix from before again"
            )
            lost.unwritten = tuple(left)
            raise lost from again
        finally:
            self.mark()
            self._guard()

    def _guard(self) -> None:
        guards.guard_steps(_mixed, active=any(s.enabled and s.controller.acts for s in _all_states()))

    def take(
        self,
        name: str,
        loaded: Loaded,
        layers: Sequence[BoundLayer],
        trained: Own | None = None,
        roots: Sequence[nn.Module] = (),
    ) -> None:
        """Take an adapter, in the place of one of that name; nothing takes effect yet."""
        self.controller.replace(name, layers, trained, roots)
        self.loaded[name] = loaded
        self.inherited.discard(name)
        self._is_noted = False

    def forget(self, names: Iterable[str]) -> None:
        """Let adapters go that are in no mix any more."""
        for name in dict.fromkeys(names):
            del self.loaded[name]
            self.inherited.discard(name)
            self.controller.remove(name)

    def take_over(self, mixer: Any, pipe: Any, keep_base: KeepBase, parts: Parts) -> None:
        """Go on with another mixer, on a pipeline that has the same parts; what is loaded is there under its names."""
        before, was_own = self.pipe, self.controller.has_own_pipe
        self._move_to(pipe)
        try:
            self._take_over(
                mixer, keep_base, parts if parts == "bind" else "ignore", again=pipe is not before
            )
        except BaseException:
            self._move_to(before, is_own=was_own)
            self.owner = None
            raise

    def _move_to(self, pipe: Any, *, is_own: bool = True) -> None:
        guards.take_away(self.pipe, ())
        self.controller.move_to(pipe, is_own=is_own)
        self.tokens.move_to(pipe)
        if not self.is_empty:
            guards.place(pipe, (), self)

    def _take_over(self, mixer: Any, keep_base: KeepBase, parts: Parts, *, again: bool) -> None:
        with self.transaction(mixer, parts):
            self.inherited = set(self.loaded)
            self.inherited_tokens = {word.token for word in self.tokens.held.get(None, ())}
            self.keep_base = keep_base
            self.controller.keep_on(keep_base)
            if again and parts == "bind":  # else the call that follows puts something else into effect
                self.controller.apply(self.held if self.enabled else BASE, self.components())

    def trained(self, name: str) -> Trained | None:
        """Return what is trained of an adapter; None where it is not in training."""
        trained = self.controller.own(name)
        return trained if isinstance(trained, Trained) else None

    def trained_on(self, root: nn.Module) -> list[str]:
        """Name the adapters in training that reach a component."""
        return [
            name for name in self.loaded if (trained := self.trained(name)) is not None and trained.on(root)
        ]

    def peft_tensors(self, name: str) -> tuple[Mapping[str, torch.Tensor], Mapping[str, object]] | None:
        """Return an adapter's tensors by PEFT's keys and its configuration; None where it was not read from a PEFT folder."""
        learnt, original = self.trained(name), self.loaded[name].original
        if learnt is not None:
            return learnt.written() if learnt.config else full_as_values(self.controller.held(name))
        return None if original is None else (original.tensors(self.controller.layers[name]), original.config)

    def write_trained(self, folder: Path, names: Sequence[str]) -> None:
        """
        Write adapters in training as PEFT folders.

        Args:
            folder: Where to; one adapter is written into it, several into a folder each by their names.
            names: The adapters.

        Raises:
            SaveError: When one was not read from a PEFT folder, or the disk refuses.
        """
        with self._held():
            tensors = {name: self.peft_tensors(name) for name in names}
            odd = [name for name, parts in tensors.items() if parts is None]
            if odd:
                raise SaveError(
                    f"{', '.join(odd)}: not read from a PEFT folder, so there is no configuration to write; use the mixer's "
                    "save_lora_weights()",
                    adapter=odd[0],
                    problems=[Problem(name, "was not read from a PEFT folder") for name in odd],
                )
            for name, parts in tensors.items():
                if parts is not None:
                    write_peft(folder if len(names) == 1 else folder / name, *parts)

    def let_go(self, tokens: Iterable[str]) -> None:
        """Make room for words that a mixer loaded which is gone."""
        old = self.inherited_tokens & set(tokens)
        if old:
            self.tokens.change({None: [w for w in self.tokens.held.get(None, ()) if w.token not in old]})

    # --- on modules ------------------------------------------------------------------------------------------------

    @property
    def pipe(self) -> Any:
        """The pipeline."""
        return self.controller.pipe

    @property
    def is_empty(self) -> bool:
        """Whether no adapter and no word is loaded."""
        return not self.loaded and not self.tokens.held

    @property
    def has_nothing(self) -> bool:
        """Whether nothing of it is on any module: no adapter, no word, no room that was reserved."""
        return self.is_empty and not self.controller.reserved

    @property
    def mixer(self) -> Any:
        """The mixer that works on it; None when that is gone."""
        return None if self.owner is None else self.owner()

    def asked_to_merge(self, root: nn.Module, modules: Collection[nn.Module] | None = None) -> list[str]:
        """Name the adapters in effect on a part, or on some of its modules, whose mix may be nowhere but in its weights."""
        parts = {part for part, module in self.components().items() if module is root}
        return self.controller.asked_to_merge(parts, modules) if self.enabled else []

    def follow(self, *, is_late: bool = False) -> None:
        """
        Bring the mix to parts that were replaced since the last call, before a picture is made of them.

        Args:
            is_late: Whether texts may have been read already.

        Raises:
            PipelineStateError: When they were made from the mix, the adapters do not fit them, or it is too late.
        """
        if self._lineage is None and self._open:
            return
        components = self.components()
        is_behind = self.enabled and self.held != BASE and not self._trace().holds(components)
        if not is_behind and not self.tokens.is_behind:
            return
        read = [part for part in self.roots if part in (*TEXT_ENCODERS, "bert")] if is_late else []
        odd = [part for part in read if not self._is_bound_to(components.get(part, self.roots[part]), part)]
        if odd:
            raise PipelineStateError(
                f"{' or '.join(odd)} was replaced, or layers of it, and {type(self.pipe).__name__} had read its texts before that "
                "could be seen: call enable_lora() once parts are replaced, then make the picture",
                component=odd[0],
                problems=[Problem(part, "was replaced, or layers of it") for part in odd],
            )
        owner = self.owner
        try:
            with self.transaction(self.mixer or self):
                pass
        finally:
            self.owner = owner

    def follow_beforehand(self) -> None:
        """Do the same before another pipeline is made of the parts; what cannot be done yet is told by the next picture or call."""
        if not self._open:
            with suppress(LoraMixerError):
                self.follow()

    def _is_bound_to(self, root: nn.Module, part: str) -> bool:
        """Whether all modules of a component that adapters change are in this one."""
        there = set(map(id, root.modules()))
        bound = (layer.live for layers in self.controller.layers.values() for layer in layers)
        return all(id(live.module) in there for live in bound if live.component == part)

    def on_base(self, call: Callable[[], Any]) -> Any:
        """
        Call what makes something of the weights while they hold the base, then bring the mix again.

        Raises:
            PipelineStateError: When the mix cannot be brought again as it was asked for; the base stays then.
        """
        with self._held():
            owner, held, enabled = self.owner, self.held, self.enabled
            try:
                with self.transaction(self.mixer or self):
                    self.controller.apply(BASE, self.components())
                    self.enabled = False
                try:
                    return call()
                finally:
                    if enabled:
                        with self.transaction(self.mixer or self):
                            self.controller.apply(held, self.components())
                            self.enabled = True
            finally:
                self.owner = owner

    @contextmanager
    def scaled_texts(self, scale: float) -> Iterator[None]:
        """Multiply the mix in text encoders for a block."""
        parts = [part for part in self.controller.components if part in TEXT_ENCODERS]
        with ExitStack() as stack:
            for part in parts if scale != 1.0 and self.enabled else ():
                stack.enter_context(self.controller.scaled(part, scale))
            yield

    def components(self) -> dict[str, nn.Module]:
        """List the pipeline's modules by component."""
        return find_components(self.pipe)

    def mark(self) -> None:
        """Let the parts hold the state that adapters and words reach now, and no others."""
        reach = tuple(
            dict.fromkeys((*self.controller.components, *self.tokens.components, *self.controller.reserved))
        )
        if reach == self._reach and self._lineage is not None:
            # what is there was looked at as this change began
            self._is_noted = self._is_noted or self._lineage.covers(self.controller.modules)
            if self._is_noted:
                return
        components = self.components()
        reached, self._reach = set(reach), reach
        roots = {part: self.roots.get(part, components.get(part)) for part in reached}
        before = list(self.roots.values())
        self.roots = {part: root for part, root in roots.items() if root is not None}
        guards.take_away(self.pipe, before)
        for root in self.roots.values():
            if root.__dict__.get(_MARK) is not self:
                root.__dict__[_MARK] = self
        self.guard()
        for root in before:
            if not any(root is kept for kept in self.roots.values()) and root.__dict__.get(_MARK) is self:
                del root.__dict__[_MARK]
        # now, not at the next call: by then others may have replaced what is bound
        self._lineage, self._is_noted = Lineage(self.roots, self.controller.modules), True

    def guard(self) -> None:
        """Refuse diffusers' and PEFT's words for adapters that are none of theirs."""
        if not self.is_empty:
            guards.place(self.pipe, self.roots.values(), self)

    def claim(self, roots: Mapping[str, nn.Module], modules: Iterable[nn.Module]) -> None:
        """
        Check that no other state has adapters or words on what is to be changed, and let none have it from now on.

        What is claimed is this state's until the transaction ends; by then it is marked, or was rolled back.

        Args:
            roots: The parts that will be reached, by component.
            modules: The modules that will be changed.

        Raises:
            PipelineStateError: Naming the parts, the adapters and the way out.
        """
        touched = {id(module) for module in modules}
        with _claims:
            for other in _all_states():
                if other is not self:
                    other._refuse(roots, touched)  # noqa: SLF001 -- of the same class
            self._claimed.extend(roots.items())
            self._claimed_modules |= touched

    def _refuse(self, roots: Mapping[str, nn.Module], touched: set[int]) -> None:
        """Raise where another state reaches for what this one has, or is just loading."""
        mine_by_name = [*self.roots.items(), *self._claimed] if not self.has_nothing else self._claimed
        mine = {id(root) for _, root in mine_by_name}
        shared = [name for name, root in roots.items() if id(root) in mine]
        held = () if self.is_empty else self.controller.modules
        if not shared and touched.isdisjoint(held) and touched.isdisjoint(self._claimed_modules):
            return
        where = " and ".join(shared or roots)
        what = ", ".join([*self.loaded, *dict.fromkeys(self.tokens.names)]) or "being loaded just now"
        is_room = self.is_empty and not self._claimed
        if self.mixer is not None:
            does = (
                f"keeps room reserved on {where}" if is_room else f"has adapters loaded on {where} ({what})"
            )
            raise PipelineStateError(
                f"another LoraMixer {does}; use that one (LoraMixer.of(part), with that part, gives it), or call its "
                f"{'release' if is_room else 'unload_lora_weights'}() first",
                component=(shared or list(roots))[0],
            )
        parts = ", ".join(dict(mine_by_name))
        if is_room:
            raise PipelineStateError(
                f"{where} has room that a LoraMixer reserved which is gone, on a pipeline with other parts ({parts}); "
                "LoraMixer(part).release(), with that part, takes it away",
                component=(shared or list(roots))[0],
            )
        raise PipelineStateError(
            f"{where} carries what a LoraMixer has loaded that is gone ({what}), on a pipeline with other parts "
            f"({parts}); LoraMixer(part).unload_lora_weights(), with that part, gives the base back",
            component=(shared or list(roots))[0],
        )

    def refuse_beside(self, pipe: Any, components: Mapping[str, nn.Module]) -> None:
        """Raise where this is all that is on a pipeline, or has left a mix on a part of it with no mixer to take it away."""
        if self.is_on(pipe, components):
            self._refuse(self.roots or components, set())
        elif self.mixer is None and self.enabled and self.controller.acts:
            self._refuse(components, set())

    def adopt(self, mixer: Any) -> bool:
        """Be a mixer's from now on, where there is none; tell whether it is: of several that ask, one is."""
        with _claims:
            if self.mixer is not None:
                return self.mixer is mixer
            self.owner = weakref.ref(mixer)
            return True

    def is_on(self, pipe: Any, components: Mapping[str, nn.Module]) -> bool:
        """Whether it is the state of this pipeline: of the same object, or one that has all parts which are reached."""
        if self.has_nothing:
            return False
        if self.pipe is pipe and self.controller.has_own_pipe:
            return True
        mine = {id(root) for root in self.roots.values()}
        reached = mine & {id(root) for root in components.values()}
        odd = [p for p, root in self.roots.items() if id(root) not in reached and p in components]
        return bool(reached) and not odd


def _mixed(parameters: Collection[int]) -> list[str]:
    """Name those of some parameters, by identity, that any mix is in."""
    return [name for state in _all_states() for name in state.controller.mixed(parameters)]


def _remember(state: MixerState) -> None:
    with _claims:
        _states.add(state)


def _all_states() -> list[MixerState]:
    """List all that are alive; a set that another thread adds to cannot be gone through."""
    with _claims:
        return list(_states)


def state_of(pipe: Any) -> MixerState | None:
    """
    Find what adapters are on a pipeline's parts, whoever loaded them.

    Raises:
        PipelineStateError: When several mixers have left adapters on it.
    """
    components = find_components(pipe)
    states = [state for state in _all_states() if state.is_on(pipe, components)]
    if any(
        state.controller.has_own_pipe for state in states
    ):  # a copied part in place of its first is followed
        states = [s for s in states if s.controller.has_own_pipe or s.pipe is not pipe]
    if len(states) > 1:
        parts = "; ".join(f"{', '.join(state.loaded)} on {', '.join(state.roots)}" for state in states)
        raise PipelineStateError(
            f"several mixers have left adapters on this pipeline ({parts}); make a LoraMixer of each of these parts and "
            "call its unload_lora_weights() first",
            problems=[
                Problem(part, f"has {', '.join(state.loaded)}") for state in states for part in state.roots
            ],
        )
    return states[0] if states else None


def refuse_beside(state: MixerState, pipe: Any) -> None:
    """
    Refuse what a mixer without adapters is asked where another's are: it would leave as it is what it seems to change.

    Raises:
        PipelineStateError: Naming the parts, the adapters and the way out.
    """
    components = find_components(pipe)
    for other in _all_states():
        if other is not state:
            other.refuse_beside(pipe, components)


def forget_all() -> None:
    """Take all marks and guards from pipelines and modules, whatever they hold; for tests that put weights back."""
    for state in _all_states():
        parts = [*state.components().values(), *state.roots.values()]
        guards.take_away(state.pipe, parts)
        state.controller.drop_scales()
        for root in parts:
            root.__dict__.pop(_MARK, None)
    _states.clear()
