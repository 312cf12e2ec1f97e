"""The mix: which adapters take part, and with which weights."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from lora_mixer.components import DENOISERS, TEXT_ENCODERS
from lora_mixer.errors import MixError
from lora_mixer.mixes.adapter import AdapterMix
from lora_mixer.mixes.grammar import line
from lora_mixer.mixes.grammar.forms import is_full, is_name, read_parts
from lora_mixer.mixes.methods.method import Method
from lora_mixer.mixes.reading import Reading
from lora_mixer.parsing.data import dump_yaml
from lora_mixer.parsing.frozen import FrozenMap
from lora_mixer.parsing.problems import fail
from lora_mixer.problem import Problem
from lora_mixer.wording import did_you_mean, list_of, shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from lora_mixer.mixes.unet_blocks import BlockLayout
    from lora_mixer.parsing.data import Form


@dataclass(frozen=True, eq=False)
class Mix:
    """
    A frozen, validated, serialisable value that says how adapters are mixed.

    Two mixes are equal when they mean the same: the order of names and the way of writing do not count.

    Attributes:
        adapters: What is said about each adapter, by its name, in the order given.
        method: How they come together; the weighted sum, unless said otherwise.

    Example:
        >>> mix = Mix.of("watercolor:0.7, 3d:unet=0.8,te=0.2")
        >>> mix.names, mix["3d"].component_weight("text_encoder")
        (('watercolor', '3d'), 0.2)
        >>> mix == Mix.of({"3d": {"unet": 0.8, "te": 0.2}, "watercolor": 0.7})
        True
        >>> mix = Mix.from_json('{"ink": 0.8, "oil": {"weight": 0.2}}')
        >>> mix.check({}), Mix.from_dict(mix.to_dict()) == Mix.from_yaml(mix.to_yaml()) == mix, mix.to_json()
        (None, True, '{"ink": 0.8, "oil": 0.2}')
    """

    adapters: Mapping[str, AdapterMix] = field(default_factory=FrozenMap)
    method: Method = field(default_factory=Method)

    def __post_init__(self) -> None:
        """
        Check and freeze the values.

        Raises:
            MixError: A name is not text, or a value is not an ``AdapterMix``.
        """
        reading = Reading()
        for name, adapter in self.adapters.items():
            is_name(name, reading)
            if not isinstance(adapter, AdapterMix):
                reading.problem(
                    str(name), f"expected an AdapterMix (Mix.of reads all forms), got {shown(adapter)}."
                )
        if isinstance(self.method, Method):
            for problem in self.method.misfits(tuple(self.adapters)):
                reading.problem("method", problem)
        else:
            reading.problem(
                "method", f"expected a Method (Mix.of reads all forms), got {shown(self.method)}."
            )
        reading.finish()
        object.__setattr__(self, "adapters", FrozenMap(self.adapters))

    @classmethod
    def of(
        cls,
        obj: object,
        presets: Mapping[str, Sequence[float]] | None = None,
        masks: Mapping[str, object] | None = None,
        folder: str | Path | None = None,
    ) -> Mix:
        """
        Read a mix in any of its forms.

        Args:
            obj: A mix; a dict of weights by name; a list of names or of (name, weights) pairs; JSON, YAML or one line
                of text (the grammar is in ``docs/mixes.md``).
            presets: Block weight lists that may be named, beside the built-in ones.
            masks: Pictures of masks by digest. Where given, masks are these and no others, and no path is opened:
                what text from strangers needs.
            folder: What paths of masks are relative to; None is the current folder.

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
        return cls._read(obj, Reading(presets, masks, folder))

    @classmethod
    def _read(cls, obj: object, reading: Reading) -> Mix:
        adapters, method = read_parts(obj, reading)
        reading.finish()
        return cls(adapters, method)

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
            fail(
                "mix",
                [
                    Problem(
                        "",
                        f"expected one weight for each of the {len(names)} names, got {len(each)} weights.",
                    )
                ],
            )
        return cls.of(
            [(name, 1.0 if weight is None else weight) for name, weight in zip(names, each, strict=True)]
        )

    @property
    def names(self) -> tuple[str, ...]:
        """The adapters' names in the order given."""
        return tuple(self.adapters)

    def __getitem__(self, name: str) -> AdapterMix:
        """
        Return what is said about one adapter.

        Raises:
            MixError: The mix has no adapter of this name.
        """
        adapter = self.adapters.get(name)
        if adapter is None:
            hint = did_you_mean(name, self.adapters)
            message = f'This mix has no adapter "{name}"; it has {list_of(self.adapters)}.{hint}'
            raise MixError(message, adapter=name)
        return adapter

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

    def without(self, *names: str) -> Mix:
        """
        Leave adapters out.

        Args:
            *names: The adapters; names that are not in the mix do not matter.

        Returns:
            A mix of the others, by the same method, or by the sum where the method needs those that went.

        Example:
            >>> Mix.of("a:0.5, b:0.2").without("a").to_text()
            'b:0.2'
        """
        kept = {name: adapter for name, adapter in self.adapters.items() if name not in names}
        return Mix(kept, Method() if self.method.misfits(tuple(kept)) else self.method)

    @property
    def is_constant(self) -> bool:
        """Whether every gain is the same at all steps and at all places: no schedule, no mask, the plain sum."""
        return self.method.is_sum and all(adapter.is_constant for adapter in self.adapters.values())

    @property
    def named_components(self) -> tuple[str, ...]:
        """The components that any adapter names, for a check against the pipeline."""
        return tuple(dict.fromkeys(name for each in self.adapters.values() for name in each.named_components))

    def check(self, layouts: Mapping[str, BlockLayout]) -> None:
        """
        Check block weights against live components, before any gain is asked for.

        Args:
            layouts: The blocks of each component; those of denoisers count (a ControlNet has a half of them), and of all others
                where none is named as one.

        Raises:
            MixError: Lists have other lengths than the blocks, blocks do not exist, or there is no denoiser of that kind.
        """
        reading = Reading()
        named = {name: layout for name, layout in layouts.items() if name in DENOISERS}
        denoisers = [layout for name, layout in (named or layouts).items() if name not in TEXT_ENCODERS]
        unets = [x for x in denoisers if x.is_unet or x.double or x.single] or denoisers[:1]
        for name, adapter in self.adapters.items():
            for layout in unets if adapter.blocks is not None else ():
                for problem in adapter.blocks.misfits(layout) if adapter.blocks is not None else ():
                    reading.problem(f"{name}.blocks", problem)
        reading.finish()

    def gain(self, name: str, component: str, module: str, layout: BlockLayout | None = None) -> float:
        """
        Return the constant gain of one adapter on one layer: the component's weight times the block's.

        Args:
            name: The adapter.
            component: The attribute of the pipeline, as ``unet``.
            module: The layer's dotted path in the live component.
            layout: The blocks of the live component, against which block weights are checked.

        Returns:
            The gain, without schedule and method.

        Raises:
            MixError: The mix has no such adapter, or its block weights do not fit the layout.

        Example:
            >>> Mix.of("a:0.8,te=0.3").gain("a", "unet", "mid_block.attentions.0.proj_in")
            0.8
        """
        return self[name].gain(component, module, layout)

    def gain_at(
        self,
        name: str,
        component: str,
        module: str,
        step: int,
        steps: int,
        layout: BlockLayout | None = None,
        timestep: float | None = None,
    ) -> float:
        """
        Return the gain of one adapter on one layer at one step of the denoiser.

        Args:
            name: The adapter.
            component: The attribute of the pipeline, as ``unet``; text encoders have the same gain at all steps.
            module: The layer's dotted path in the live component.
            step: The step, from 0; one past the end counts as the last.
            steps: How many steps there are.
            layout: The blocks of the live component, against which block weights are checked.
            timestep: The scheduler's timestep, which ``SliderStart`` is exact with.

        Returns:
            The gain.

        Raises:
            MixError: As ``gain``, or the step cannot be.

        Example:
            >>> mix = Mix.of("a:0.5,schedule=linear(0, 1), b:1 | switch(1)")
            >>> [[mix.gain_at(name, "unet", "conv_in", step, 3) for name in mix] for step in range(3)]
            [[0.0, 0.0], [0.0, 1.0], [0.5, 0.0]]
        """
        return self[name].gain(component, module, layout) * self.share_at(
            name, component, step, steps, timestep
        )

    def share_at(
        self,
        name: str,
        component: str,
        step: int,
        steps: int,
        timestep: float | None = None,
        level: tuple[int, int] | None = None,
    ) -> float:
        """
        Return what ``gain_at`` multiplies ``gain`` by: the same for all layers of a component.

        A text encoder runs once, before the first step, so it has one share at all steps: 1 where it has a weight of
        its own, the value at step 0 where it has a schedule of its own, and else the value of the adapter's schedule
        and the method's share at step 0. So an adapter that starts later leaves the text alone, unless ``te`` says
        otherwise.

        Args:
            name: The adapter.
            component: The attribute of the pipeline, as ``unet``.
            step: The step, from 0; one past the end counts as the last.
            steps: How many steps there are.
            timestep: The scheduler's timestep, which ``SliderStart`` is exact with.
            level: As ``Schedule.at`` has it.

        Returns:
            The schedule's value times the method's share.

        Example:
            >>> mix = Mix.of("a:0.5,schedule=window(0.5, 1)")
            >>> [mix.share_at("a", "unet", step, 4) for step in range(4)]
            [0.0, 0.0, 1.0, 1.0]
        """
        adapter, turn = self[name], min(step, steps - 1)
        if component in TEXT_ENCODERS:
            turn = 0
            if adapter.has_own(component):
                return adapter.share_at(component, 0, steps)
        return adapter.share_at(component, step, steps, timestep, level) * self.method.share(
            name, self.names, turn
        )

    @cached_property
    def fingerprint(self) -> str:
        """32 hexadecimal digits, equal for equal mixes in every process and version of Python."""
        switched = not self.method.is_sum
        adapters = {name: adapter.meaning(switched=switched) for name, adapter in self.adapters.items()}
        meaning = {"adapters": adapters, "method": self.method.meaning(self.names)}
        text = json.dumps(meaning, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def to_dict(self) -> dict[str, object]:
        """
        Return the mix as numbers, texts, lists and dicts.

        Returns:
            Weights by name; under "adapters", and the method beside them, where there is one but the sum.
        """
        adapters: dict[str, object] = {name: adapter.to_spec() for name, adapter in self.adapters.items()}
        if not self.method.is_sum:
            return {"adapters": adapters, "method": self.method.to_spec()}
        return {"adapters": adapters} if is_full(adapters) else adapters

    def to_text(self) -> str:
        """
        Return the mix as one line.

        Returns:
            The text, as ``a:0.7, b:0.8,te=0.2``.
        """
        method = "" if self.method.is_sum else self.method.to_text()
        return line.write_line({name: adapter.to_spec() for name, adapter in self.adapters.items()}, method)

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
        Return the mix as one line of JSON.

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
        return cls._of_text("json", text)

    def to_yaml(self) -> str:
        """
        Return the mix as YAML.

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
        return cls._of_text("yaml", text)

    @classmethod
    def _of_text(cls, form: Form, text: str) -> Mix:
        reading = Reading()
        values = reading.load(form, text)
        reading.finish()
        return cls._read(values, reading)
