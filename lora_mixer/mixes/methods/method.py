"""
What a method of a mix is: how its adapters come together.

A method is a value with its parameters that says itself what engines need to know: a factor for each adapter at each step
(``share``), several forwards of the denoiser (``passes``), a factor for each layer (``layer_shares``), which may go by what
is worked out once from the adapters' tensors (``compared``, ``compare``).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from lora_mixer.wording import did_you_mean, list_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class ComparedLayer(Protocol):
    """What a method may ask of a layer that an adapter changes: where it is, and the adapter's tensors."""

    @property
    def live(self) -> Any:
        """The module: ``component``, ``path``, ``shape`` (out, in, *kernel), ``weight``."""

    @property
    def weights(self) -> Any:
        """The adapter's part: ``rank``, ``factors(shape)``, ``delta(base, gain)``, ``algorithms``."""

    @property
    def siblings(self) -> Any:
        """The layers that it is computed with, or None."""


@dataclass(frozen=True)
class Method:
    """
    The plain weighted sum, and the base of the other methods.

    A new method is a file with a frozen dataclass, whose fields are its parameters, and a row in ``METHODS``.

    Example:
        >>> from lora_mixer import Mix
        >>> method, names = Mix.of("ink:1, oil:1 | switch(2)").method, ("ink", "oil")
        >>> [method.share("ink", names, step) for step in range(5)], method.to_text()
        ([1.0, 1.0, 0.0, 0.0, 1.0], 'switch(tau=2)')
        >>> method.misfits(names), method.passes(names), method.compared(names), method.compare([])
        ([], 1, (), None)
        >>> method.layer_shares("ink", names, [], None, 0, 5), method.to_spec()
        (None, {'name': 'switch', 'tau': 2})
        >>> sorted(method.meaning(names))[:1]
        ['adapters']
    """

    name: ClassVar[str] = "sum"
    example: ClassVar[str] = "sum"
    """The method as a page offers it."""
    goes_by_steps: ClassVar[bool] = False
    """Whether shares differ from step to step, so that components without steps cannot have it."""

    @property
    def is_sum(self) -> bool:
        """Whether this is the plain weighted sum."""
        return type(self) is Method

    def misfits(self, names: Sequence[str]) -> list[str]:
        """
        Tell what does not fit the adapters of a mix.

        Args:
            names: The adapters, in their order.

        Returns:
            One sentence for each problem.
        """
        del names
        return []

    def share(self, name: str, names: Sequence[str], step: int) -> float:
        """
        Return the factor of one adapter at one step.

        Args:
            name: The adapter.
            names: All adapters of the mix, in their order.
            step: The step, from 0.

        Returns:
            A factor for the adapter's weight.
        """
        del name, names, step
        return 1.0

    def passes(self, names: Sequence[str]) -> int:
        """
        Return how many forwards of the denoiser one call takes, each with one adapter; their mean is the result.

        Args:
            names: All adapters of the mix, in their order.
        """
        del names
        return 1

    def compared(self, names: Sequence[str]) -> tuple[str, ...]:
        """
        Return the adapters whose tensors decide about layers; none where they do not matter.

        Args:
            names: All adapters of the mix, in their order.
        """
        del names
        return ()

    def compare(self, layers: Sequence[Sequence[ComparedLayer]]) -> Any:
        """
        Work out from tensors what :meth:`layer_shares` goes by; it is kept as long as these adapters are.

        Args:
            layers: The layers in denoisers of each of the adapters in :meth:`compared`.

        Returns:
            What :meth:`layer_shares` needs, worked out once for a layout of adapters.

        Raises:
            MixError: When the method cannot work on them.
        """
        del layers

    def layer_shares(
        self,
        name: str,
        names: Sequence[str],
        layers: Sequence[ComparedLayer],
        comparison: Any,
        step: int,
        steps: int,
    ) -> Sequence[float] | None:
        """
        Return a factor for each layer of an adapter in denoisers, or None where they all have 1.

        Args:
            name: The adapter.
            names: All adapters of the mix, in their order.
            layers: Its layers in denoisers.
            comparison: What :meth:`compare` has returned; None where nothing is compared.
            step: The step, from 0.
            steps: How many there are.
        """
        del name, names, layers, comparison, step, steps
        return None

    def to_spec(self) -> dict[str, object]:
        """
        Return the plain form.

        Returns:
            The name and the parameters.
        """
        return {"name": self.name}

    def to_text(self) -> str:
        """
        Write the method as one line.

        Returns:
            The text, as ``switch(tau=5)``.
        """
        return self.name

    def meaning(self, names: Sequence[str]) -> object:
        """
        Return a plain form that is the same for every way to say the same.

        Args:
            names: The adapters of the mix, in their order.

        Returns:
            Numbers, texts, lists and dicts only.
        """
        del names
        return self.to_spec()


def not_in_mix(given: Sequence[str], names: Sequence[str]) -> list[str]:
    """Return a sentence for each adapter that a method names and a mix does not have."""
    return [
        f'method: "{name}" is not in the mix, which has {list_of(names)}.{did_you_mean(name, names)}'
        for name in given
        if name not in names
    ]


def call_text(spec: Mapping[str, object]) -> str:
    """Return a method's plain form as one line."""
    given = ", ".join(
        f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in spec.items() if key != "name"
    )
    return f"{spec['name']}({given})"
