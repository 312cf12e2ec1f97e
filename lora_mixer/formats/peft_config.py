"""
Scales that stand in a configuration instead of in tensors.

PEFT folders carry ``adapter_config.json``; diffusers since 0.34 writes the same fields per component as JSON under
the header key ``lora_adapter_metadata``; ai-toolkit and others write none (then alpha = rank).
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from lora_mixer.errors import InvalidAdapterError, UnsupportedAdapterError
from lora_mixer.parsing.module_patterns import ModulePatterns, PatternTooHardError

if TYPE_CHECKING:
    from collections.abc import Mapping

HEADER_KEY = "lora_adapter_metadata"

# Fields of LoraConfig that change what the tensors mean in ways that no change of a weight can give.
_REFUSED = {
    "use_qalora": "QA-LoRA",
    "kasa_config": "KaSA, which takes small singular values out of the base as well",
    "arrow_config": "Arrow, which chooses among adapters token by token",
    "use_bdlora": "BD-LoRA",
    "layer_replication": "replicated layers",
    "alora_invocation_tokens": "activated LoRA (aLoRA)",
    "megatron_config": "Megatron parallel layers",
    "target_parameters": "LoRA on bare parameters (target_parameters)",
}
_READ_TYPES = frozenset(
    (
        *(
            "LORA",
            "LOHA",
            "LOKR",
            "ADALORA",
            "IA3",
            "OFT",
            "BOFT",
            "HRA",
            "VERA",
            "LN_TUNING",
            "TRAINABLE_TOKENS",
        ),
        *("HIRA", "C3A", "DELORA", "MISS", "BONE", "SHIRA", "GRALORA", "BEFT"),
    )
)


@dataclass(frozen=True)
class ScaleRule:
    """How a configuration scales its modules."""

    alpha: float | None = None
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    rank: float | None = None
    rank_pattern: Mapping[str, float] = field(default_factory=dict)
    rank_stabilised: bool = False
    transposed: bool = False
    """``fan_in_fan_out``: the modules store (in, out); only told, the live module decides."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """The whole configuration, for algorithms with options of their own."""

    def alpha_of(self, *spellings: str) -> float | None:
        """
        Look a module's alpha up: the first pattern that matches the end of its path, else the common one.

        Raises:
            InvalidAdapterError: When the patterns need too much work.
        """
        found = _look_up(self._alphas, spellings)
        return self.alpha if found is None else found

    def rank_of(self, *spellings: str) -> int | None:
        """Look a module's rank up in the same way; the tensors' own rank comes first where they show one."""
        found = _look_up(self._ranks, spellings)
        found = self.rank if found is None else found
        return None if found is None or found < 1 else int(found)

    @cached_property
    def _alphas(self) -> ModulePatterns[float]:
        return ModulePatterns(self.alpha_pattern)

    @cached_property
    def _ranks(self) -> ModulePatterns[float]:
        return ModulePatterns(self.rank_pattern)


def _look_up(patterns: ModulePatterns[float], spellings: tuple[str, ...]) -> float | None:
    try:
        return patterns.find(*spellings)
    except PatternTooHardError as error:
        raise InvalidAdapterError(f"{spellings[0][:200]}: {error}") from None


def _number(value: Any, name: str, label: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        msg = f"{name} is {str(value)[:80]} in the adapter's configuration, expected a finite number"
        raise InvalidAdapterError(msg, file=label)
    return float(value)


def scale_rule(config: Mapping[str, Any], label: str) -> ScaleRule:
    """
    Read the scale of a PEFT configuration.

    Args:
        config: The parsed ``adapter_config.json``, or one component's part of a header.
        label: What to call the file in messages.

    Raises:
        InvalidAdapterError: When a field has the wrong type.
    """
    alpha, rank = config.get("lora_alpha", config.get("alpha")), config.get("r")
    # AdaLoRA keeps masks under this name, one boolean for each singular value
    masks = config.get("peft_type") == "ADALORA"
    return ScaleRule(
        alpha=None if alpha is None else _number(alpha, "lora_alpha", label),
        alpha_pattern=_numbers(config, "alpha_pattern", label),
        rank=None if rank is None else _number(rank, "r", label),
        rank_pattern={} if masks else _numbers(config, "rank_pattern", label),
        rank_stabilised=bool(config.get("use_rslora")),
        transposed=bool(config.get("fan_in_fan_out")),
        config=config,
    )


def _numbers(config: Mapping[str, Any], name: str, label: str) -> dict[str, float]:
    table = config.get(name) or {}
    if not isinstance(table, dict):
        msg = f"{name} is {type(table).__name__}, expected an object"
        raise InvalidAdapterError(msg, file=label)
    numbers = {str(key): _number(value, f"{name}[{str(key)[:200]!r}]", label) for key, value in table.items()}
    try:
        ModulePatterns(numbers)
    except PatternTooHardError as error:
        raise InvalidAdapterError(f"{name}: {error}", file=label) from None
    return numbers


def refuse_unsupported(config: Mapping[str, Any], label: str) -> None:
    """
    Refuse, by name, a PEFT configuration whose tensors cannot be applied.

    Raises:
        UnsupportedAdapterError: Naming each such field, or the PEFT method.
    """
    kind = config.get("peft_type")
    found = [name for key, name in _REFUSED.items() if config.get(key)]
    if kind is not None and (not isinstance(kind, str) or kind not in _READ_TYPES):
        found.insert(0, f"PEFT method {kind}")
    if found:
        msg = f"{', '.join(found)}: cannot be applied to weights by this version; the file is left untouched"
        raise UnsupportedAdapterError(msg, file=label)


def header_rules(metadata: Mapping[str, str], label: str) -> dict[str | None, ScaleRule]:
    """
    Read the rules of a diffusers header, by component (None for a header without component names).

    Raises:
        InvalidAdapterError: When the header's JSON is broken: guessing alphas would be silent damage.
    """
    text = metadata.get(HEADER_KEY)
    if not text:
        return {}
    try:
        table = json.loads(text)
    except (ValueError, RecursionError) as error:
        msg = f"{HEADER_KEY} in the header is no valid JSON ({error}), so alphas are unknown"
        raise InvalidAdapterError(msg, file=label) from None
    if not isinstance(table, dict):
        msg = f"{HEADER_KEY} in the header is {type(table).__name__}, expected an object"
        raise InvalidAdapterError(msg, file=label)
    configs: dict[str | None, dict[str, Any]] = {}
    for key, value in table.items():
        component, dot, name = str(key).partition(".")
        configs.setdefault(component if dot else None, {})[name if dot else component] = value
    for config in configs.values():
        # Diffusers' header carries DoRA as a flag beside its magnitude tensors, which name themselves.
        refuse_unsupported(config, label)
    return {component: scale_rule(config, label) for component, config in configs.items()}
