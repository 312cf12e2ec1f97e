"""Learning rates of parts: parameters of an adapter as groups for an optimizer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_mixer.errors import AdapterConfigError
from lora_mixer.formats.fronts import PEFT_ROOT
from lora_mixer.formats.leaves import split_key
from lora_mixer.parsing.module_patterns import ModulePatterns, PatternTooHardError
from lora_mixer.parsing.values import is_number
from lora_mixer.problem import Problem
from lora_mixer.wording import shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch import nn

_UP = (".lora_B", ".lora_embedding_B", ".lora_up")


def groups_of(
    named: Sequence[tuple[str, nn.Parameter]], lr: float, rates: Mapping[str, float], ratio: float
) -> list[dict[str, Any]]:
    """
    Sort parameters by their rate.

    Args:
        named: The keys of the adapter's file, and the parameters.
        lr: The rate of all that no pattern names.
        rates: Other rates by pattern of module paths.
        ratio: What the rates of B are multiplied by.

    Raises:
        AdapterConfigError: When a rate is not a number above 0, or a pattern matches no module.

    Example:
        >>> import torch
        >>> one, two = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
        >>> named = [("base_model.model.mid.q.lora_A.weight", one), ("base_model.model.mid.q.lora_B.weight", two)]
        >>> [group["lr"] for group in groups_of(named, 1.0, {"mid.*": 0.5}, 16)]
        [0.5, 8.0]
    """
    values = {
        "lr": lr,
        "lora_plus_ratio": ratio,
        **{f"rates[{key!r}]": value for key, value in rates.items()},
    }
    problems = [
        Problem(place, f"expected a number above 0, got {shown(value)}.")
        for place, value in values.items()
        if not _is_rate(value)
    ]
    paths = {key: _path(key) for key, _ in named}
    problems += _unmatched(rates, paths.values())
    if problems:
        raise AdapterConfigError(problems=tuple(problems))
    patterns = ModulePatterns(rates)
    groups: dict[float, list[nn.Parameter]] = {}
    for key, parameter in named:
        own_rate = patterns.find(paths[key])
        rate = (lr if own_rate is None else own_rate) * (ratio if any(part in key for part in _UP) else 1.0)
        groups.setdefault(rate, []).append(parameter)
    return [{"params": held, "lr": rate} for rate, held in groups.items()]


def _is_rate(value: Any) -> bool:
    return is_number(value) and value > 0


def _unmatched(rates: Mapping[str, float], paths: Iterable[str]) -> list[Problem]:
    """Find patterns that match nothing, or cannot be matched."""
    there, problems = list(dict.fromkeys(paths)), []
    for pattern in rates:
        try:
            patterns = ModulePatterns({pattern: True})
            if not any(patterns.find(path) for path in there):
                problems.append(
                    Problem(f"rates[{pattern!r}]", f"matches none of the {len(there)} modules in training.")
                )
        except PatternTooHardError as error:
            problems.append(Problem(f"rates[{pattern!r}]", f"{error}."))
    return problems


def _path(key: str) -> str:
    split = split_key(key)
    module = key.rpartition(".")[0] if split is None else split[0]
    return module.removeprefix(PEFT_ROOT)
