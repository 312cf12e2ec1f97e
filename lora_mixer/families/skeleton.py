"""
Models without weights: the modules of SD 1.x, SD 2.x and SDXL, or of a diffusers folder, by name and shape alone.

They are built on the meta device, so they cost no memory; a folder's weights are read one tensor at a time, and only
for adapters that need them.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import torch

from lora_mixer.families import FAMILIES, family_named

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import nn

UNETS = tuple(family.name for family in FAMILIES if family.unet is not None)
"""Families of UNets whose modules are known without a folder."""
SIZES = {family.name: len(family.transformers) for family in FAMILIES if family.transformers}
"""Families of transformers of which sizes are known, and how many."""


@dataclass(frozen=True)
class Skeleton:
    """
    The components of a pipeline on the meta device.

    Attributes:
        name: What it is, for messages.
        components: Modules by component name.
        tables: Gives the tensors of a component by name, each as a function that reads it; None where there are no weights.
    """

    name: str
    components: Mapping[str, nn.Module]
    tables: Callable[[str], dict[str, Callable[[], torch.Tensor]]] | None = None
    _open: dict[str, dict[str, Callable[[], torch.Tensor]]] = field(default_factory=dict, repr=False)

    def tensor(self, component: str, name: str) -> torch.Tensor | None:
        """Read one parameter, or None where there are no weights or no such parameter."""
        table = self._table(component)
        for spelling in (name, f"text_model.{name}", name.removeprefix("text_model.")):
            if spelling in table:
                return table[spelling]()
        return None

    def has_weights(self, component: str) -> bool:
        """Tell whether any tensor of a component can be read."""
        return bool(self._table(component))

    def _table(self, component: str) -> dict[str, Callable[[], torch.Tensor]]:
        if self.tables is None:
            return {}
        if component not in self._open:
            self._open[component] = self.tables(component)
        return self._open[component]

    @cached_property
    def paths(self) -> dict[str, list[str]]:
        """The paths of all modules by component."""
        return {
            part: [path for path, _ in module.named_modules()] for part, module in self.components.items()
        }


@lru_cache(maxsize=8)
def of_family(family: str, size: int = 0, *, experts: tuple[str, ...] = ()) -> Skeleton:
    """
    Build the modules of a base family.

    Args:
        family: One of ``UNETS`` or ``SIZES``.
        size: Which of the sizes that ``SIZES`` counts.
        experts: Further components that are denoisers of that size, such as ``transformer_2``.

    Returns:
        The components, without weights; the same object for the same arguments, nobody's to change.
    """
    row = family_named(family)
    assert row is not None  # noqa: S101 -- one of UNETS
    diffusers: Any = importlib.import_module("diffusers")
    with torch.device("meta"):
        components: dict[str, nn.Module] = {}
        if row.unet is not None:
            components["unet"] = diffusers.UNet2DConditionModel(**row.unet)
        if row.transformers:
            kind, arguments = row.transformers[size]
            for part in ("transformer", *experts):
                components[part] = getattr(diffusers, kind)(**arguments)
        for part, (kind, *sizes) in row.text_encoders.items():
            components[part] = _t5(kind, *sizes) if kind.startswith("T5") else _clip(kind, *sizes)
    return Skeleton(family, components)


def _t5(kind: str, hidden: int, inner: int, layers: int, heads: int) -> nn.Module:
    transformers = importlib.import_module("transformers")
    config = transformers.T5Config(
        d_model=hidden,
        d_ff=inner,
        d_kv=hidden // heads,
        num_layers=layers,
        num_heads=heads,
        feed_forward_proj="gated-gelu",
    )
    module: nn.Module = getattr(transformers, kind)(config)
    return module


def _clip(kind: str, hidden: int, inner: int, layers: int, heads: int) -> nn.Module:
    transformers = importlib.import_module("transformers")
    config = transformers.CLIPTextConfig(
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        projection_dim=hidden,
    )
    module: nn.Module = getattr(transformers, kind)(config)
    return module
