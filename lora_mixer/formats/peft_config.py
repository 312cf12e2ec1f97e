"""
Scales that stand in a configuration instead of in tensors.

PEFT folders carry ``adapter_config.json``; diffusers since 0.34 writes the same fields per component as JSON under
the header key ``lora_adapter_metadata``; ai-toolkit and others write none (then alpha = rank).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lora_mixer.errors import InvalidAdapterError, UnsupportedAdapterError

if TYPE_CHECKING:
    from collections.abc import Mapping

HEADER_KEY = "lora_adapter_metadata"

# Fields of LoraConfig that change what the tensors mean in ways that are not applied here.
_REFUSED = {
    "use_qalora": "QA-LoRA",
    "use_bdlora": "BD-LoRA",
    "layer_replication": "replicated layers",
    "alora_invocation_tokens": "activated LoRA (aLoRA)",
    "modules_to_save": "modules_to_save",
    "trainable_token_indices": "trainable tokens",
    "megatron_config": "Megatron parallel layers",
}
_PLAIN_TYPES = ("LORA", None)


@dataclass(frozen=True)
class ScaleRule:
    """How a configuration scales its modules."""

    alpha: float | None = None
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    rank_stabilised: bool = False
    transposed: bool = False
    """``fan_in_fan_out``: the modules store (in, out); only told, the live module decides."""

    def alpha_of(self, module: str) -> float | None:
        """Look a module's alpha up: the first pattern that matches the end of its path, else the common one."""
        for pattern, alpha in self.alpha_pattern.items():
            if _matches(pattern, module):
                return alpha
        return self.alpha


def _matches(pattern: str, module: str) -> bool:
    try:
        return re.match(rf"(?:.*\.)?(?:{pattern})$", module) is not None
    except re.error:
        return module == pattern or module.endswith("." + pattern)


def _number(value: Any, name: str, label: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        msg = f"{label}: {name} is {value!r} in the adapter's configuration, expected a number"
        raise InvalidAdapterError(msg)
    return float(value)


def scale_rule(config: Mapping[str, Any], label: str) -> ScaleRule:
    """
    Read the scale of a LoRA configuration.

    Args:
        config: The parsed ``adapter_config.json``, or one component's part of a header.
        label: What to call the file in messages.

    Raises:
        InvalidAdapterError: When a field has the wrong type.
    """
    pattern = config.get("alpha_pattern") or {}
    if not isinstance(pattern, dict):
        msg = f"{label}: alpha_pattern is {type(pattern).__name__}, expected an object"
        raise InvalidAdapterError(msg)
    alpha = config.get("lora_alpha", config.get("alpha"))
    return ScaleRule(
        alpha=None if alpha is None else _number(alpha, "lora_alpha", label),
        alpha_pattern={str(k): _number(v, f"alpha_pattern[{k!r}]", label) for k, v in pattern.items()},
        rank_stabilised=bool(config.get("use_rslora")),
        transposed=bool(config.get("fan_in_fan_out")),
    )


def refuse_unsupported(config: Mapping[str, Any], label: str) -> None:
    """
    Refuse, by name, a PEFT configuration whose tensors mean more than plain LoRA.

    Raises:
        UnsupportedAdapterError: Naming each such field, or the PEFT method.
    """
    kind = config.get("peft_type")
    found = [name for key, name in _REFUSED.items() if config.get(key)]
    if kind not in _PLAIN_TYPES:
        found.insert(0, f"PEFT method {kind}")
    if found:
        msg = f"{label}: {', '.join(found)}: not supported yet; the file is left untouched"
        raise UnsupportedAdapterError(msg)


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
        msg = f"{label}: {HEADER_KEY} in the header is no valid JSON ({error}), so alphas are unknown"
        raise InvalidAdapterError(msg) from None
    if not isinstance(table, dict):
        msg = f"{label}: {HEADER_KEY} in the header is {type(table).__name__}, expected an object"
        raise InvalidAdapterError(msg)
    configs: dict[str | None, dict[str, Any]] = {}
    for key, value in table.items():
        component, dot, name = str(key).partition(".")
        configs.setdefault(component if dot else None, {})[name if dot else component] = value
    for config in configs.values():
        # Diffusers' header carries DoRA as a flag beside its magnitude tensors, which name themselves.
        refuse_unsupported(config, label)
    return {component: scale_rule(config, label) for component, config in configs.items()}
