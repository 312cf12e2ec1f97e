"""
Puts mixes into effect: holds the engines of a pipeline, shares each mix's layers out, and keeps moving mixes in step.

* One constant mix: merged, but for layers whose weights cannot be rewritten (quantised, offloaded): those have the side
  path.
* One mix with a schedule or a method: the side path, or merged anew at each step where an adapter has no low-rank form.
* Masks, and several mixes for the images of one batch: the side path.
* While room is reserved: whatever that can hold.
* What is in training: its own engine, and no other.

That is what the costs and refusals of the engines come to (``engine.py``, ``selection.py``); nothing here asks for one of them
by name. Bases are kept by the merged engine for all.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from lora_mixer.binding.layers import BoundLayers
from lora_mixer.engines.active import BASE, ActiveMixes
from lora_mixer.engines.denoiser.scaled import ScaleArgument, ScaledCall, ScaleOfPrompts, Scales
from lora_mixer.engines.denoiser.standing_in import StandIns
from lora_mixer.engines.denoiser.steps import check_has_steps
from lora_mixer.engines.denoiser.turns import Turns
from lora_mixer.engines.denoiser.watcher import CallWatcher
from lora_mixer.engines.engine import Effect, Wish
from lora_mixer.engines.fused import FusedProjections
from lora_mixer.engines.gains import Comparisons, gains_of
from lora_mixer.engines.hooks import sweep
from lora_mixer.engines.in_effect import InEffect
from lora_mixer.engines.merged.engine import MergedEngine
from lora_mixer.engines.merged.kept_weight import unsupported
from lora_mixer.engines.pipeline_ref import PipelineRef, callers
from lora_mixer.engines.products import weight_of
from lora_mixer.engines.read_past import look_again, read_past
from lora_mixer.engines.selection import choose
from lora_mixer.engines.side.support import layer_kind
from lora_mixer.engines.table import ENGINES, House
from lora_mixer.errors import MixError, PipelineStateError
from lora_mixer.interrupts import uninterrupted
from lora_mixer.mixes import TEXT_ENCODERS
from lora_mixer.problem import Problem
from lora_mixer.wording import list_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from torch import nn

    from lora_mixer.algorithms import LayerWeights
    from lora_mixer.binding import BoundLayer
    from lora_mixer.binding.index import LiveModule
    from lora_mixer.engines.engine import Engine, Own
    from lora_mixer.engines.merged.kept_weight import KeepBase, KeptWeight


@dataclass(frozen=True)
class ControllerRecord:
    """What a controller held at one time: adapters, mixes, and each engine's own record."""

    layers: Mapping[str, BoundLayers]
    now: ActiveMixes
    engines: Sequence[Any]


class EngineController:
    """
    The engines of one pipeline, and what they hold in effect.

    Args:
        pipe: The pipeline, for its scheduler and guidance.
        keep_on: Where bases are kept.
    """

    def __init__(self, pipe: Any, keep_on: KeepBase) -> None:
        """Start with the base."""
        self._pipe = PipelineRef(pipe)
        self._fused = FusedProjections()
        self._bases = MergedEngine(keep_on, self._fused)
        house = House(self._bases)
        self._engines: Sequence[Engine] = [make(house) for make in ENGINES.values()]
        self._turns = Turns()
        self._watcher = CallWatcher(self._turns)
        self._scaled, self._scales = StandIns(), Scales()
        self._in_effect = InEffect(self._engines, self._scales)
        self._layers: dict[str, BoundLayers] = {}
        self._now = BASE
        self._comparisons = Comparisons()
        self._changing = False  # whether anything may be written since the last record

    @property
    def pipe(self) -> Any:
        """The pipeline, for its scheduler and guidance."""
        return self._pipe.pipe

    @property
    def has_own_pipe(self) -> bool:
        """Whether this is the pipeline of these modules, and not that of those that they are a copy of."""
        return self._pipe.is_own

    def move_to(self, pipe: Any, *, is_own: bool = True) -> None:
        """Belong to another pipeline that has the same parts."""
        self._pipe = PipelineRef(pipe, is_own=is_own)

    # --- adapters --------------------------------------------------------------------------------------------------

    def replace(
        self,
        name: str,
        layers: Sequence[BoundLayer],
        trained: Own | None = None,
        roots: Sequence[nn.Module] = (),
    ) -> None:
        """
        Take an adapter's layers under a name, in the place of those that it has; the next mix takes effect by them.

        Args:
            name: The name.
            layers: The layers.
            trained: What goes with them where one engine is to have the adapter alone.
            roots: The components that it reaches then.
        """
        self._comparisons.forget(name)
        look_again()
        layers = layers if isinstance(layers, BoundLayers) else BoundLayers(layers)
        self._layers[name] = layers
        for engine in self._engines:
            engine.take(name, layers)
            if trained is not None and engine.name == trained.engine:
                engine.claim(name, trained, roots)

    def own(self, name: str) -> Own | None:
        """Return what one engine alone has of an adapter; None where mixes share it out."""
        return next((trained for engine in self._engines if (trained := engine.own(name)) is not None), None)

    @property
    def layers(self) -> Mapping[str, BoundLayers]:
        """The layers of each adapter."""
        return self._layers

    def rebind(
        self,
        layers: Mapping[str, Sequence[BoundLayer]],
        components: Mapping[str, nn.Module],
        *,
        mixed: bool = True,
    ) -> None:
        """Go on with other modules: those that were replaced get their base back, the mix, if wanted, goes to those in their place."""
        self._changing = True
        now, rooms = self._now, [room for engine in self._engines if (room := engine.room) is not None]
        self._clear()
        gone = {
            id(old.live.module)
            for name, others in layers.items()
            for old, new in zip(self._layers[name], others, strict=True)
            if old.live.module is not new.live.module
        }
        self._bases.leave(gone)
        for name, others in layers.items():
            if others is not self._layers[name]:
                self.replace(name, others)
        self._now = BASE
        for room in rooms:
            if not gone.isdisjoint(room.modules):
                self.reserve(room.rank, room.rows, components)
        if mixed:
            self.apply(now, components)

    def remove(self, name: str) -> None:
        """Forget an adapter that is in no mix any more."""
        if name in self._layers:
            del self._layers[name]
            self._comparisons.forget(name)
            for engine in self._engines:
                engine.forget(name)

    @property
    def components(self) -> tuple[str, ...]:
        """The components that adapters change."""
        return tuple(dict.fromkeys(part for layers in self._layers.values() for part in layers.components))

    @property
    def reserved(self) -> tuple[str, ...]:
        """The components in which room is kept for mixes to come."""
        return tuple(
            part for engine in self._engines if engine.room is not None for part in engine.room.components
        )

    # --- bases -----------------------------------------------------------------------------------------------------

    @property
    def modules(self) -> Collection[int]:
        """The identities of the modules that adapters change."""
        return self._bases.modules

    def clean_of(self, live: LiveModule) -> torch.Tensor:
        """
        Return the clean weight (out, in, *kernel) of any module; of a packed linear layer what it computes with.

        Raises:
            PipelineStateError: When its values cannot be read: packed otherwise, or on the meta device.
        """
        reason = unsupported(live.weight)
        if (
            reason
            and live.weight.device.type != "meta"
            and layer_kind(live.module) == "linear"
            and not live.is_bare
        ):
            return weight_of(live.module, live.shape)
        if reason:
            raise PipelineStateError(reason, key=f"{live.component}.{live.path}")
        return self._bases.clean_of(live)

    def blended(self, modules: Collection[int]) -> list[str]:
        """Name those of some modules, by identity, that a mix is in."""
        return self._bases.blended(modules)

    def mixed(self, parameters: Collection[int]) -> list[str]:
        """Name those of some parameters, by identity, that a mix is in or stands for."""
        return self._bases.mixed(parameters)

    def keep_on(self, place: KeepBase) -> None:
        """Keep bases elsewhere from now on."""
        self._bases.keep_on(place)

    def base_bytes(self) -> dict[str, int]:
        """Count the bytes of kept bases by device."""
        return self._bases.base_bytes()

    def whole_bases(self) -> dict[str, str]:
        """Name the weights whose base is kept whole where that was not asked for, and say why."""
        return self._bases.whole_bases()

    def held(
        self, name: str
    ) -> Iterator[tuple[BoundLayer, nn.Module, LayerWeights, torch.Tensor, torch.Tensor | None]]:
        """Return each layer of an adapter: as bound, its module, tensors, clean weight (out, in, *kernel) and clean bias."""
        for layer, (module, weights, base, bias) in zip(
            self._layers[name], self._bases.held(name), strict=True
        ):
            yield layer, module, weights, base, bias

    def restore(self, components: Mapping[str, nn.Module]) -> None:
        """Put the base back, whatever state others left the weights in."""
        self._bases.refuse_lost()
        self._bases.find_stored(components)
        self._leave_files()
        self._clear()
        self._now = BASE
        self._bases.restore()
        self._fused.copy(self._fused.rewritable())

    def rebase(self, components: Mapping[str, nn.Module], *, bake: bool) -> bool:
        """
        Take what somebody else has written into weights as their base, and put the kept one back into the others.

        Args:
            components: The pipeline's modules.
            bake: Take all weights as they are.

        Returns:
            Whether a mix was in weights and nobody has written any of these.

        Raises:
            PipelineStateError: When fused projections and their parts hold different things, or only half of the mix could
                be baked.
        """
        self._bases.find_stored(components)
        if bake and self._now != BASE and not self.is_in_parameters:
            raise PipelineStateError(
                f"the mix of {', '.join(self._now.names)} is in no parameter, or only half of it, so that it cannot become a "
                "part of the base: set a constant mix with engine='merged' first, or let it go (unfuse_lora(), disable_lora())",
                problems=[
                    Problem(name, "is in no parameter, or in some of them only") for name in self._now.names
                ],
            )
        self._fused.check()
        theirs, is_untouched = self._bases.written_by_others()
        theirs = self._bases.everything() if bake else theirs
        self._bases.give_up(theirs)
        self._leave_files(theirs)
        self._clear()
        self._now = BASE
        self._bases.rebase(theirs)
        return is_untouched and not bake

    # --- what is in effect -----------------------------------------------------------------------------------------

    @property
    def is_in_parameters(self) -> bool:
        """Whether all that is in effect is in parameters: nothing beside them, and nothing that changes by step."""
        return not self._watcher.is_watching and all(engine.is_in_parameters for engine in self._engines)

    @property
    def acts(self) -> bool:
        """Whether anything changes the pipeline now or at a later step: a mix of zeros does not."""
        return self._watcher.is_watching or any(engine.acts for engine in self._engines)

    def asked_to_merge(
        self, parts: Collection[str], modules: Collection[nn.Module] | None = None
    ) -> list[str]:
        """Name the adapters in effect on some parts, or modules of these, whose mix was asked for in the weights, not beside them."""
        if self._now.engine != self._bases.name:
            return []
        return [
            name
            for name in self._now.names
            if not set(parts).isdisjoint(self._layers[name].components)
            and (modules is None or any(layer.live.module in modules for layer in self._layers[name]))
        ]

    def generation(self, part: str) -> int:
        """Return a number that is another one as soon as the hooks on a component, or its weights' tensors, are others."""
        return sum(engine.generation(part) for engine in self._engines)

    def apply(self, setting: ActiveMixes, components: Mapping[str, nn.Module]) -> None:
        """
        Put a setting into effect; where that fails half-way, :meth:`roll_back` is for the caller.

        Args:
            setting: The mixes and how to serve them.
            components: The pipeline's modules.

        Raises:
            MixError: When no engine, or not the one asked for, can serve the mixes.
            PipelineStateError: When weights cannot be worked on.
        """
        self._bases.find_stored(components)
        wish = self._wish(setting, components)
        for engine in self._engines:
            engine.look(wish)
        self._fused.find(self._layers.values(), components)
        self._fused.check()
        served = self._share(wish)
        self._leave_files()
        self._enter(wish, components, served)

    @uninterrupted
    def _leave_files(self, but: Collection[KeptWeight] = ()) -> None:
        """Put the base into files that hold a mix; where that fails, nothing has changed."""
        self._bases.clear_stored(but)
        self._changing = True

    def _wish(self, setting: ActiveMixes, components: Mapping[str, nn.Module]) -> Wish:
        names = [name for name in setting.names if self.own(name) is None]
        reserved = any(engine.room is not None for engine in self._engines)
        leaves = any(engine.leaves_weights for engine in self._engines if engine.name == setting.engine)
        return Wish(setting, self._layers, names, reserved, components, leaves)

    def _share(self, wish: Wish) -> Mapping[str, Mapping[str, Sequence[bool]]]:
        """Tell which engine has which layers: all of an adapter that one has alone, the others as they share them out."""
        served = choose(wish, self._engines)
        for name in wish.setting.names:
            trained = self.own(name)
            if trained is not None:
                served[trained.engine][name] = [True] * len(self._layers[name])
        return served

    def _enter(
        self,
        wish: Wish,
        components: Mapping[str, nn.Module],
        served: Mapping[str, Mapping[str, Sequence[bool]]],
    ) -> None:
        setting = wish.setting
        self._in_effect.leave()
        self._scaled.clear()
        self._fused.clear()
        self._watcher.clear()
        for engine in self._engines:
            engine.clear()
        parts = {part for name in wish.names for part in self._layers[name].components}
        denoisers = sorted(part for part in parts - set(TEXT_ENCODERS) if part in components)
        check_has_steps(setting.every, {part: components[part] for part in denoisers})
        mixes = gains_of(setting.every, self._layers, components, self._comparisons, self._scales)
        effect = Effect(mixes, self._layers, served, components, setting, wish.is_moving)
        for engine in self._engines:
            engine.enter(effect)
        self._in_effect.enter(effect)
        self._fused.clear()
        self._fused.stand()
        self._turns.is_by_call = wish.is_moving or wish.is_by_place
        if self._turns.is_by_call:
            self._watcher.watch(self._pipe, effect, self._engines, self._in_effect)
        self._take_calls(setting, components)
        self._now = setting

    def _take_calls(self, setting: ActiveMixes, components: Mapping[str, nn.Module]) -> None:
        """Let calls of what adapters change have the scale that they are given, and their gradients be looked after."""
        outer = callers(self.pipe)
        parts = {part for name in setting.names for part in self._layers[name].components}
        for part in sorted(parts & outer.keys()):
            read = ScaleOfPrompts(part) if part in TEXT_ENCODERS else ScaleArgument(type(components[part]))
            guarded = self._in_effect.guarded
            self._scaled.place(outer[part], ScaledCall(part, read, self._hold_scale, self._turns, guarded))
        self._in_effect.watched.update(parts & outer.keys())

    def drop_scales(self) -> None:
        """Let calls have no scale any more."""
        self._in_effect.leave()
        self._scaled.clear()

    @contextmanager
    def scaled(self, part: str, scale: float) -> Iterator[None]:
        """Multiply the whole mix in a component for a block, while no other thread is inside of a call."""
        with self._turns.taken(alone=True), self._hold_scale(part, scale):
            yield

    def _hold_scale(self, part: str, scale: float) -> AbstractContextManager[None]:
        here = [name for name in self._now.names if part in self._layers[name].components]
        still = [name for name in here if self.own(name) is None]
        if torch.is_grad_enabled() and still and len(still) < len(here):
            raise MixError(
                f"a scale of {scale} for {part} in a call that trains an adapter beside others ({list_of(still, 3)}): it is in effect "
                "for the call alone, and the gradients would be those of another mix; set a mix with the weights times the "
                "scale, and leave the scale out",
                component=part,
            )
        return self._scales.hold(part, scale, self._show_scale)

    def _show_scale(self, part: str) -> None:
        for engine in self._engines:
            engine.show_again(part)

    def _clear(self) -> None:
        """Let nothing stand beside weights, and follow no call."""
        self._in_effect.leave()
        self._scaled.clear()
        self._fused.clear()
        self._watcher.clear()
        for engine in self._engines:
            engine.clear()
            engine.empty()

    # --- all or nothing --------------------------------------------------------------------------------------------

    def record(self) -> ControllerRecord:
        """Note what is held and in effect, for :meth:`roll_back`."""
        self._changing = False
        return ControllerRecord(dict(self._layers), self._now, [engine.record() for engine in self._engines])

    def settle(self) -> None:
        """Let go of what only a way back needs."""
        for engine in self._engines:
            engine.settle()

    def roll_back(self, record: ControllerRecord, components: Mapping[str, nn.Module]) -> None:
        """Put back what was recorded, whatever state a change was left in; it can fail like any change."""
        self._layers = dict(record.layers)
        self._comparisons.clear()
        if not self._changing:
            for engine, state in zip(self._engines, record.engines, strict=True):
                engine.put_back(state)
            return
        self._sweep(components)
        for engine, state in zip(self._engines, record.engines, strict=True):
            engine.roll_back(state)
        self._fused.copy_again()
        wish = self._wish(record.now, components)
        self._enter(wish, components, self._share(wish))
        for engine in self._engines:
            engine.settle(undone=True)
        self._changing = False

    def force_base(self, record: ControllerRecord, components: Mapping[str, nn.Module]) -> list[str]:
        """
        Put the base back after :meth:`roll_back` has failed, too: adapters as recorded, none in effect.

        Returns:
            The names of weights that could not be written; their bases are kept, and the next call tries again.
        """
        self._layers, self._now = dict(record.layers), BASE
        self._sweep(components)
        self._in_effect.leave()
        left = [
            name
            for engine, state in zip(self._engines, record.engines, strict=True)
            for name in engine.force_base(state)
        ]
        self._fused.copy_again()
        self._changing = False
        return left

    def _sweep(self, components: Mapping[str, nn.Module]) -> None:
        """Take all hooks away, also those that nobody noted: what was interrupted may have left any."""
        outer = callers(self.pipe)
        roots = [table[part] for table in (components, outer) for part in self.components if part in table]
        sweep([*(module for root in roots for module in root.modules()), *self._bases.touched_modules])
        self._scaled.clear()
        self._fused.clear()
        self._watcher.clear()
        for engine in self._engines:
            engine.swept()

    # --- room for mixes to come ------------------------------------------------------------------------------------

    def reserve(self, rank: int, rows: int, components: Mapping[str, nn.Module]) -> None:
        """
        Reserve room beside all layers of denoisers that loaded adapters change.

        Raises:
            MixError: When there are none, or the mix in effect does not fit.
        """
        layers = {
            id(layer.live.module): layer.live
            for layers in self._layers.values()
            for layer in layers
            if layer.live.component not in TEXT_ENCODERS
            and id(layer.live.module) not in read_past(components[layer.live.component])
        }
        self._changing = True
        self._clear()
        reserved = [engine.reserve(list(layers.values()), rank, rows, components) for engine in self._engines]
        if not any(reserved):
            raise MixError(
                "no loaded adapter changes a denoiser's layers that a side path can stand beside; load the adapters "
                "first, or one that changes the same layers"
            )
        self.apply(self._now, components)

    def release(self, components: Mapping[str, nn.Module]) -> None:
        """Give reserved room back; the mix in effect goes on by other means."""
        self._changing = True
        self._clear()
        for engine in self._engines:
            engine.release()
        self.apply(self._now, components)
