"""The gains of a mix on the layers of its adapters, at a step and for one pass of the denoiser."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lora_mixer.engines.denoiser.scaled import Scales
from lora_mixer.engines.denoiser.steps import START
from lora_mixer.errors import MixError
from lora_mixer.mixes import TEXT_ENCODERS, block_layouts
from lora_mixer.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

    from lora_mixer.binding.layers import BoundLayers
    from lora_mixer.engines.denoiser.steps import Step
    from lora_mixer.mixes import BlockLayout, Mix


class Comparisons:
    """What methods have worked out from adapters' tensors, kept as long as these adapters are."""

    def __init__(self) -> None:
        """Start with none."""
        self._kept: dict[tuple[str, tuple[str, ...]], Any] = {}

    def of(self, mix: Mix, layers: Mapping[str, BoundLayers]) -> Any:
        """Return what a mix's method goes by; None where it compares nothing."""
        names = mix.method.compared(mix.names)
        if not names:
            return None
        key = mix.method.name, names
        if key not in self._kept:
            self._kept[key] = mix.method.compare(
                [
                    [layer for layer in layers[name] if layer.live.component not in TEXT_ENCODERS]
                    for name in names
                ]
            )
        return self._kept[key]

    def forget(self, name: str) -> None:
        """Forget what an adapter had a part in."""
        self._kept = {key: kept for key, kept in self._kept.items() if name not in key[1]}

    def clear(self) -> None:
        """Forget all."""
        self._kept.clear()


@dataclass
class MixGains:
    """
    One mix on live layers.

    Args:
        mix: The mix.
        layers: The layers of each of its adapters.
        layouts: The blocks of each component, where block weights ask for them.
        comparison: What the method has worked out from the adapters' tensors, where it compares any.
        scales: The scales of calls that are running.
    """

    mix: Mix
    layers: Mapping[str, BoundLayers]
    layouts: Mapping[str, BlockLayout]
    comparison: Any = None
    scales: Scales = field(default_factory=Scales)

    @property
    def passes(self) -> int:
        """How many forwards of the denoiser a call takes."""
        return self.mix.method.passes(self.mix.names)

    def constant(self, name: str) -> list[float]:
        """Return the gains of an adapter's layers without schedule and method."""
        layers = self.layers[name]
        if name not in self.mix:
            return [0.0] * len(layers)
        if self.mix[name].blocks is None:
            return layers.spread({part: self.mix.gain(name, part, "") for part in layers.components})
        return [
            self.mix.gain(name, x.live.component, x.live.path, self.layouts.get(x.live.component))
            for x in layers
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
        if name not in self.mix or self.mix.method.is_sum:
            return None
        denoisers = [layer for layer in self.layers[name] if layer.live.component not in TEXT_ENCODERS]
        shares = self.mix.method.layer_shares(
            name, self.mix.names, denoisers, self.comparison, step.index, step.total
        )
        if shares is None:
            return None
        left = iter(shares)
        return [1.0 if layer.live.component in TEXT_ENCODERS else next(left) for layer in self.layers[name]]

    def at(self, step: Step, turn: int | None = None) -> dict[str, list[float]]:
        """Return the gain of every layer of every adapter of the mix."""
        table = {}
        for name in self.mix.names:
            layers = self.layers[name]
            shares = layers.spread({part: self.share(name, part, step, turn) for part in layers.components})
            gains = [gain and gain * share for gain, share in zip(self.constant(name), shares, strict=True)]
            choice = self.choice(name, step)
            table[name] = (
                gains if choice is None else [a and a * b for a, b in zip(gains, choice, strict=True)]
            )
        return table


def gains_of(
    mixes: Sequence[Mix],
    layers: Mapping[str, BoundLayers],
    components: Mapping[str, nn.Module],
    comparisons: Comparisons,
    scales: Scales,
) -> list[MixGains]:
    """
    Put mixes on live layers.

    Args:
        mixes: The mixes.
        layers: The layers of all adapters.
        components: The pipeline's modules.
        comparisons: What methods have worked out before.
        scales: The scales of calls that are running.

    Raises:
        MixError: When block weights do not fit the modules, or a method the adapters.
    """
    layouts: Mapping[str, BlockLayout] = {}
    if any(mix[name].blocks is not None for mix in mixes for name in mix.names):
        paths = {part: [path for path, _ in root.named_modules()] for part, root in components.items()}
        layouts = block_layouts(paths)
        for mix in mixes:
            mix.check(layouts)
            _check_patterns(mix, paths)
    return [MixGains(mix, layers, layouts, comparisons.of(mix, layers), scales) for mix in mixes]


def _check_patterns(mix: Mix, paths: Mapping[str, Sequence[str]]) -> None:
    """Refuse block weights by patterns that no layer has: they would do nothing, without a word."""
    problems = [
        Problem(
            f"{name}.blocks",
            f"no layer of this pipeline matches {', '.join(lost[:5])}; patterns are matched against paths such as "
            '"unet.mid_block.attentions.0.proj_in", and * stands for anything.',
        )
        for name in mix.names
        if (blocks := mix[name].blocks) is not None
        and (lost := blocks.unmatched((part, path) for part, modules in paths.items() for path in modules))
    ]
    if problems:
        raise MixError(problems=tuple(problems))
