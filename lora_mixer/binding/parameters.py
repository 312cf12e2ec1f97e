"""
Which parameters of a module the pairs of ``target_parameters`` are for.

PEFT wraps a module once for each of its parameters that is trained: the first of the module's own parameters inside, the
last outside, whatever the order in the configuration. So ``X.base_layer.lora_A`` and ``X.lora_A`` are two parameters of X.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lora_mixer.algorithms.experts import ParameterPair

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from lora_mixer.adapter import AdapterLayer
    from lora_mixer.binding.index import ModuleIndex

_WRAPPED = ".base_layer"


def on_parameters(layers: Sequence[AdapterLayer], indexes: Iterable[ModuleIndex]) -> tuple[AdapterLayer, ...]:
    """Return the layers with those of bare parameters spelled as the parameters; others, and what is not here, as they are."""
    wrappers: dict[str, int] = {}
    for layer in layers:
        if isinstance(layer.weights, ParameterPair):
            owner, _ = _peeled(layer.target.written)
            wrappers[owner] = wrappers.get(owner, 0) + 1
    if not wrappers:
        return tuple(layers)
    known = list(indexes)
    return tuple(_spelled(layer, wrappers, known) for layer in layers)


def _spelled(layer: AdapterLayer, wrappers: dict[str, int], indexes: Sequence[ModuleIndex]) -> AdapterLayer:
    weights = layer.weights
    if not isinstance(weights, ParameterPair):
        return layer
    owner, depth = _peeled(layer.target.written)
    for index in indexes:
        for spelling in layer.target.spellings:
            path, _ = _peeled(spelling)
            module = index.owner(path)
            if module is None:
                continue
            wanted = [name for name, _, _ in weights.scales]
            names = [name for name in module._parameters if name in wanted]  # noqa: SLF001 -- in the module's own order
            if len(names) != wrappers[owner]:
                continue
            name = names[len(names) - 1 - depth]
            full = path if name == "weight" else f"{path}.{name}"
            placed = weights.on(name, transposed=bool(getattr(module, "is_transposed", False)))
            return replace(
                layer, target=replace(layer.target, module=full, written=full, between=()), weights=placed
            )
    return layer


def _peeled(spelling: str) -> tuple[str, int]:
    """Take the wrappers off a path; return it, and how many there were."""
    depth = 0
    while spelling.endswith(_WRAPPED):
        spelling, depth = spelling.removesuffix(_WRAPPED), depth + 1
    return spelling, depth
