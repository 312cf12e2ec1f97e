"""
Scales that stand in a configuration instead of in tensors.

PEFT folders carry ``adapter_config.json``; diffusers since 0.34 writes the same fields per component as JSON under
the header key ``lora_adapter_metadata``; ai-toolkit and others write none (then alpha = rank).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from lora_mixer.algorithms.peft_starts import is_from_base, peft_start
from lora_mixer.algorithms.table import peft_fields, peft_types
from lora_mixer.errors import InvalidAdapterError, UnsupportedAdapterError
from lora_mixer.parsing.json_text import NotJsonError, loose_json
from lora_mixer.parsing.module_ends import Configuration
from lora_mixer.parsing.module_patterns import ModulePatterns, PatternTooHardError
from lora_mixer.parsing.values import is_number
from lora_mixer.problem import Problem
from lora_mixer.wording import shown

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_mixer.formats.fronts import KeyTarget

HEADER_KEY = "lora_adapter_metadata"

# Fields of LoraConfig that change what the tensors mean in ways that no change of a weight can give.
_REFUSED = {
    "use_qalora": "QA-LoRA",
    "arrow_config": "Arrow, which chooses among adapters token by token",
    "use_bdlora": "BD-LoRA",
    "layer_replication": "replicated layers",
    "alora_invocation_tokens": "activated LoRA (aLoRA)",
    "megatron_config": "Megatron parallel layers",
    "monteclora_config": "MonteCLoRA, which draws its weights",
}
_KNOWN = frozenset(
    (
        "task_type",
        "peft_type",
        "auto_mapping",
        "peft_version",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
        "runtime_config",
        "layers_to_transform",
        "layers_pattern",
        "target_modules",
        "exclude_modules",
        "modules_to_save",
        "bias",
        "megatron_core",
        "qalora_group_size",
        "lora_dropout",
        "rank_dropout",
        "module_dropout",
        "rank_dropout_scale",
        "velora_config",
        "loftq_config",
        "eva_config",
        "corda_config",
        "lora_ga_config",
        "ensure_weight_tying",
        "init_lora_weights",
        "init_weights",
        "r",
        "lora_alpha",
        "alpha",
        "rank_pattern",
        "alpha_pattern",
        "use_rslora",
        "use_dora",
        "lora_bias",
        "fan_in_fan_out",
        "target_parameters",
    )
)
"""Fields of any algorithm whose meaning is known, beside those of their rows; others must be empty, since what they ask for would be left out in silence."""


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
    config: Configuration = field(default_factory=Configuration)
    """The whole configuration, for algorithms with options of their own."""

    def alpha_of(self, *spellings: str) -> float | None:
        """
        Look a module's alpha up: the first pattern that matches the end of its path, else the common one.

        Raises:
            InvalidAdapterError: When the patterns need too much work.
        """
        alpha = _look_up(self._alphas, spellings)
        return self.alpha if alpha is None else alpha

    def rank_of(self, *spellings: str) -> int | None:
        """Look a module's rank up in the same way; the tensors' own rank comes first where they show one."""
        rank = _look_up(self._ranks, spellings)
        rank = self.rank if rank is None else rank
        return None if rank is None or rank < 1 else int(rank)

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
        raise InvalidAdapterError(str(error), key=spellings[0][:200]) from None


def _number(value: Any, name: str, label: str) -> float:
    if not is_number(value):
        raise InvalidAdapterError(
            f"is {shown(value)} in the adapter's configuration, expected a finite number",
            file=label,
            key=name,
        )
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
        config=Configuration(config),
    )


def _numbers(config: Mapping[str, Any], name: str, label: str) -> dict[str, float]:
    table = config.get(name) or {}
    if not isinstance(table, dict):
        raise InvalidAdapterError(f"is {type(table).__name__}, expected an object", file=label, key=name)
    numbers = {str(key): _number(value, f"{name}[{str(key)[:200]!r}]", label) for key, value in table.items()}
    try:
        ModulePatterns(numbers)
    except PatternTooHardError as error:
        raise InvalidAdapterError(str(error), file=label, key=name) from None
    return numbers


def refuse_unsupported(config: Mapping[str, Any], label: str) -> None:
    """
    Refuse, by name, a PEFT configuration whose tensors cannot be applied.

    Raises:
        UnsupportedAdapterError: Naming each such field, or the PEFT method.
    """
    kind = config.get("peft_type")
    refused = [name for key, name in _REFUSED.items() if config.get(key)]
    refused += _odd_starts(config)
    if kind is not None and (not isinstance(kind, str) or kind not in peft_types()):
        refused.insert(0, f"PEFT method {kind}")
    elif kind is not None:  # diffusers' headers have fields of their own and no peft_type
        known = _KNOWN | peft_fields() | _REFUSED.keys()
        odd = sorted(str(key) for key, value in config.items() if key not in known and value)
        refused += [
            f"the field {key[:80]} = {str(config[key])[:80]}, which this version does not know" for key in odd
        ]
    if refused:
        raise UnsupportedAdapterError(
            f"{', '.join(refused)}: cannot be applied to weights by this version; the file is left untouched",
            file=label,
            problems=[
                Problem("", f"{what}: cannot be applied to weights by this version") for what in refused
            ],
        )


def _odd_starts(config: Mapping[str, Any]) -> list[str]:
    """Name what is wrong with how the pairs started."""
    start = config.get("init_lora_weights")
    if config.get("kasa_config"):
        odd = [name for name in ("use_dora", "target_parameters", "fan_in_fan_out") if config.get(name)]
        odd += [f"init_lora_weights = {start!r}"] if is_from_base(start) else []
        if odd:
            return [f"KaSA together with {name}" for name in odd]
    if not isinstance(start, str):
        return []
    row = peft_start(start)
    if row is None:
        return [f"init_lora_weights = {start[:80]!r}, which this version does not know"]
    if row.refused:
        return [row.refused]
    return [f"{row.name} together with {name}" for name in row.without if config.get(name)]


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
        table = loose_json(text)
    except NotJsonError as error:
        raise InvalidAdapterError(
            f"is not valid JSON in the header ({error}), so alphas are unknown", file=label, key=HEADER_KEY
        ) from None
    if not isinstance(table, dict):
        raise InvalidAdapterError(
            f"is {type(table).__name__}, expected an object", file=label, key=HEADER_KEY
        )
    configs: dict[str | None, dict[str, Any]] = {}
    for key, value in table.items():
        component, dot, name = str(key).partition(".")
        configs.setdefault(component if dot else None, {})[name if dot else component] = value
    for config in configs.values():
        # Diffusers' header carries DoRA as a flag beside its magnitude tensors, which name themselves.
        refuse_unsupported(config, label)
    return {component: scale_rule(config, label) for component, config in configs.items()}


def rule_for(target: KeyTarget, rules: Mapping[str | None, ScaleRule]) -> ScaleRule | None:
    """Return the rule of a module's component, else the one that holds where none is named."""
    names = {"denoiser": ("unet", "transformer")}.get(target.hint or "", (target.hint,))
    return next((rules[name] for name in names if name in rules), rules.get(None))
