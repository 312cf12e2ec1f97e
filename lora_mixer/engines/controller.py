"""
Puts mixes into effect: chooses between rewriting weights and the side path, and keeps schedules in step.

* One constant mix: merged, but for layers whose weights cannot be rewritten (quantised, offloaded): those have the side
  path.
* One mix with a schedule or a method: the side path, or merged anew at each step where an adapter has no low-rank form.
* Masks, and several mixes for the images of one batch: the side path.
* While the side path is reserved: whatever it can hold.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from lora_mixer.binding.components import component_name
from lora_mixer.engines.active import BASE, ActiveMixes
from lora_mixer.engines.denoiser.follower import START, DenoiserFollower
from lora_mixer.engines.denoiser.prompts import Prompts
from lora_mixer.engines.denoiser.steps import check_has_steps
from lora_mixer.engines.denoiser.watch import Calls
from lora_mixer.engines.fused import FusedProjections
from lora_mixer.engines.gains import MixGains
from lora_mixer.engines.hooks import sweep
from lora_mixer.engines.merged.engine import MergedEngine
from lora_mixer.engines.methods.k_lora import Contest, contest
from lora_mixer.engines.pipeline_ref import PipelineRef
from lora_mixer.engines.placement import reads_from_disk
from lora_mixer.engines.selection import Selection, choose
from lora_mixer.engines.side.engine import SideEngine
from lora_mixer.engines.side.masks import scale_mask
from lora_mixer.engines.side.support import layer_kind, side_pair
from lora_mixer.engines.trainable.engine import TrainableEngine
from lora_mixer.errors import MixError, PipelineStateError
from lora_mixer.mixes import TEXT_ENCODERS, BlockLayout, LayerPatterns
from lora_mixer.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from torch import nn

    from lora_mixer.algorithms import Factors, LayerWeights
    from lora_mixer.binding import BoundLayer
    from lora_mixer.engines.denoiser.places import Places
    from lora_mixer.engines.denoiser.steps import Step
    from lora_mixer.engines.merged.engine import MergedRecord
    from lora_mixer.engines.merged.kept_weight import BaseDevice
    from lora_mixer.engines.side.engine import Reservation
    from lora_mixer.engines.trainable.engine import TrainableRecord
    from lora_mixer.mixes import Mix


@dataclass(frozen=True)
class ControllerRecord:
    """What a controller held at one time."""

    layers: Mapping[str, Sequence[BoundLayer]]
    now: ActiveMixes
    merged: MergedRecord
    reserved: Reservation | None
    trainable: TrainableRecord


@dataclass
class MergedGains:
    """
    The gains that are written into weights at a step.

    Args:
        mixes: The mix of each image; nothing is written where there are several.
        beside: For each adapter, which of its layers have the side path.
    """

    mixes: Sequence[MixGains]
    beside: Mapping[str, Sequence[bool]]

    def at(self, step: Step, turn: int | None) -> dict[str, list[float]]:
        """Return the gain of every layer of every adapter."""
        table = self.mixes[0].at(step, turn) if len(self.mixes) == 1 else {}
        return {
            name: [0.0 if out else gain for gain, out in zip(gains, self.beside[name], strict=True)]
            for name, gains in table.items()
        }


class StepWriter:
    """
    Puts each step of a denoiser into effect; an object, so that copies of the denoiser have copies of it.

    Args:
        controller: What holds the engines.
        gains: What is merged anew at each step, or None.
    """

    def __init__(self, controller: EngineController, gains: MergedGains | None) -> None:
        """Note what text encoders keep."""
        self._controller, self._gains = controller, gains
        self._start = {} if gains is None else gains.at(START, None)

    def __call__(self, step: Step, turn: int, rows: torch.Tensor | None, places: Places) -> None:
        """Put a step, a pass, the mixes of the rows and where the picture lies into effect."""
        gains = None if self._gains is None else self._gains.at(step, turn)
        for name, own in (gains or {}).items():  # text encoders keep what they had before the first step
            for place in self._controller.text_places(name):
                own[place] = self._start[name][place]
        self._controller.show(gains, step, turn, rows, places)


class EngineController:
    """
    The engines of one pipeline, and what they hold in effect.

    Args:
        pipe: The pipeline, for its scheduler and guidance.
        keep_on: Where bases are kept.
    """

    def __init__(self, pipe: Any, keep_on: BaseDevice) -> None:
        """Start with the base."""
        self._pipe = PipelineRef(pipe)
        self.merged = MergedEngine(keep_on, self._reshaped)
        self.beside = SideEngine()
        self.trainable = TrainableEngine()
        self._fused = FusedProjections()
        self._calls = Calls()
        self._layers: dict[str, Sequence[BoundLayer]] = {}
        self._now = BASE
        self._parts: dict[str, tuple[Sequence[BoundLayer], tuple[str, ...]]] = {}
        self._pairs: dict[str, list[Factors | None]] = {}
        self._contests: dict[tuple[str, str], Contest] = {}
        self._changing = False  # whether anything may be written since the last record

    @property
    def pipe(self) -> Any:
        """The pipeline, for its scheduler and guidance."""
        return self._pipe.pipe

    @pipe.setter
    def pipe(self, pipe: Any) -> None:
        self._pipe = PipelineRef(pipe)

    def _reshaped(self, component: str) -> None:
        """Let what was recorded of a component be recorded anew: a weight of it is another tensor now."""
        self.beside.generations[component] += 1

    def replace(self, name: str, layers: Sequence[BoundLayer]) -> None:
        """Take an adapter's layers under a name, in the place of those that it has; the next mix takes effect by them."""
        self._forget(name)
        self._layers[name] = layers
        self.merged.replace(name, layers)

    @property
    def layers(self) -> Mapping[str, Sequence[BoundLayer]]:
        """The layers of each adapter."""
        return self._layers

    def rebind(self, layers: Mapping[str, Sequence[BoundLayer]], components: Mapping[str, nn.Module]) -> None:
        """Go on with other modules: those that were replaced get their base back, the mix goes to those in their place."""
        self._changing = True
        now, held = self._now, self.beside.reserved
        self._clear()
        gone = {
            id(old.live.module)
            for name, others in layers.items()
            for old, new in zip(self._layers[name], others, strict=True)
            if old.live.module is not new.live.module
        }
        self.merged.leave(gone)
        for name, others in layers.items():
            if others is not self._layers[name]:
                self.replace(name, others)
        self._now = BASE
        if held is not None and not gone.isdisjoint(held.layers):
            self.reserve(held.rank, held.rows, components)
        self.apply(now, components)

    def blended(self, modules: Collection[int]) -> list[str]:
        """Name those of some modules, by identity, that a mix is in."""
        return self.merged.blended(modules)

    def mixed(self, parameters: Collection[int]) -> list[str]:
        """Name those of some parameters, by identity, that a mix is in or stands for."""
        return self.merged.mixed(parameters)

    @property
    def is_in_parameters(self) -> bool:
        """Whether all that is in effect is in parameters: nothing beside them, and nothing that changes by step."""
        return (
            not self.beside.active
            and not self.trainable.active
            and not self.merged.has_hooks
            and not self._calls.watching
        )

    @property
    def acts(self) -> bool:
        """Whether anything changes the pipeline now or at a later step: a mix of zeros does not."""
        written = any(any(gains) for gains in self.merged.active.values())
        return written or self.beside.active or self.trainable.active or self._calls.watching

    def remove(self, name: str) -> None:
        """Forget an adapter that is in no mix any more."""
        if name in self._layers:
            del self._layers[name]
            self._forget(name)
            self.trainable.forget([name])
            self.merged.remove(name)

    @property
    def components(self) -> tuple[str, ...]:
        """The components that adapters change."""
        for name, layers in self._layers.items():
            if name not in self._parts or self._parts[name][0] is not layers:
                self._parts[name] = layers, tuple(dict.fromkeys(layer.live.component for layer in layers))
        return tuple(dict.fromkeys(part for name in self._layers for part in self._parts[name][1]))

    @property
    def modules(self) -> Collection[int]:
        """The identities of the modules that adapters change."""
        return self.merged.modules

    def keep_on(self, place: BaseDevice) -> None:
        """Keep bases elsewhere from now on."""
        self.merged.keep_on(place)

    def base_bytes(self) -> dict[str, int]:
        """Count the bytes of kept bases by device."""
        return self.merged.base_bytes()

    def generation(self, part: str) -> int:
        """Return a number that is another one as soon as the hooks on a component are others."""
        return self.beside.generations[part]

    def held(
        self, name: str
    ) -> Iterator[tuple[BoundLayer, nn.Module, LayerWeights, torch.Tensor, torch.Tensor | None]]:
        """Return each layer of an adapter: as bound, its module, tensors, clean weight (out, in, *kernel) and clean bias."""
        for layer, (module, weights, base, bias) in zip(
            self._layers[name], self.merged.held(name), strict=True
        ):
            yield layer, module, weights, base, bias

    def _forget(self, name: str) -> None:
        self._pairs.pop(name, None)
        self._contests = {names: kept for names, kept in self._contests.items() if name not in names}

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
        self.merged.look()
        self._fused.find(self._layers.values(), components)
        self._fused.check()
        from_files = {
            part for part in self.components if part in components and reads_from_disk(components[part])
        }
        self._refuse_files(from_files, setting)
        chosen = self._choose(setting, from_files)
        self._changing = True
        self._enter(setting, components, chosen)

    def _refuse_files(self, from_files: Collection[str], setting: ActiveMixes) -> None:
        """Refuse weights that are read from files at each call where they are to hold a mix, or do."""
        written = {
            layer.live.component
            for name, gains in self.merged.active.items()
            for layer, gain in zip(self._layers.get(name, ()), gains, strict=False)
            if gain
        }
        asked = {layer.live.component for name in setting.names for layer in self._layers[name]}
        odd = sorted((written | (asked if setting.engine == "merged" else set())) & set(from_files))
        if odd:
            raise PipelineStateError(
                f"{', '.join(odd)}: group offloading reads its weights from files at each call (offload_to_disk_path), so "
                "that a mix written into them, or their base, would be lost: offload in memory, or use engine='side'. "
                "Where it was enabled under a mix past the model's own enable_group_offload(), the files hold the mix: load "
                "the component again"
            )

    def restore(self) -> None:
        """Put the base back, whatever state others left the weights in."""
        self._changing = True
        self._clear()
        self._now = BASE
        self.merged.restore()
        self._fused.copy(self._fused.rewritable())

    def rebase(self) -> None:
        """Take what the weights hold now as the new base."""
        self._changing = True
        self._clear()
        self._now = BASE
        self.merged.rebase()

    # --- all or nothing --------------------------------------------------------------------------------------------

    def record(self) -> ControllerRecord:
        """Note what is held and in effect, for :meth:`roll_back`."""
        self._changing = False
        return ControllerRecord(
            dict(self._layers),
            self._now,
            self.merged.record(),
            self.beside.reserved,
            self.trainable.record(),
        )

    def settle(self) -> None:
        """Let go of what only a way back needs."""
        self.merged.settle()

    def roll_back(self, record: ControllerRecord, components: Mapping[str, nn.Module]) -> None:
        """Put back what was recorded, whatever state a change was left in; it can fail like any change."""
        self._layers = dict(record.layers)
        self._pairs.clear()
        self._contests.clear()
        self.trainable.put_back(record.trainable)
        if not self._changing:
            self.merged.put_back(record.merged)
            return
        self._sweep(components)
        self.merged.roll_back(record.merged)
        self._fused.copy_again()
        self.beside.put_back(record.reserved)
        self._enter(record.now, components, self._choose(record.now))
        self.merged.free_fresh()
        self._changing = False

    def _sweep(self, components: Mapping[str, nn.Module]) -> None:
        """Take all hooks away, also those that nobody noted: what was interrupted may have left any."""
        outer = callers(self.pipe)
        roots = [table[part] for table in (components, outer) for part in self.components if part in table]
        sweep([*(module for root in roots for module in root.modules()), *self.merged.touched_modules])
        self._fused.clear()
        self._calls.clear()
        self.beside.clear()
        self.trainable.clear()
        self.beside.forget_handles()

    def force_base(self, record: ControllerRecord, components: Mapping[str, nn.Module]) -> list[str]:
        """
        Put the base back after :meth:`roll_back` has failed, too: adapters as recorded, none in effect.

        Returns:
            The names of weights that could not be written; their bases are kept, and the next call tries again.
        """
        self._layers, self._now = dict(record.layers), BASE
        self._sweep(components)
        self.trainable.put_back(record.trainable)
        self.beside.release()
        left = self.merged.force_base(record.merged)
        self._fused.copy_again()
        self._changing = False
        return left

    def _clear(self) -> None:
        self._fused.clear()
        self._calls.clear()
        self.beside.clear()
        self.trainable.clear()
        self.beside.empty()

    # --- reserving -------------------------------------------------------------------------------------------------

    def reserve(self, rank: int, rows: int, components: Mapping[str, nn.Module]) -> None:
        """
        Reserve the side path beside all layers of denoisers that loaded adapters change.

        Raises:
            MixError: When there are none, or the mix in effect does not fit; nothing has changed then.
        """
        found = {
            id(layer.live.module): layer.live
            for layers in self._layers.values()
            for layer in layers
            if layer.live.component not in TEXT_ENCODERS and layer_kind(layer.live.module) is not None
        }
        if not found:
            raise MixError(
                "no loaded adapter changes a denoiser's layers that a side path can stand beside; load the adapters "
                "first, or one that changes the same layers"
            )
        self._changing = True
        self._clear()
        self.beside.reserve(list(found.values()), rank, rows, components)
        self.apply(self._now, components)

    def release(self, components: Mapping[str, nn.Module]) -> None:
        """Give the reserved side path back; the mix in effect goes on by other means."""
        self._changing = True
        self._clear()
        self.beside.release()
        self.apply(self._now, components)

    # --- taking effect -------------------------------------------------------------------------------------------

    def _choose(self, setting: ActiveMixes, from_files: Collection[str] = ()) -> Selection:
        names = [name for name in setting.names if name not in self.trainable.held]
        chosen = choose(
            setting,
            {name: self._layers[name] for name in names},
            {
                name: [
                    locked or layer.live.component in from_files
                    for locked, layer in zip(self.merged.locks(name), self._layers[name], strict=True)
                ]
                for name in names
            },
            self._pairs_of,
            reserved=self.beside.reserved is not None,
        )
        # what is in training is in no weight and in no other engine
        others = {name: [True] * len(self._layers[name]) for name in setting.names if name not in names}
        return replace(chosen, beside={**chosen.beside, **others})

    def _pairs_of(self, name: str) -> list[Factors | None]:
        """Return the factors of an adapter's layers, worked out once for as long as it takes part."""
        if name not in self._pairs:
            self._pairs[name] = [side_pair(layer) for layer in self._layers[name]]
        return self._pairs[name]

    def _enter(self, setting: ActiveMixes, components: Mapping[str, nn.Module], chosen: Selection) -> None:
        self._fused.clear()
        self._calls.clear()
        self.beside.clear()
        self.trainable.clear()
        names = tuple(sorted(set(setting.names) - self.trainable.held.keys()))
        parts = {layer.live.component for name in names for layer in self._layers[name]} - set(TEXT_ENCODERS)
        check_has_steps(
            setting.every, {part: components[part] for part in sorted(parts) if part in components}
        )
        layouts = self._layouts(setting, components)
        for mix in setting.every:
            if layouts:
                mix.check(layouts)
                _check_patterns(mix, components)
        mixes = [MixGains(mix, self._layers, layouts, self._contest(mix)) for mix in setting.every]
        beside = chosen.beside

        merged_gains = MergedGains(mixes, beside)
        self._write(merged_gains.at(START, None), looked=True)
        if any(any(beside[name]) for name in names):
            pairs = {
                name: [
                    pair if out else None
                    for pair, out in zip(self._pairs_of(name), beside[name], strict=True)
                ]
                for name in names
            }
            self.beside.build(mixes, names, pairs, components, self._masks(setting, names), START)
            self._fused.clear()
            self._fused.stand()
        else:
            self.beside.empty()
        self._train(setting, mixes, components)
        self._pairs = {name: pairs for name, pairs in self._pairs.items() if name in names}
        if chosen.follows:
            self._follow(
                setting, [mix.passes for mix in mixes], merged_gains, remerge=chosen.engine == "steps"
            )
        self._now = setting

    def _train(
        self, setting: ActiveMixes, mixes: Sequence[MixGains], components: Mapping[str, nn.Module]
    ) -> None:
        """Let the adapters in training that are in the mix take part."""
        names = [name for name in sorted(setting.names) if name in self.trainable.held]
        if not names:
            return
        if len(mixes) != 1 or not setting.every[0].is_constant:
            raise MixError(
                f"{', '.join(names)}: an adapter in training has one weight for all rows and steps; set a mix without "
                "schedules, masks and lists"
            )
        gains = mixes[0].at(START, None)
        layers = [
            (layer, clean, gain, self.trainable.held[name].dropout)
            for name in names
            for layer, clean, gain in zip(
                self._layers[name], self.merged.clean_weights(name), gains[name], strict=True
            )
            if gain
        ]
        self.trainable.enter(layers, components)

    def show(
        self,
        gains: Mapping[str, Sequence[float]] | None,
        step: Step,
        turn: int,
        rows: torch.Tensor | None,
        places: Places,
    ) -> None:
        """Put a step into effect: gains in weights, where there are any, and what stands beside them."""
        if gains is not None and gains != self.merged.active:
            self._write(gains)
        self.beside.show(step, turn, rows, places)

    def text_places(self, name: str) -> list[int]:
        """Tell which layers of an adapter are a text encoder's."""
        return [n for n, layer in enumerate(self._layers[name]) if layer.live.component in TEXT_ENCODERS]

    def _write(self, gains: Mapping[str, Sequence[float]], *, looked: bool = False) -> None:
        """Write gains into weights, and fused projections after them."""
        fused = self._fused.in_step()
        self._fused.clear()
        try:
            self.merged.apply(gains, looked=looked)
        finally:
            self._fused.copy(fused)
            self._fused.stand()

    def _contest(self, mix: Mix) -> Contest | None:
        roles = mix.method.rivals(mix.names)
        if roles is None:
            return None
        if roles not in self._contests:
            content, style = (
                [layer for layer in self._layers[name] if layer.live.component not in TEXT_ENCODERS]
                for name in roles
            )
            self._contests[roles] = contest(content, style)
        return self._contests[roles]

    @staticmethod
    def _layouts(setting: ActiveMixes, components: Mapping[str, nn.Module]) -> dict[str, BlockLayout]:
        """Return the blocks of each component, where a mix asks for any."""
        if all(mix[name].blocks is None for mix in setting.every for name in mix.names):
            return {}
        return {
            part: BlockLayout.from_module_names(name for name, _ in root.named_modules())
            for part, root in components.items()
        }

    @staticmethod
    def _masks(setting: ActiveMixes, names: Sequence[str]) -> torch.Tensor | None:
        """Return the masks of all images' adapters at one size, ones where there is none: (images * adapters, frames, h, w)."""
        found = {
            (i, name): torch.tensor(mask.load(), dtype=torch.float32)
            for i, mix in enumerate(setting.every)
            for name in mix.names
            if (mask := mix[name].mask) is not None
        }
        if not found:
            return None
        found = {key: mask[None] if mask.ndim == 2 else mask for key, mask in found.items()}
        frames, height, width = (max(mask.shape[axis] for mask in found.values()) for axis in range(3))
        rows = []
        for i in range(len(setting.every)):
            for name in names:
                own = found.get((i, name), torch.ones(1, 1, 1))[None]  # (1, frames, height, width)
                own = functional.interpolate(own, (height, width), mode="bilinear")
                rows.append(scale_mask(own, (frames, height, width))[0])
        return torch.stack(rows).clamp_(0, 1)

    # --- following the denoiser --------------------------------------------------------------------------------------

    def _follow(
        self,
        setting: ActiveMixes,
        passes: Sequence[int],
        merged_gains: MergedGains,
        *,
        remerge: bool,
    ) -> None:
        """Watch each denoiser that an active adapter changes, and text encoders where each prompt has its own mix."""
        outer = callers(self.pipe)
        put = StepWriter(self, merged_gains if remerge else None)
        prompts = Prompts(len(setting.mixes), len(setting.negatives))
        parts = {layer.live.component for name in setting.names for layer in self._layers[name]}
        for part in sorted(parts - set(TEXT_ENCODERS)):
            follower = DenoiserFollower(
                self._pipe, part, passes, len(setting.negatives), setting.copies, put, prompts
            )
            buffers = self.beside.buffers.get(part)
            if buffers is not None and buffers.masks is not None:
                follower.place_in(getattr(outer[part], "_orig_mod", outer[part]))
            self._calls.watch(outer[part], follower.before, follower.after if follower.several else None)
        for part in self.beside.buffers:
            if part in TEXT_ENCODERS and len(setting.every) > 1:
                show = functools.partial(self.beside.show_text, part)
                self._calls.watch(outer[part], prompts.before(part, show))


def callers(pipe: Any) -> dict[str, nn.Module]:
    """
    Return the components as the pipeline calls them, ``torch.compile``'s wrappers included.

    Args:
        pipe: A pipeline, or a bare module.
    """
    if isinstance(pipe, torch.nn.Module):
        return {component_name(pipe): pipe}
    return {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}


def _check_patterns(mix: Mix, components: Mapping[str, nn.Module]) -> None:
    """Refuse block weights by patterns that no layer has: they would do nothing, without a word."""
    problems = [
        Problem(
            f"{name}.blocks",
            f"no layer of this pipeline matches {', '.join(lost[:5])}; patterns are matched against paths such as "
            '"unet.mid_block.attentions.0.proj_in", and * stands for anything.',
        )
        for name in mix.names
        if isinstance(blocks := mix[name].blocks, LayerPatterns)
        and (
            lost := blocks.unmatched(
                (part, path) for part, root in components.items() for path, _ in root.named_modules()
            )
        )
    ]
    if problems:
        raise MixError(problems=tuple(problems))
