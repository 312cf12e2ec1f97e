"""What a kind of fresh adapters says of itself: one row of the table of kinds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lora_mixer.fresh.usual_targets import of_pairs
from lora_mixer.parsing.module_patterns import PatternTooHardError, compiled
from lora_mixer.parsing.values import is_number
from lora_mixer.problem import Problem
from lora_mixer.wording import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import torch

    from lora_mixer.fresh.config import AdapterConfig
    from lora_mixer.fresh.targets import Target


def _same(_: str, value: Any) -> Any:
    return value


@dataclass(frozen=True)
class FreshKind:
    """
    A kind of fresh adapters.

    Attributes:
        config: Its configuration's class.
        problems: Finds what is wrong with the values of a configuration.
        refuses: Says why a module cannot be a target of a configuration, or None.
        start: Returns the tensors of a target by the ends of their keys, such as ``.lora_A.weight``, as training begins.
        irrelevant: Fields of PEFT's configuration of this kind that change nothing of a fresh adapter.
        converted: Makes a field's value of what JSON has for it.
        lacks: Fields that PEFT's configuration of this kind does not have; targets are written by their paths where they are used.
        is_peft: Whether PEFT has the kind, so that a configuration is saved beside its tensors.
        takes_tokens: Whether targets are tables whose rows are trained.
        usual: Returns the fields that are usual for a model's type where a configuration names no targets.
    """

    config: type[AdapterConfig]
    problems: Callable[[Any], Iterator[Problem]]
    refuses: Callable[[Any, Target], str | None]
    start: Callable[[Any, Target], Mapping[str, torch.Tensor]]
    irrelevant: frozenset[str] = field(default_factory=frozenset)
    converted: Callable[[str, Any], Any] = _same
    lacks: tuple[str, ...] = ()
    is_peft: bool = True
    takes_tokens: bool = False
    usual: Callable[[str | None], dict[str, Any]] = of_pairs


def whole(config: Any, *names: str, least: int = 1) -> Iterator[Problem]:
    """Find fields that are not whole numbers of at least ``least``."""
    for name in names:
        value = getattr(config, name)
        if type(value) is not int or value < least:
            yield Problem(name, f"expected a whole number of at least {least}, got {shown(value)}.")


def number(config: Any, *names: str, least: float = 0.0, below: float = float("inf")) -> Iterator[Problem]:
    """Find fields that are not finite numbers from ``least`` to under ``below``."""
    for name in names:
        value = getattr(config, name)
        if not is_number(value) or not least <= value < below:
            bound = "" if below == float("inf") else f" and below {below:g}"
            yield Problem(name, f"expected a number of at least {least:g}{bound}, got {shown(value)}.")


def flags(config: Any, *names: str) -> Iterator[Problem]:
    """Find fields that are neither true nor false."""
    for name in names:
        if not isinstance(getattr(config, name), bool):
            yield Problem(name, f"expected True or False, got {shown(getattr(config, name))}.")


def one_of(config: Any, name: str, *known: object) -> Iterator[Problem]:
    """Find a field that has none of some values."""
    value = getattr(config, name)
    if not any(value is one or (type(value) is type(one) and value == one) for one in known):
        yield Problem(name, f"expected one of {', '.join(map(repr, known))}, got {shown(value)}.")


def ranks(config: Any, *names: str) -> Iterator[Problem]:
    """Find tables by pattern whose values are not finite numbers above 0, and patterns that are none."""
    for name in names:
        table = getattr(config, name)
        if not isinstance(table, dict):
            yield Problem(
                name, f"expected a dict from patterns of module paths to numbers, got {shown(table)}."
            )
            continue
        for key, value in table.items():
            kinds = int if name == "rank_pattern" else int | float
            if isinstance(value, bool) or not isinstance(value, kinds) or not 0 < value < float("inf"):
                yield Problem(f"{name}[{shown(key)}]", f"expected a number above 0, got {shown(value)}.")
            if why := _no_pattern(key):
                yield Problem(f"{name}[{shown(key)}]", f"expected a name or a regular expression ({why}).")


def _no_pattern(key: object) -> str | None:
    if not isinstance(key, str):
        return f"got {shown(key)}"
    try:
        found = compiled(key)
    except PatternTooHardError as error:
        return str(error)
    return "it cannot be read as one" if found is None else None


def rank_beyond(rank: int, target: Target) -> str | None:
    """Say that a rank is more than a layer's matrix can have, or None."""
    rows, columns = target.matrix
    if rank <= min(rows, columns):
        return None
    return (
        f"rank {rank} is beyond the layer, whose matrix {rows} x {columns} has at most {min(rows, columns)}; lower r, or name the "
        "layer in rank_pattern"
    )
