"""
What a merging method is: a row with its function, what it works on and its settings; and a method with chosen settings.

A new method is one file with its functions and its row, and a line in :mod:`lora_mixer.merging.methods`. Names,
checks, the command line's help and what headers say come from the row.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from lora_mixer.errors import MixError
from lora_mixer.parsing.values import as_float
from lora_mixer.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

Value = float | int | str


@dataclass(frozen=True)
class Setting:
    """
    A number or a word that a method takes.

    Attributes:
        name: The parameter's name in the method's function.
        default: Its value where none is given; its type is the type that is taken.
        summary: What it is, in half a line.
        low: The least number.
        high: The largest number.
        above_low: Whether ``low`` itself is too little.
        choices: The words that there are; empty for numbers.
    """

    name: str
    default: Value
    summary: str
    low: float = -math.inf
    high: float = math.inf
    above_low: bool = False
    choices: tuple[str, ...] = ()

    def read(self, value: object) -> Value:
        """
        Return a value, from text too, as what the setting takes.

        Args:
            value: A number, a word, or the text of one.

        Raises:
            MixError: When it is something else; its text says what is expected.

        Example:
            >>> Setting("density", 0.5, "share", 0, 1).read("0.25")
            0.25
        """
        if self.choices:
            if value not in self.choices:
                raise MixError(
                    f"{self.name} must be {' or '.join(self.choices)}, got {value!r}", argument=self.name
                )
            return str(value)
        number = as_float(value)
        whole = isinstance(self.default, int)
        if number is None or (whole and number != int(number)):
            raise MixError(
                f"{self.name} must be a {'whole ' if whole else ''}number, got {value!r}", argument=self.name
            )
        if not self.low <= number <= self.high or (self.above_low and number == self.low):
            raise MixError(f"{self.name} must be {self.range}, got {number:g}", argument=self.name)
        return int(number) if whole else number

    @property
    def range(self) -> str:
        """The numbers that are taken, as text."""
        least = f"{'above' if self.above_low else 'at least'} {self.low:g}" if self.low > -math.inf else ""
        most = f"at most {self.high:g}" if self.high < math.inf else ""
        return " and ".join(part for part in (least, most) if part) or "any number"


def _no_problem(settings: Mapping[str, Any]) -> str | None:
    del settings
    return None


@dataclass(frozen=True)
class MethodSpec:
    """
    One merging method: a row of :data:`METHODS`.

    Attributes:
        name: Its name.
        summary: What it does, in half a line.
        works_on: ``pairs``, (up, down) of each adapter, which gives one pair of at most the sum of the ranks; or
            ``changes``, full matrices (out, in * kernel), whose result has to be cut to a rank.
        merge: The function: parts, weights, and the settings by name; with ``draws``, one seeded generator for each
            adapter as ``generators``.
        merge_vectors: The same for changes of norms and biases (n,), which have no input directions.
        settings: What it takes.
        draws: Whether it draws at random; ``seed`` is then one of the settings.
        ordered: Whether the order of the adapters counts.
        is_sum: Whether it is the weighted sum itself, of pairs and full matrices alike.
        check: Says what is wrong with settings that do not go together, or None.

    Example:
        >>> from lora_mixer.merging import METHODS
        >>> METHODS["ties"].works_on, METHODS["ties"].check({"density": 0.5}) is None
        ('changes', True)
    """

    name: str
    summary: str
    works_on: Literal["pairs", "changes"]
    merge: Callable[..., Any]
    merge_vectors: Callable[..., torch.Tensor]
    settings: tuple[Setting, ...] = ()
    draws: bool = False
    ordered: bool = False
    is_sum: bool = False
    check: Callable[[Mapping[str, Any]], str | None] = _no_problem


DENSITY = Setting("density", 0.5, "share of the entries that stay", 0, 1, above_low=True)
SEED = Setting("seed", 0, "of the draws; each layer of each adapter draws for itself")
SCALE = Setting("scale", 1.0, "factor on the result (lambda of the papers), for means of weak weights")
MAJORITY = Setting(
    "majority",
    "total",
    "signs are elected by their total or by the number of adapters",
    choices=("total", "frequency"),
)
AVERAGE = Setting(
    "average",
    "count",
    "the mean is over the number of agreeing adapters or over their weights",
    choices=("count", "weights"),
)


def check_parts(parts: Sequence[Any], weights: Sequence[float], argument: str = "deltas") -> None:
    """
    Refuse changes, or pairs, and weights that cannot be merged.

    Args:
        parts: Changes of one shape, or pairs of (out, rank) and (rank, in) of one (out, in).
        weights: One for each.
        argument: What the caller's argument is called.

    Raises:
        MixError: When there is none, not one weight for each, or they are of several shapes.

    Example:
        >>> check_parts([torch.ones(2)], [0.5])
    """
    if not parts:
        raise MixError("there is nothing to merge: give one change or more", argument=argument)
    if len(parts) != len(weights):
        raise MixError(
            f"expected one weight for each of {len(parts)} changes, got {len(weights)}", argument="weights"
        )
    shapes = dict.fromkeys(
        tuple(part.shape) if isinstance(part, torch.Tensor) else (part[0].shape[0], *part[1].shape[1:])
        for part in parts
    )
    if len(shapes) > 1:
        raise MixError(
            f"changes of one layer have one shape, got {' and '.join(map(str, shapes))}", argument=argument
        )


def layer_generator(seed: int, place: str, adapter: str) -> torch.Generator:
    """
    Return the source of draws of one adapter in one layer, the same for a seed and these names everywhere.

    Example:
        >>> layer_generator(0, "unet.a", "ink").initial_seed() == layer_generator(0, "unet.a", "oil").initial_seed()
        False
    """
    digest = hashlib.sha256(f"{seed}\n{place}\n{adapter}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def read_settings(spec: MethodSpec, given: Mapping[str, object]) -> dict[str, Value]:
    """
    Return all settings of a method, defaults where none is given.

    Raises:
        MixError: When there is no such setting, or a value is impossible; all problems at once.
    """
    known = {setting.name: setting for setting in spec.settings}
    problems, values = [], {}
    for name in given:
        if name not in known:
            has = f"its settings are {', '.join(known)}" if known else "it has none"
            problems.append(f"{spec.name} has no setting {name!r}; {has}")
    for name, setting in known.items():
        try:
            values[name] = setting.read(given.get(name, setting.default))
        except ValueError as error:
            problems.append(str(error))
    if not problems and (why := spec.check(values)) is not None:
        problems.append(why)
    refuse(problems)
    return values


def refuse(problems: Sequence[str]) -> None:
    """Raise all problems as one ``MixError``, if there are any."""
    if problems:
        raise MixError("; ".join(problems), problems=tuple(Problem("method", text) for text in problems))
