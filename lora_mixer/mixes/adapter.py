"""What a mix says about one adapter: weights by component, depth, time and place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lora_mixer.components import TE, TEXT_ENCODERS
from lora_mixer.mixes.blocks import Blocks
from lora_mixer.mixes.mask import Mask
from lora_mixer.mixes.reading import Reading
from lora_mixer.mixes.schedule import Constant, Schedule
from lora_mixer.parsing.frozen import FrozenMap
from lora_mixer.wording import shown

if TYPE_CHECKING:
    from lora_mixer.mixes.unet_blocks import BlockLayout


@dataclass(frozen=True)
class AdapterMix:
    """
    The weights of one adapter.

    A layer's gain is the weight of its component, times the weight of its block, times the value of the schedule.

    Attributes:
        weight: The weight of every component that has none of its own.
        components: Weights by component (``unet``, ``text_encoder_2``, ..., or ``te`` for all text encoders).
        blocks: Weights by depth, or None.
        schedule: The curve over the steps, or None; a constant one is multiplied into the weights at once.
        schedules: Curves of components that have their own; their weight is 1.
        mask: Where in the picture the adapter works, or None for everywhere.

    Example:
        >>> adapter = AdapterMix(0.8, {"te": 0.3})
        >>> adapter.component_weight("unet"), adapter.component_weight("text_encoder_2")
        (0.8, 0.3)
        >>> half = AdapterMix(0.8, {"text_encoder": 0.3})
        >>> half.has_own("text_encoder"), half.gain("unet", "conv_in"), half.share_at("unet", 0, 20), half.component_schedule("unet")
        (True, 0.8, 1.0, None)
        >>> half.to_spec(), sorted(half.meaning())[:2]
        ({'weight': 0.8, 'components': {'text_encoder': 0.3}}, ['blocks', 'components'])
    """

    weight: float = 1.0
    components: Mapping[str, float] = field(default_factory=FrozenMap)
    blocks: Blocks | None = None
    schedule: Schedule | None = None
    schedules: Mapping[str, Schedule] = field(default_factory=FrozenMap)
    mask: Mask | None = None

    def __post_init__(self) -> None:
        """
        Check and freeze the values, and fold constant schedules into the weights.

        Raises:
            MixError: A weight is not a finite number, a component is not a name, or a part is of the wrong kind.
        """
        reading = Reading()
        weight = reading.number("weight", self.weight)
        components = _checked_components(self.components, reading)
        schedules = dict(self.schedules)
        _check_kinds(self, schedules, reading)
        reading.finish("adapter's mix")
        schedule = self.schedule and self.schedule.simplest()
        if isinstance(schedule, Constant):
            # A text encoder with a weight of its own has no part in the adapter's schedule.
            kept = {*schedules, TE, *TEXT_ENCODERS}
            for name in (name for name in components if name not in kept):
                components[name] = reading.number(f"components.{name}", components[name] * schedule.value)
            weight = reading.number("weight", weight * schedule.value)
            reading.finish("adapter's mix")
            schedule = None
        for name, curve in schedules.items():
            simple = curve.simplest()
            components[name] = simple.value if isinstance(simple, Constant) else 1.0
        moving = {
            name: curve for name, curve in schedules.items() if not isinstance(curve.simplest(), Constant)
        }
        object.__setattr__(self, "weight", weight)
        object.__setattr__(self, "components", FrozenMap(components))
        object.__setattr__(self, "schedule", self.schedule if schedule else None)
        object.__setattr__(self, "schedules", FrozenMap(moving))

    @property
    def named_components(self) -> tuple[str, ...]:
        """The components that were named, for checks against a pipeline; ``te`` fits any and is left out."""
        return tuple(name for name in self.components if name != TE)

    @property
    def is_constant(self) -> bool:
        """Whether the gains are the same at all steps and all places."""
        return self.schedule is None and not self.schedules and self.mask is None

    def has_own(self, component: str) -> bool:
        """
        Tell whether a component has a weight or a schedule of its own, by its name or by ``te``.

        Args:
            component: The attribute of the pipeline, as ``unet``.

        Returns:
            Whether it has.
        """
        return self._key(component) is not None

    def component_weight(self, component: str) -> float:
        """
        Return the weight of a component before blocks and schedules.

        Args:
            component: The attribute of the pipeline, as ``unet``.

        Returns:
            Its own weight, that of ``te``, or the adapter's.
        """
        key = self._key(component) if self.components else None
        return self.weight if key is None else self.components[key]

    def component_schedule(self, component: str) -> Schedule | None:
        """
        Return the schedule of a component.

        Args:
            component: The attribute of the pipeline, as ``unet``.

        Returns:
            Its own schedule; else the adapter's, but none for a text encoder with a weight of its own.
        """
        key = self._key(component)
        if key is not None and key in self.schedules:
            return self.schedules[key]
        return None if key is not None and component in TEXT_ENCODERS else self.schedule

    def gain(self, component: str, module: str, layout: BlockLayout | None = None) -> float:
        """
        Return the constant gain of a layer.

        Args:
            component: The attribute of the pipeline, as ``unet``.
            module: The layer's dotted path in the live component.
            layout: The blocks of the live component, against which block weights are checked.

        Returns:
            The component's weight times the block's.
        """
        weight = self.component_weight(component)
        return weight if self.blocks is None else weight * self.blocks.weight(component, module, layout)

    def share_at(
        self,
        component: str,
        step: int,
        steps: int,
        timestep: float | None = None,
        level: tuple[int, int] | None = None,
    ) -> float:
        """
        Return the value of a component's schedule.

        Args:
            component: The attribute of the pipeline, as ``unet``.
            step: The step, from 0; text encoders run before the first one and have its value at all steps.
            steps: How many steps there are.
            timestep: The scheduler's timestep, where it is known.
            level: As ``Schedule.at`` has it.

        Returns:
            The factor at that step.
        """
        schedule = self.component_schedule(component)
        if schedule is None:
            return 1.0
        if component in TEXT_ENCODERS:
            return schedule.at(0, steps)
        return schedule.at(step, steps, timestep, level)

    def to_spec(self) -> object:
        """
        Return the shortest plain form: a number, or a dict of what was said.

        Returns:
            Numbers, texts, lists and dicts only, which ``Mix.of`` reads back.
        """
        spec: dict[str, object] = {"weight": self.weight}
        if self.components:
            curves = {name: schedule.to_text() for name, schedule in self.schedules.items()}
            spec["components"] = {name: curves.get(name, weight) for name, weight in self.components.items()}
        if self.blocks is not None:
            spec["blocks"] = self.blocks.to_spec()
        if self.schedule is not None:
            spec["schedule"] = self.schedule.to_text()
        if self.mask is not None:
            spec["mask"] = self.mask.to_spec()
        return self.weight if len(spec) == 1 else spec

    def meaning(self, *, switched: bool = False) -> dict[str, object]:
        """
        Return a plain form that is the same for every way to say the same.

        Args:
            switched: Whether the mix has a method by which text encoders with a weight of their own differ from others.

        Returns:
            Numbers, texts, lists and dicts only.
        """
        named = {name for name in self.components if name != TE}
        if TE in self.components:
            named.update(TEXT_ENCODERS)
        kept: dict[str, object] = {}
        for name in sorted(named):
            weight, schedule = self.component_weight(name), self.component_schedule(name)
            exempt = name in TEXT_ENCODERS and (switched or self.schedule is not None)
            if weight != self.weight or schedule != self.schedule or exempt:
                kept[name] = [weight, schedule and schedule.simplest().to_text()]
        return {
            "weight": self.weight,
            "components": kept,
            "blocks": self.blocks and self.blocks.meaning(),
            "schedule": self.schedule and self.schedule.simplest().to_text(),
            "mask": self.mask and self.mask.meaning(),
        }

    def _key(self, component: str) -> str | None:
        if component in self.components:
            return component
        return TE if component in TEXT_ENCODERS and TE in self.components else None


def _checked_components(given: object, reading: Reading) -> dict[str, float]:
    if not isinstance(given, Mapping):
        reading.problem("components", f"expected weights by component, got {shown(given)}.")
        return {}
    for name in given:
        if not isinstance(name, str) or not name.isidentifier():
            reading.problem(
                "components", f'expected the name of a component such as "unet", got {shown(name)}.'
            )
    return {name: reading.number(f"components.{name}", value) for name, value in given.items()}


def _check_kinds(adapter: AdapterMix, schedules: Mapping[str, object], reading: Reading) -> None:
    wanted: list[tuple[str, object, type]] = [
        ("blocks", adapter.blocks, Blocks),
        ("schedule", adapter.schedule, Schedule),
        ("mask", adapter.mask, Mask),
        *((f"schedules.{name}", schedule, Schedule) for name, schedule in schedules.items()),
    ]
    for where, value, kind in wanted:
        if value is not None and not isinstance(value, kind):
            reading.problem(where, f"expected {kind.__name__} (Mix.of reads all forms), got {shown(value)}.")
