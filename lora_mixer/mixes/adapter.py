"""What a mix says about one adapter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lora_mixer.mixes._frozen import FrozenMap
from lora_mixer.mixes._reading import Reading, did_you_mean, shown

TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
"""The components that ``te`` stands for."""

TE = "te"
"""The alias for every text encoder; a component's own name wins over it."""

RICH_KEYS = ("weight", "components")


@dataclass(frozen=True)
class AdapterMix:
    """
    The weights of one adapter.

    Attributes:
        weight: The weight of every component that has none of its own.
        components: Weights by component (``unet``, ``text_encoder_2``, ..., or ``te`` for all text encoders).

    Example:
        >>> adapter = AdapterMix(0.8, {"te": 0.3})
        >>> adapter.component_weight("unet"), adapter.component_weight("text_encoder_2")
        (0.8, 0.3)
    """

    weight: float = 1.0
    components: Mapping[str, float] = field(default_factory=FrozenMap)

    def __post_init__(self) -> None:
        """
        Check and freeze the values.

        Raises:
            MixError: A weight is not a finite number, or a component is no name.
        """
        reading = Reading()
        object.__setattr__(self, "weight", reading.number("weight", self.weight))
        object.__setattr__(self, "components", read_components(self.components, "components", reading))
        reading.finish("adapter's mix")

    @property
    def named_components(self) -> tuple[str, ...]:
        """The components that were named, for checks against a pipeline; ``te`` fits any and is left out."""
        return tuple(name for name in self.components if name != TE)

    def has_own(self, component: str) -> bool:
        """
        Tell whether a component has an entry of its own, by its name or by ``te``.

        Args:
            component: The attribute of the pipeline, as ``unet``.

        Returns:
            Whether it has.
        """
        return component in self.components or (component in TEXT_ENCODERS and TE in self.components)

    def component_weight(self, component: str) -> float:
        """
        Give the weight of a component before blocks and schedules.

        Args:
            component: The attribute of the pipeline, as ``unet``.

        Returns:
            Its own weight, that of ``te``, or the adapter's.
        """
        if component in self.components:
            return self.components[component]
        if component in TEXT_ENCODERS:
            return self.components.get(TE, self.weight)
        return self.weight

    def to_spec(self) -> object:
        """
        Give the shortest plain form: a number, or a dict of what was said.

        Returns:
            Numbers, texts, lists and dicts only, which ``Mix.of`` reads back.
        """
        if not self.components:
            return self.weight
        return {"weight": self.weight, "components": dict(self.components)}

    def meaning(self) -> dict[str, object]:
        """
        Give a plain form that is the same for every way to say the same.

        Returns:
            Numbers, texts, lists and dicts only.
        """
        named = {name for name in self.components if name != TE}
        if TE in self.components:
            named.update(TEXT_ENCODERS)
        weights = {name: self.component_weight(name) for name in sorted(named)}
        return {"weight": self.weight, "components": {k: v for k, v in weights.items() if v != self.weight}}


def read_adapter(spec: object, where: str, reading: Reading) -> AdapterMix | None:
    """
    Read the weights of one adapter in any form.

    A number is the weight of everything. A dict by component is read as diffusers reads it: what is not named has 1.0.
    A dict with ``weight`` or ``components`` says both, and components that are not named take the weight.

    Args:
        spec: A number, a dict, or an ``AdapterMix``.
        where: The path of the entry, for messages.
        reading: Where problems are noted.

    Returns:
        The value, or None where there was a problem.
    """
    before = len(reading.problems)
    if isinstance(spec, AdapterMix):
        return spec
    weight: float = 1.0
    components: Mapping[str, float] = {}
    if not isinstance(spec, Mapping):
        weight = reading.number(where, spec)
    elif any(key in RICH_KEYS for key in spec):
        for key in spec:
            if key not in RICH_KEYS:
                reading.unknown_key(where, key, RICH_KEYS, 'Weights by component go under "components".')
        weight = reading.number(f"{where}.weight", spec.get("weight", 1.0))
        components = read_components(spec.get("components", {}), f"{where}.components", reading)
    else:
        components = read_components(spec, where, reading)
    return AdapterMix(weight, components) if len(reading.problems) == before else None


def read_components(spec: object, where: str, reading: Reading) -> FrozenMap[str, float]:
    """
    Read weights by component; the names themselves are checked when the mix meets a pipeline.

    Args:
        spec: A dict.
        where: The path of the entry, for messages.
        reading: Where problems are noted.

    Returns:
        The weights without the entries that had problems.
    """
    if not isinstance(spec, Mapping):
        reading.problem(where, f'expected a dict such as {{"unet": 0.8, "te": 0.3}}, got {shown(spec)}.')
        return FrozenMap()
    weights: dict[str, float] = {}
    for name, value in spec.items():
        if not isinstance(name, str) or not name.isidentifier():
            reading.problem(where, f'expected the name of a component such as "unet", got {shown(name)}.')
        elif hint := did_you_mean(name, RICH_KEYS, cutoff=0.8):
            reading.problem(where, f"{name!r} is no component.{hint}")
        else:
            weights[name] = reading.number(f"{where}.{name}", value)
    return FrozenMap(weights)
