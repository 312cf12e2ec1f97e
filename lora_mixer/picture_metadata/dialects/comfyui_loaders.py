"""ComfyUI's nodes that load adapters, by class: its own two, the LoRA manager's, and the stack of rgthree."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_mixer.parsing.values import as_float, as_list, as_table, file_stem
from lora_mixer.picture_metadata.settings import PictureAdapter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    Value = Callable[[object], object]

_LISTED_AT_MOST = 200


def adapters_of(kind: str, inputs: Mapping[str, Any], value: Value) -> list[PictureAdapter]:
    """
    Return the adapters that a node loads, in their order.

    Args:
        kind: The node's class.
        inputs: Its inputs.
        value: Follows an input to its value.

    Example:
        >>> inputs = {"lora_name": "ink.safetensors", "strength_model": 0.8, "strength_clip": 0.2}
        >>> adapters_of("LoraLoader", inputs, lambda value: value)[0].text_weight
        0.2
    """
    if kind == "LoraLoaderLM" or "loras" in inputs:
        return list(_listed(inputs.get("loras")))
    if any(key.startswith("lora_") and isinstance(each, dict) for key, each in inputs.items()):
        return list(_stacked(inputs))
    name = file_stem(value(inputs.get("lora_name")))
    if name is None or "lora" not in kind.lower():
        return []
    weight = _weight(value(inputs.get("strength_model")))
    text = _weight(value(inputs.get("strength_clip"))) if "strength_clip" in inputs else 0.0
    return [_adapter(name, weight, text)]


def _listed(loras: object) -> Iterator[PictureAdapter]:
    """The LoRA manager's loader: [{name, strength, clipStrength, active}], wrapped or not."""
    entries = as_list(as_table(loras).get("__value__", loras))
    for entry in map(as_table, entries[:_LISTED_AT_MOST]):
        name = file_stem(entry.get("name"))
        if name is not None and entry.get("active") is not False:
            weight = _weight(entry.get("strength"))
            yield _adapter(name, weight, _weight(entry.get("clipStrength"), weight))


def _stacked(inputs: Mapping[str, Any]) -> Iterator[PictureAdapter]:
    """The loader of rgthree: lora_1 = {on, lora, strength, strengthTwo}."""
    for key, entry in list(inputs.items())[:_LISTED_AT_MOST]:
        table = as_table(entry)
        name = file_stem(table.get("lora")) if key.startswith("lora_") else None
        if name is not None and table.get("on") is not False:
            weight = _weight(table.get("strength"))
            yield _adapter(name, weight, _weight(table.get("strengthTwo"), weight))


def _weight(value: object, default: float = 1.0) -> float:
    number = as_float(value)
    return default if number is None else number


def _adapter(name: str, weight: float, text: float) -> PictureAdapter:
    return PictureAdapter(name, weight, None if text == weight else text)
