"""Every method of a mix by its name, and reading one as people write it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from lora_mixer.errors import MixError
from lora_mixer.mixes.grammar.tokens import read_call
from lora_mixer.mixes.methods.composite import Composite
from lora_mixer.mixes.methods.k_lora import KLora
from lora_mixer.mixes.methods.method import Method
from lora_mixer.mixes.methods.switch import Switch
from lora_mixer.wording import did_you_mean, list_of, shown

if TYPE_CHECKING:
    from lora_mixer.mixes.reading import Reading

METHODS: dict[str, type[Method]] = {cls.name: cls for cls in (Method, Switch, Composite, KLora)}
"""Every method of a mix by its name; a new one is a row here."""


def read_method(spec: object, where: str, reading: Reading) -> Method:
    """
    Read a method.

    Example:
        >>> from lora_mixer.mixes.reading import Reading
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
    unknown = [key for key in given if key not in _keys(name)]
    for key in unknown:
        reading.unknown_key(where, key, _keys(name))
    if unknown:
        return Method()
    try:
        return METHODS[name](**given)
    except MixError as error:
        reading.take(where, error)
        return Method()


def _keys(name: str) -> tuple[str, ...]:
    return tuple(field.name for field in fields(METHODS[name])) if name in METHODS else ()


def _taken_apart(spec: object, where: str, reading: Reading) -> tuple[object, dict[str, Any]]:
    if isinstance(spec, Mapping):
        return spec.get("name"), {str(key): value for key, value in spec.items() if key != "name"}
    call = read_call(spec, where, reading) if isinstance(spec, str) else None
    if call is None:
        return spec, {}
    keys = _keys(call.name)
    if len(call.positional) > len(keys):
        reading.problem(
            where, f"expected at most {len(keys)} values for {call.name}, got {len(call.positional)}."
        )
    given = {**dict(zip(keys, call.positional, strict=False)), **call.named}
    words = {"true": True, "false": False}
    return call.name, {
        key: words.get(value, value) if isinstance(value, str) else value for key, value in given.items()
    }
