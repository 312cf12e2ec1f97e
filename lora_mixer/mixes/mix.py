"""The mix: which adapters take part, and with which weights."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, TypeGuard

from lora_mixer.errors import MixError
from lora_mixer.mixes import _text
from lora_mixer.mixes._forms import Entries, entries_of, is_full
from lora_mixer.mixes._frozen import FrozenMap
from lora_mixer.mixes._plain import dump_yaml, load_json, load_yaml
from lora_mixer.mixes._reading import Reading, did_you_mean, fail, list_of, shown
from lora_mixer.mixes.adapter import AdapterMix, read_adapter

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence


@dataclass(frozen=True, eq=False)
class Mix:
    """
    A frozen, validated, serialisable value that says how adapters are mixed.

    Two mixes are equal when they mean the same: the order of names and the way of writing do not count.

    Attributes:
        adapters: What is said about each adapter, by its name, in the order given.

    Example:
        >>> mix = Mix.of("watercolor:0.7, 3d:unet=0.8,te=0.2")
        >>> mix.names, mix["3d"].component_weight("text_encoder")
        (('watercolor', '3d'), 0.2)
        >>> mix == Mix.of({"3d": {"unet": 0.8, "te": 0.2}, "watercolor": 0.7})
        True
    """

    adapters: Mapping[str, AdapterMix] = field(default_factory=FrozenMap)

    def __post_init__(self) -> None:
        """
        Check and freeze the values.

        Raises:
            MixError: A name is no text, or a value is no ``AdapterMix``.
        """
        reading = Reading()
        for name, adapter in self.adapters.items():
            is_name(name, reading)
            if not isinstance(adapter, AdapterMix):
                reading.problem(
                    str(name), f"expected an AdapterMix (Mix.of reads all forms), got {shown(adapter)}."
                )
        reading.finish()
        object.__setattr__(self, "adapters", FrozenMap(self.adapters))

    @classmethod
    def of(cls, obj: object, presets: Mapping[str, Sequence[float]] | None = None) -> Mix:
        """
        Read a mix in any of its forms.

        Args:
            obj: A mix; a dict of weights by name; a list of names or of (name, weights) pairs; JSON, YAML or one line
                of text (the grammar is in ``docs/mixes.md``).
            presets: Block weight lists that may be named, beside the built-in ones.

        Returns:
            The mix; the same object where it was one.

        Raises:
            MixError: With everything that is wrong.

        Example:
            >>> Mix.of(["a", ("b", 0.4)]).to_dict()
            {'a': 1.0, 'b': 0.4}
        """
        if isinstance(obj, cls):
            return obj
        reading = Reading(presets)
        return cls._of_entries(entries_of(obj, reading), reading)

    @classmethod
    def _of_entries(cls, entries: Entries, reading: Reading) -> Mix:
        adapters: dict[str, AdapterMix] = {}
        for name, spec in entries.adapters:
            if not is_name(name, reading):
                continue
            if name in adapters:
                reading.problem(
                    name, "is named twice; give each adapter one entry with the weight that it shall have."
                )
                continue
            adapters[name] = read_adapter(spec, name, reading) or AdapterMix()
        reading.finish()
        return cls(adapters)

    @classmethod
    def from_weights(cls, names: str | Sequence[str], weights: object = None) -> Mix:
        """
        Read names and weights as diffusers' ``set_adapters`` takes them.

        Args:
            names: One name or several.
            weights: None (1.0 for all), a number or a dict by component for all, or a list with one of these for each.

        Returns:
            The mix.

        Raises:
            MixError: With everything that is wrong.

        Example:
            >>> Mix.from_weights(["a", "b"], [0.7, None]).to_text()
            'a:0.7, b:1'
        """
        names = [names] if isinstance(names, str) else list(names)
        each = list(weights) if isinstance(weights, (list, tuple)) else [weights] * len(names)
        if len(each) != len(names):
            fail("mix", [f"expected one weight for each of the {len(names)} names, got {len(each)} weights."])
        return cls.of(
            [(name, 1.0 if weight is None else weight) for name, weight in zip(names, each, strict=True)]
        )

    @property
    def names(self) -> tuple[str, ...]:
        """The adapters' names in the order given."""
        return tuple(self.adapters)

    def __getitem__(self, name: str) -> AdapterMix:
        """
        Give what is said about one adapter.

        Raises:
            MixError: The mix has no adapter of this name.
        """
        if name not in self.adapters:
            hint = did_you_mean(name, self.adapters)
            message = f'This mix has no adapter "{name}"; it has {list_of(self.adapters)}.{hint}'
            raise MixError(message)
        return self.adapters[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.adapters)

    def __len__(self) -> int:
        return len(self.adapters)

    def __contains__(self, name: object) -> bool:
        return name in self.adapters

    def __eq__(self, other: object) -> bool:
        return self.fingerprint == other.fingerprint if isinstance(other, Mix) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    @property
    def is_constant(self) -> bool:
        """Whether every gain is the same at all steps and at all places."""
        return True

    def gain(self, name: str, component: str, module: str, layout: object = None) -> float:
        """
        Give the constant gain of one adapter on one layer: the component's weight times the block's.

        Args:
            name: The adapter.
            component: The attribute of the pipeline, as ``unet``.
            module: The layer's dotted path in the live component.
            layout: The blocks of the live component, against which lists are checked.

        Returns:
            The gain.

        Example:
            >>> Mix.of("a:0.8,te=0.3").gain("a", "unet", "mid_block.attentions.0.proj_in")
            0.8
        """
        del module, layout
        return self[name].component_weight(component)

    def gain_at(
        self,
        name: str,
        component: str,
        module: str,
        step: int,
        steps: int,
        layout: object = None,
        timestep: float | None = None,
    ) -> float:
        """
        Give the gain of one adapter on one layer at one step of the denoiser.

        Args:
            name: The adapter.
            component: The attribute of the pipeline, as ``unet``.
            module: The layer's dotted path in the live component.
            step: The step, from 0.
            steps: How many steps there are.
            layout: The blocks of the live component, against which lists are checked.
            timestep: The scheduler's timestep, for schedules that are given in timesteps.

        Returns:
            The gain.
        """
        del step, steps, timestep
        return self.gain(name, component, module, layout)

    def text_gain(self, name: str, component: str, module: str, layout: object = None) -> float:
        """
        Give the gain on a layer of a text encoder, which runs once, before the first step.

        Args:
            name: The adapter.
            component: The attribute of the pipeline, as ``text_encoder``.
            module: The layer's dotted path in the live component.
            layout: The blocks of the live component.

        Returns:
            The gain.
        """
        return self.gain(name, component, module, layout)

    @cached_property
    def fingerprint(self) -> str:
        """32 hexadecimal digits, equal for equal mixes in every process and version of Python."""
        meaning = {name: adapter.meaning() for name, adapter in self.adapters.items()}
        text = json.dumps(meaning, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def to_dict(self) -> dict[str, object]:
        """
        Give the mix as numbers, texts, lists and dicts.

        Returns:
            Weights by name; under "adapters" where a name could be mistaken for a key.
        """
        adapters: dict[str, object] = {name: adapter.to_spec() for name, adapter in self.adapters.items()}
        return {"adapters": adapters} if is_full(adapters) else adapters

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> Mix:
        """
        Read what ``to_dict`` gave.

        Args:
            data: The dict.

        Returns:
            The mix.

        Raises:
            MixError: With everything that is wrong.
        """
        return cls.of(data)

    def to_json(self) -> str:
        """
        Give the mix as one line of JSON.

        Returns:
            The text.
        """
        return json.dumps(self.to_dict(), ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Mix:
        """
        Read JSON.

        Args:
            text: The text.

        Returns:
            The mix.

        Raises:
            MixError: With everything that is wrong.
        """
        reading = Reading()
        data = load_json(text, reading)
        reading.finish()
        return cls.of({} if data is None else data)

    def to_yaml(self) -> str:
        """
        Give the mix as YAML.

        Returns:
            The text, in the order of the names.
        """
        return dump_yaml(self.to_dict())

    @classmethod
    def from_yaml(cls, text: str) -> Mix:
        """
        Read YAML.

        Args:
            text: The text.

        Returns:
            The mix.

        Raises:
            MixError: With everything that is wrong.
        """
        reading = Reading()
        data = load_yaml(text, reading)
        reading.finish()
        return cls.of({} if data is None else data)

    def to_text(self) -> str:
        """
        Give the mix as one line.

        Returns:
            The text, as ``a:0.7, b:0.8,te=0.2``.
        """
        return _text.write({name: adapter.to_spec() for name, adapter in self.adapters.items()})


def is_name(name: object, reading: Reading) -> TypeGuard[str]:
    """
    Tell whether something can be an adapter's name, and note it where not.

    Args:
        name: What stands where a name is expected.
        reading: Where problems are noted.

    Returns:
        Whether it is a text that is not empty.
    """
    if isinstance(name, str) and name.strip() and not any("\ud800" <= char <= "\udfff" for char in name):
        return True
    reading.problem("", f"expected a name (text that is not empty), got {shown(name)}; numbers need quotes.")
    return False
