"""Configurations in any form: this package's, PEFT's, dicts and files."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from enum import Enum
from typing import TYPE_CHECKING, Any

from lora_mixer.errors import AdapterConfigError
from lora_mixer.fresh.config import NO_TARGETS, AdapterConfig
from lora_mixer.fresh.kinds import KINDS
from lora_mixer.problem import Problem
from lora_mixer.sources import read_config_file
from lora_mixer.wording import did_you_mean, shown

if TYPE_CHECKING:
    from lora_mixer.fresh.kinds.kind import FreshKind

_NEUTRAL = {"bias": "none"}
"""Values that ask for nothing, of fields that a kind may not have."""
_IRRELEVANT = frozenset(
    (
        *("peft_type", "peft_version", "inference_mode", "runtime_config", "megatron_core"),
        *("qalora_group_size", "loftq_config"),
    )
)
"""Fields of PEFT's that change nothing of a fresh adapter, or that have no meaning without others."""


def read_config(config: Any) -> tuple[AdapterConfig, FreshKind]:
    """
    Read a configuration in any form.

    Args:
        config: One of this package's, one of PEFT's, a dict with ``peft_type``, an ``adapter_config.json`` or its folder.

    Returns:
        The configuration, and the row of its kind.

    Raises:
        AdapterConfigError: When its kind or one of its fields is not known, or a value is wrong; all of it at once.
        SourceError: When there is no such file.
        CorruptFileError: When the file is not a JSON object.

    Example:
        >>> config, kind = read_config({"peft_type": "LORA", "r": 4, "target_modules": ["q_proj"]})
        >>> config.r, kind.config.__name__
        (4, 'LoraConfig')
    """
    if isinstance(config, AdapterConfig):
        fresh, label = config, None
        kind = KINDS[config.peft_type]
    else:
        table, label = _as_table(config)
        name = _plain(table.get("peft_type"))
        if not isinstance(name, str) or name not in KINDS:
            known = ", ".join(KINDS)
            said = "is not given" if name is None else f"got {shown(name)}"
            raise AdapterConfigError(
                problems=(Problem("peft_type", f"{said}; fresh adapters are of {known}."),), file=label
            )
        kind = KINDS[name]
        fresh = _from_table(kind, table, label)
    problems = (*fresh.common_problems(), *kind.problems(fresh))
    if problems:
        raise AdapterConfigError(problems=problems, file=label)
    return fresh, kind


def _as_table(config: Any) -> tuple[dict[str, Any], str | None]:
    """Return the fields of what is not a configuration of ours, and the file that they are from, if any."""
    if isinstance(config, Mapping):
        return {str(key): value for key, value in config.items()}, None
    if isinstance(config, str | os.PathLike):
        return read_config_file(config), os.fspath(config)
    fields = getattr(config, "to_dict", None)
    if callable(fields) and hasattr(config, "peft_type"):  # PEFT's, known by what it has: nothing is imported
        return dict(fields()), None
    raise AdapterConfigError(
        problems=(
            Problem(
                "",
                "expected a configuration of lora_mixer.fresh or of PEFT, a dict, or the path of an adapter_config.json, got "
                f"{shown(config)}.",
            ),
        )
    )


def _from_table(kind: FreshKind, table: Mapping[str, Any], label: str | None) -> AdapterConfig:
    """Return a kind's configuration with the fields of a table."""
    known = {field.name: field for field in dataclasses.fields(kind.config)}
    given = {key: _plain(value) for key, value in table.items()}
    odd = {
        key: value
        for key, value in given.items()
        if key not in known
        and key not in _IRRELEVANT
        and key not in kind.irrelevant
        and value
        and value != _NEUTRAL.get(key)
    }
    if odd:
        raise AdapterConfigError(
            problems=tuple(
                Problem(
                    key,
                    f"{kind.config.__name__} has no such field (got {shown(value)}).{did_you_mean(key, known)}",
                )
                for key, value in odd.items()
            ),
            file=label,
        )
    values = {key: value for key, value in given.items() if key in known and key not in kind.irrelevant}
    if values.get("target_modules") == NO_TARGETS:
        values["target_modules"] = []
    return kind.config(**{key: kind.converted(key, value) for key, value in values.items()})


def _plain(value: Any) -> Any:
    """Return a field as JSON has it: enums by value, sets sorted."""
    if isinstance(value, Enum):
        return _plain(value.value)
    if isinstance(value, set | frozenset | tuple):
        return sorted(value) if isinstance(value, set | frozenset) else list(value)
    return dict(value) if isinstance(value, Mapping) else value
