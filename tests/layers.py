"""Layers read from small state dicts, as a file would be read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from lora_mixer.formats import read_source
from lora_mixer.sources import AdapterSource

if TYPE_CHECKING:
    from lora_mixer.adapter import Adapter
    from lora_mixer.algorithms import LayerWeights


def randn(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    """Give seeded random numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + 31 * sum(shape))) * scale


def layer(
    leaves: dict[str, Any], *, config: dict[str, Any] | None = None, module: str = "net"
) -> LayerWeights:
    """Read one module's leaves (numbers become tensors) and give its weights."""
    (only,) = adapter(leaves, config=config, module=module).layers
    return only.weights


def adapter(leaves: dict[str, Any], *, config: dict[str, Any] | None = None, module: str = "net") -> Adapter:
    """Read one module's leaves as an adapter."""
    prefix = f"base_model.model.{module}" if config is not None else module
    table = {f"{prefix}.{leaf}": torch.as_tensor(value) for leaf, value in leaves.items()}
    return read_source(AdapterSource(weights=table, label="test", config=config))


def delta(weights: LayerWeights, base: torch.Tensor, gain: float = 1.0) -> torch.Tensor:
    """Give a layer's change of a weight in fp64, after its own check that it fits."""
    assert weights.misfit(tuple(base.shape)) is None
    return weights.delta(base.double(), gain)


def close(got: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-12) -> bool:
    """Say whether two fp64 tensors agree to a relative error."""
    assert got.shape == expected.shape
    return float((got - expected).norm()) <= tolerance * float(expected.norm())
