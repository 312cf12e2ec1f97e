"""The gains of a mix on the layers of its adapters, at a step and for one pass of the denoiser."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lora_mixer.engines.denoiser.scaled import Scales
from lora_mixer.engines.denoiser.steps import START
from lora_mixer.mixes import TEXT_ENCODERS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_mixer.binding import BoundLayer
    from lora_mixer.engines.denoiser.steps import Step
    from lora_mixer.engines.methods.k_lora import Contest
    from lora_mixer.mixes import BlockLayout, Mix


@dataclass
class MixGains:
    """
    One mix on live layers.

    Args:
        mix: The mix.
        layers: The layers of each of its adapters.
        layouts: The blocks of each component, where block weights ask for them.
        contest: What K-LoRA chooses by, where that is the method.
        scales: The scales of calls that are running.
    """

    mix: Mix
    layers: Mapping[str, Sequence[BoundLayer]]
    layouts: Mapping[str, BlockLayout]
    contest: Contest | None = None
    scales: Scales = field(default_factory=Scales)

    @property
    def passes(self) -> int:
        """How many forwards of the denoiser a call takes: one for each adapter in LoRA Composite."""
        return self.mix.method.passes(self.mix.names)

    def constant(self, name: str) -> list[float]:
        """Return the gains of an adapter's layers without schedule and method."""
        own = self.layers[name]
        if name not in self.mix:
            return [0.0] * len(own)
        if self.mix[name].blocks is None:
            weights = {part: self.mix.gain(name, part, "") for part in {x.live.component for x in own}}
            return [weights[layer.live.component] for layer in own]
        return [
            self.mix.gain(name, x.live.component, x.live.path, self.layouts.get(x.live.component))
            for x in own
        ]

    def share(self, name: str, component: str, step: Step, turn: int | None = None) -> float:
        """
        Return what all gains of an adapter in a component are multiplied by; text encoders have that of the start.

        Args:
            name: The adapter.
            component: The component.
            step: The step.
            turn: Which pass of the denoiser; None where there is no call yet.
        """
        if name not in self.mix:
            return 0.0
        one_alone = turn is not None and component not in TEXT_ENCODERS and self.passes > 1
        if one_alone and self.mix.names[(turn or 0) % self.passes] != name:
            return 0.0
        if component in TEXT_ENCODERS:
            step = START
        share = self.mix.share_at(name, component, step.index, step.total, step.timestep, step.level)
        return share * self.scales.of(component)

    def choice(self, name: str, step: Step) -> list[float] | None:
        """Return the method's factor for each layer of an adapter, or None where it has none."""
        rivals = self.mix.method.rivals(self.mix.names)
        if self.contest is None or rivals is None or name not in self.mix:
            return None
        content, _ = rivals
        scale = self.mix.method.advantage(min(step.index, step.total - 1), step.total)
        return [
            1.0
            if layer.live.component in TEXT_ENCODERS
            else self.contest.share(layer, content=name == content, scale=scale)
            for layer in self.layers[name]
        ]

    def at(self, step: Step, turn: int | None = None) -> dict[str, list[float]]:
        """Return the gain of every layer of every adapter of the mix."""
        table = {}
        for name in self.mix.names:
            own = self.layers[name]
            shares = {
                part: self.share(name, part, step, turn) for part in {layer.live.component for layer in own}
            }
            gains = [
                gain and gain * shares[layer.live.component]
                for gain, layer in zip(self.constant(name), own, strict=True)
            ]
            choice = self.choice(name, step)
            table[name] = (
                gains if choice is None else [a and a * b for a, b in zip(gains, choice, strict=True)]
            )
        return table
