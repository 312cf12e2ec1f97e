"""
Puts mixes into effect: chooses between rewriting weights and the side path, and keeps schedules in step.

* One constant mix: merged.
* One mix with a schedule: the side path, or merged anew at each step where an adapter has no low-rank form.
* Masks, and several mixes for the images of one batch: the side path.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.nn import functional

from lora_mixer.engines.images import image_rows
from lora_mixer.engines.merged import MergedEngine, MixLostError
from lora_mixer.engines.setting import BASE, Setting
from lora_mixer.engines.side import Scene, SideEngine, SideLayer, SidePart
from lora_mixer.engines.steps import Step, StepClock, scheduler_timesteps, timestep_of
from lora_mixer.errors import MixError
from lora_mixer.mixes import TEXT_ENCODERS, BlockLayout

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import nn

    from lora_mixer.binding import BoundLayer
    from lora_mixer.engines.slots import BaseDevice

_START = Step(0, 1, 1000.0)
_METHODS = ("sum", "switch")


class Stage:
    """
    The engines of one pipeline, and what they hold in effect.

    Args:
        pipe: The pipeline, for its scheduler and guidance.
        keep_on: Where bases are kept.
    """

    def __init__(self, pipe: Any, keep_on: BaseDevice) -> None:
        """Start with the base."""
        self._pipe = pipe
        self.merged = MergedEngine(keep_on)
        self._side = SideEngine()
        self._layers: dict[str, Sequence[BoundLayer]] = {}
        self._now = BASE
        self._names: tuple[str, ...] = ()
        self._scenes: dict[str, Scene] = {}

    def add(self, name: str, layers: Sequence[BoundLayer]) -> None:
        """Take an adapter's layers under a name; nothing takes effect yet."""
        self.merged.add(name, layers)
        self._layers[name] = layers

    def layers(self, name: str) -> Sequence[BoundLayer]:
        """Give the layers of an adapter, in the order of ``merged.held``."""
        return self._layers[name]

    @property
    def is_in_parameters(self) -> bool:
        """Whether all that is in effect is in parameters: no side path, no bias on a module without one."""
        return not self._scenes and not self.merged.has_hooks

    def remove(self, name: str) -> None:
        """Forget an adapter that is in no mix any more."""
        if name in self._layers:
            del self._layers[name]
            self.merged.remove(name)

    def rename(self, old: str, new: str) -> None:
        """Let an adapter that is in no mix go on under another name."""
        self._layers[new] = self._layers.pop(old)
        self.merged.rename(old, new)

    def apply(self, setting: Setting, components: Mapping[str, nn.Module]) -> None:
        """
        Put a setting into effect, all or nothing.

        Args:
            setting: The mixes and how to serve them.
            components: The pipeline's modules.

        Raises:
            MixError: When no engine, or not the one asked for, can serve the mixes.
            PipelineStateError: When weights cannot be worked on.
        """
        chosen = self._choose(setting)
        before = self._now
        try:
            self._enter(setting, components, chosen)
        except MixLostError:
            self._side.clear()
            self._now = BASE
            raise
        except BaseException:
            self._enter(before, components, self._choose(before))
            raise

    def restore(self) -> None:
        """Put the base back, whatever state others left the weights in."""
        self._side.clear()
        self._now = BASE
        self.merged.restore()

    def rebase(self) -> None:
        """Take what the weights hold now as the new base."""
        self._side.clear()
        self._now = BASE
        self.merged.rebase()

    # --- choosing ----------------------------------------------------------------------------------------------

    def _choose(self, setting: Setting) -> Literal["merged", "side", "steps"]:
        """Give ``merged`` for constant mixes, ``steps`` for merging anew at each step, or ``side``."""
        mixes = setting.mixes
        odd = sorted({mix.method.name for mix in mixes} - set(_METHODS))
        if odd:
            msg = f"the method {', '.join(odd)} is not available yet; available are {', '.join(_METHODS)}"
            raise MixError(msg)
        by_place = len(mixes) > 1 or any(mix[name].mask is not None for mix in mixes for name in mix.names)
        moving = any(not mix.is_constant for mix in mixes)
        dense = self._dense(setting.names)
        if by_place and setting.engine == "merged":
            msg = "masks and mixes per image cannot be merged into weights; use engine='side' or 'auto'"
            raise MixError(msg)
        if dense and (by_place or setting.engine == "side"):
            shown = ", ".join(f"{name} ({algorithm})" for name, algorithm in dense.items())
            msg = (
                f"{shown}: changes weights in a way that has no low-rank form, so it has no side path; "
                "constant mixes and schedules of it can be merged (engine='merged')"
            )
            raise MixError(msg)
        if by_place or setting.engine == "side":
            return "side"
        if not moving:
            return "merged"
        return "steps" if setting.engine == "merged" or dense else "side"

    def _dense(self, names: Sequence[str]) -> dict[str, str]:
        table = {}
        for name in names:
            for layer in self._layers.get(name, ()):
                low_rank = not layer.live.transposed and layer.weights.factors(layer.live.shape) is not None
                if low_rank and layer.weights.bias_delta(None, 1.0) is None:
                    continue
                table[name] = layer.weights.algorithm
                break
        return table

    # --- taking effect -------------------------------------------------------------------------------------------

    def _enter(self, setting: Setting, components: Mapping[str, nn.Module], chosen: str) -> None:
        self._side.clear()
        self._scenes = {}
        self._names = tuple(sorted(setting.names))
        layouts = self._layouts(setting, components)
        for mix in setting.mixes:
            if layouts:
                mix.check(layouts)
        if chosen == "merged":
            self.merged.apply(self._merged_gains(setting, layouts, _START, all_parts=True))
        elif chosen == "steps":
            self.merged.apply(self._merged_gains(setting, layouts, _START, all_parts=True))
            self._follow_steps(setting, components, layouts)
        else:
            # text encoders run once, before the first step: with one mix for all they are merged
            texts_merged = len(setting.mixes) == 1
            gains = self._merged_gains(setting, layouts, _START, all_parts=False) if texts_merged else {}
            self.merged.apply(gains)
            self._build_side(setting, components, layouts, texts_merged=texts_merged)
        self._now = setting

    @staticmethod
    def _layouts(setting: Setting, components: Mapping[str, nn.Module]) -> dict[str, BlockLayout]:
        """Give the blocks of each component, where a mix asks for any."""
        if all(mix[name].blocks is None for mix in setting.mixes for name in mix.names):
            return {}
        return {
            part: BlockLayout.from_module_names(name for name, _ in root.named_modules())
            for part, root in components.items()
        }

    def _merged_gains(
        self, setting: Setting, layouts: Mapping[str, BlockLayout], step: Step, *, all_parts: bool
    ) -> dict[str, list[float]]:
        """Give the gain of every layer at a step; only text encoders have one unless ``all_parts``."""
        if not setting.mixes:
            return {}
        mix = setting.mixes[0]
        table: dict[str, list[float]] = {}
        for name in mix.names:
            parts = {layer.live.component for layer in self._layers[name]}
            shares = {
                part: mix.share_at(name, part, step.index, step.total, step.timestep)
                if all_parts or part in TEXT_ENCODERS
                else 0.0
                for part in parts
            }
            if mix[name].blocks is None:
                shares = {part: share and share * mix.gain(name, part, "") for part, share in shares.items()}
                table[name] = [shares[layer.live.component] for layer in self._layers[name]]
            else:
                table[name] = [
                    shares[layer.live.component]
                    * mix.gain(name, layer.live.component, layer.live.path, layouts[layer.live.component])
                    for layer in self._layers[name]
                ]
        return table

    def _follow_steps(
        self, setting: Setting, components: Mapping[str, nn.Module], layouts: Mapping[str, BlockLayout]
    ) -> None:
        """Merge anew before each denoiser call whose step has other gains."""

        def look(step: Step, _: int, __: tuple[int, int]) -> None:
            gains = self._merged_gains(setting, layouts, step, all_parts=True)
            start = self._merged_gains(setting, layouts, _START, all_parts=True)
            for name in gains:  # text encoders keep what they had before the first step
                for i, layer in enumerate(self._layers[name]):
                    if layer.live.component in TEXT_ENCODERS:
                        gains[name][i] = start[name][i]
            if gains != self.merged.active:
                self.merged.apply(gains)

        self._watch(components, look)

    def _build_side(
        self,
        setting: Setting,
        components: Mapping[str, nn.Module],
        layouts: Mapping[str, BlockLayout],
        *,
        texts_merged: bool,
    ) -> None:
        by_module: dict[int, tuple[BoundLayer, list[SidePart]]] = {}
        for place, name in enumerate(self._names):
            for layer in self._layers[name]:
                live = layer.live
                if texts_merged and live.component in TEXT_ENCODERS:
                    continue
                gains = [
                    mix.gain(name, live.component, live.path, layouts.get(live.component))
                    if name in mix
                    else 0.0
                    for mix in setting.mixes
                ]
                pair = layer.weights.factors(live.shape) if any(gains) else None
                if pair is not None:
                    own = by_module.setdefault(id(live.module), (layer, []))
                    own[1].append(SidePart(place, pair, gains))
        masks = self._masks(setting)
        for layer, parts in by_module.values():
            live = layer.live
            scene = self._scenes.setdefault(live.component, Scene(masks=masks))
            self._side.attach(
                live.module, SideLayer(f"{live.component}.{live.path}", live.module, parts, scene)
            )
        self._fill(setting, _START)

        def look(step: Step, batch: int, latents: tuple[int, int]) -> None:
            rows = image_rows(self._pipe, batch, len(setting.mixes), setting.copies)
            self._fill(setting, step, rows, latents)

        self._watch(components, look)
        for part in self._scenes:
            if part in TEXT_ENCODERS:
                self._watch_text(part, components[part], len(setting.mixes))

    def _masks(self, setting: Setting) -> torch.Tensor | None:
        """Give the masks of all images' adapters at one size, ones where there is none: (images * adapters, h, w)."""
        found = {
            (i, name): torch.tensor(mask.load(), dtype=torch.float32)
            for i, mix in enumerate(setting.mixes)
            for name in mix.names
            if (mask := mix[name].mask) is not None
        }
        if not found:
            return None
        height = max(mask.shape[0] for mask in found.values())
        width = max(mask.shape[1] for mask in found.values())
        rows = []
        for i in range(len(setting.mixes)):
            for name in self._names:
                own = found.get((i, name), torch.ones(1, 1))[None, None]
                rows.append(functional.interpolate(own, size=(height, width), mode="bilinear")[0, 0])
        return torch.stack(rows).clamp_(0, 1)

    def _fill(
        self,
        setting: Setting,
        step: Step,
        rows: torch.Tensor | None = None,
        latents: tuple[int, int] | None = None,
    ) -> None:
        """Write the state of a step into the scenes, where it is another."""
        for part, scene in self._scenes.items():
            if part in TEXT_ENCODERS and rows is not None:
                continue
            shares = torch.tensor(
                [
                    [
                        mix.share_at(name, part, step.index, step.total, step.timestep)
                        if name in mix
                        else 0.0
                        for name in self._names
                    ]
                    for mix in setting.mixes
                ]
            )
            same_rows = (rows is None) == (scene.rows is None) and (
                rows is None or scene.rows is None or torch.equal(rows, scene.rows)
            )
            if (
                not torch.equal(shares, scene.shares)
                or not same_rows
                or (latents and latents != scene.latents)
            ):
                scene.shares, scene.rows, scene.latents = shares, rows, latents or scene.latents
                scene.changed()

    def _watch(
        self,
        components: Mapping[str, nn.Module],
        look: Callable[[Step, int, tuple[int, int]], None],
    ) -> None:
        """Call ``look`` before each call of each denoiser that an active adapter changes."""
        parts = {layer.live.component for name in self._names for layer in self._layers[name]}
        for part in parts - set(TEXT_ENCODERS):
            clock = StepClock(scheduler_timesteps(self._pipe))

            def before(
                _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], clock: StepClock = clock
            ) -> None:
                sample = next((v for v in (*args, *kwargs.values()) if isinstance(v, torch.Tensor)), None)
                sample = kwargs.get("sample", kwargs.get("hidden_states", args[0] if args else sample))
                if not isinstance(sample, torch.Tensor):
                    return
                if sample.is_cuda and torch.cuda.is_current_stream_capturing():
                    return  # a graph keeps the gains of the step that it was captured at; nothing can be read now
                latents = (int(sample.shape[-2]), int(sample.shape[-1])) if sample.ndim >= 4 else (0, 0)
                look(clock.tick(timestep_of(args, kwargs)), int(sample.shape[0]), latents)

            self._side.before(components[part], before)

    def _watch_text(self, part: str, root: nn.Module, images: int) -> None:
        """Give each prompt of a text encoder's batch its own mix."""
        scene = self._scenes[part]

        def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            ids = kwargs.get("input_ids", args[0] if args else None)
            batch = len(ids) if isinstance(ids, torch.Tensor) else images
            if batch % images:
                msg = (
                    f"{images} mixes, but {part} was called with {batch} prompts: pass a list of {images} prompts, "
                    "one for each mix"
                )
                raise MixError(msg)
            scene.rows = torch.arange(batch) % images
            scene.changed()

        self._side.before(root, before)
