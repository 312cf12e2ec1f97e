"""
How adapters come together: as a sum, or by one of three methods without training.

The values carry the parameters only. ``Switch`` is a schedule over the adapters, which ``Mix.gain_at`` applies; the
sums of ``KLora`` need the adapters' tensors and ``Composite`` several forwards, so both are left to the mixer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from lora_mixer.errors import MixError
from lora_mixer.mixes.grammar.tokens import read_call
from lora_mixer.mixes.reading import Reading
from lora_mixer.wording import did_you_mean, list_of, shown


@dataclass(frozen=True)
class Method:
    """
    The plain weighted sum, and the base of the other methods.

    A new method is a frozen dataclass whose fields are its parameters, and a row in ``METHODS``. What engines need to
    know of it, it says itself: ``share``, ``passes``, ``rivals`` and ``advantage``.
    """

    name: ClassVar[str] = "sum"
    example: ClassVar[str] = "sum"
    """The method as a page offers it."""

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

    def rivals(self, names: Sequence[str]) -> tuple[str, str] | None:
        """
        Return the two adapters that compete for each layer, content and style; None where none do.

        Args:
            names: All adapters of the mix, in their order.
        """
        del names
        return None

    def advantage(self, step: int, steps: int) -> float:
        """
        Return by how much the second of the rivals is favoured at a step.

        Args:
            step: The step, from 0.
            steps: How many there are.
        """
        del step, steps
        return 1.0

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


@dataclass(frozen=True)
class Switch(Method):
    """
    LoRA Switch (arXiv 2402.16843): one adapter at a time, number ``floor(step / tau) mod k``.

    Attributes:
        tau: How many steps each adapter has; the paper found 5 best.
        adapters: The adapters that take turns, in this order; all of the mix where none are named. Others are not
            switched.

    Example:
        >>> [Switch(2).share("a", ("a", "b"), step) for step in range(5)]
        [1.0, 1.0, 0.0, 0.0, 1.0]
    """

    name: ClassVar[str] = "switch"
    example: ClassVar[str] = "switch(tau=5)"
    tau: int = 5
    adapters: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the parameters."""
        reading = Reading()
        tau = reading.number("tau", self.tau, low=1)
        if tau != int(tau):
            reading.problem("tau", f"expected a whole number of steps, got {self.tau}.")
        given: object = self.adapters
        adapters = given if isinstance(given, (list, tuple)) else (given,)
        if not all(isinstance(name, str) for name in adapters) or len(set(adapters)) < len(adapters):
            reading.problem("adapters", f"expected different names, got {shown(self.adapters)}.")
        reading.finish("method")
        object.__setattr__(self, "tau", int(tau))
        object.__setattr__(self, "adapters", tuple(adapters))

    def misfits(self, names: Sequence[str]) -> list[str]:
        """Tell adapters that are not in the mix."""
        return _unknown(self.adapters, names)

    def share(self, name: str, names: Sequence[str], step: int) -> float:
        """Return 1 to the adapter whose turn it is."""
        turns = self.adapters or tuple(names)
        return float(name not in turns or turns[step // self.tau % len(turns)] == name)

    def to_spec(self) -> dict[str, object]:
        """Return the parameters."""
        spec: dict[str, object] = {"name": self.name, "tau": self.tau}
        return {**spec, "adapters": list(self.adapters)} if self.adapters else spec

    def to_text(self) -> str:
        """Write ``switch(tau=5, adapters=["a", "b"])``."""
        return _call_text(self.to_spec())

    def meaning(self, names: Sequence[str]) -> object:
        """Return the order of the turns, too."""
        return {**self.to_spec(), "adapters": list(self.adapters or names)}


@dataclass(frozen=True)
class Composite(Method):
    """LoRA Composite (arXiv 2402.16843): one forward for each adapter, and the mean of the guided results."""

    name: ClassVar[str] = "composite"
    example: ClassVar[str] = "composite"

    def passes(self, names: Sequence[str]) -> int:
        """Return one forward for each adapter."""
        return max(1, len(names))


@dataclass(frozen=True)
class KLora(Method):
    """
    K-LoRA (arXiv 2502.18461): in each layer the content's or the style's adapter, with more style in later steps.

    Attributes:
        content: The adapter of the subject; the first of the mix where none is named.
        style: The adapter of the style; the second of the mix where none is named.
        alpha: The slope of the style's advantage over the run.
        beta: Its start; when None, as the authors have it: 0.5, or 0.85 alpha with ``modulo``.
        modulo: The paper's variant s*, in which the advantage starts anew when it reaches alpha.

    Example:
        >>> [KLora().advantage(step, 4) for step in range(4)]
        [0.5, 0.875, 1.25, 1.625]
        >>> round(KLora(modulo=True).advantage(0, 4), 3), round(KLora(modulo=True).advantage(1, 4), 3)
        (1.275, 0.15)
    """

    name: ClassVar[str] = "k_lora"
    example: ClassVar[str] = "k_lora()"
    content: str | None = None
    style: str | None = None
    alpha: float = 1.5
    beta: float | None = None
    modulo: bool = False

    def __post_init__(self) -> None:
        """Check the parameters."""
        reading = Reading()
        object.__setattr__(self, "alpha", reading.number("alpha", self.alpha, low=0))
        if self.beta is None:
            object.__setattr__(self, "beta", 0.85 * self.alpha if self.modulo is True else 0.5)
        object.__setattr__(self, "beta", reading.number("beta", self.beta, low=0))
        for key in ("content", "style"):
            if not isinstance(given := getattr(self, key), (str, type(None))):
                reading.problem(key, f"expected the name of an adapter, got {shown(given)}.")
        if not isinstance(self.modulo, bool):
            reading.problem("modulo", f"expected true or false, got {shown(self.modulo)}.")
        if (self.content is None) != (self.style is None) or (
            self.content == self.style and self.content is not None
        ):
            reading.problem(
                "", f"expected both content and style, got {shown(self.content)} and {shown(self.style)}."
            )
        reading.finish("method")

    def roles(self, names: Sequence[str]) -> tuple[str, str]:
        """
        Tell who has which part.

        Args:
            names: The adapters of the mix, in their order.

        Returns:
            The adapter of the content and that of the style.
        """
        return self.content or names[0], self.style or names[1]

    def rivals(self, names: Sequence[str]) -> tuple[str, str]:
        """Return the content and the style."""
        return self.roles(names)

    def advantage(self, step: int, steps: int) -> float:
        """Return alpha * step / steps + beta; with ``modulo``, what is left of it over alpha."""
        scale = self.alpha * step / steps + (self.beta or 0.0)
        return scale % self.alpha if self.modulo and self.alpha else scale

    def misfits(self, names: Sequence[str]) -> list[str]:
        """Tell adapters that are not in the mix, or too many of them."""
        if len(names) != 2:
            return [f"k_lora is for two adapters, content and style; got {len(names)} ({list_of(names)})."]
        return _unknown([name for name in (self.content, self.style) if name is not None], names)

    def to_spec(self) -> dict[str, object]:
        """Return the parameters."""
        spec: dict[str, object] = {"name": self.name}
        if self.content is not None:
            spec.update(content=self.content, style=self.style)
        return {**spec, "alpha": self.alpha, "beta": self.beta, "modulo": self.modulo}

    def to_text(self) -> str:
        """Write ``k_lora(content="a", ...)``."""
        return _call_text(self.to_spec())

    def meaning(self, names: Sequence[str]) -> object:
        """Return the roles, too."""
        content, style = self.roles(names)
        return {**self.to_spec(), "content": content, "style": style}


METHODS: Mapping[str, type[Method]] = {cls.name: cls for cls in (Method, Switch, Composite, KLora)}
"""Every method of a mix by its name; a new one is a row here."""

_KEYS: Mapping[str, tuple[str, ...]] = {
    name: tuple(field.name for field in fields(cls)) for name, cls in METHODS.items()
}


def read_method(spec: object, where: str, reading: Reading) -> Method:
    """
    Read a method.

    Args:
        spec: A method, None for the sum, a text such as ``switch(tau=5)``, or a dict with "name".
        where: The path of the entry, for messages.
        reading: Where problems are noted.

    Returns:
        The method; the sum where there was a problem.

    Example:
        >>> read_method("switch(3)", "method", Reading())
        Switch(tau=3, adapters=())
    """
    if spec is None:
        return Method()
    if isinstance(spec, Method):
        return spec
    name, given = _taken_apart(spec, where, reading)
    if not isinstance(name, str) or name not in METHODS:
        hint = did_you_mean(name, METHODS) if isinstance(name, str) else ""
        reading.problem(where, f"expected one of {list_of(METHODS)}, got {shown(name)}.{hint}")
        return Method()
    unknown = [key for key in given if key not in _KEYS[name]]
    for key in unknown:
        reading.unknown_key(where, key, _KEYS[name])
    if unknown:
        return Method()
    try:
        return METHODS[name](**given)
    except MixError as error:
        reading.take(where, error)
        return Method()


def _taken_apart(spec: object, where: str, reading: Reading) -> tuple[object, dict[str, Any]]:
    if isinstance(spec, Mapping):
        return spec.get("name"), {str(key): value for key, value in spec.items() if key != "name"}
    call = read_call(spec, where, reading) if isinstance(spec, str) else None
    if call is None:
        return spec, {}
    keys = _KEYS.get(call.name, ())
    if len(call.positional) > len(keys):
        reading.problem(
            where, f"expected at most {len(keys)} values for {call.name}, got {len(call.positional)}."
        )
    given = {**dict(zip(keys, call.positional, strict=False)), **call.named}
    words = {"true": True, "false": False}
    return call.name, {
        key: words.get(value, value) if isinstance(value, str) else value for key, value in given.items()
    }


def _unknown(given: Sequence[str], names: Sequence[str]) -> list[str]:
    return [
        f'method: "{name}" is not in the mix, which has {list_of(names)}.{did_you_mean(name, names)}'
        for name in given
        if name not in names
    ]


def _call_text(spec: Mapping[str, object]) -> str:
    import json

    given = ", ".join(
        f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in spec.items() if key != "name"
    )
    return f"{spec['name']}({given})"
