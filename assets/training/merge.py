"""Adds the shipped adapters to a pipeline's weights: plain arithmetic, for figures and sheets.

check.py compares it with diffusers and PEFT.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file


def _module_table(pipe: Any) -> dict[str, torch.nn.Module]:
    """Every spelling of a module's name in the shipped formats -> the module."""
    table: dict[str, torch.nn.Module] = {}
    for path, module in pipe.unet.named_modules():
        table |= {f"lora_unet_{path.replace('.', '_')}": module, f"unet.{path}": module}
        table[f"base_model.model.{path}"] = module
    for path, module in pipe.text_encoder.named_modules():
        full = path if path.startswith("text_model.") else f"text_model.{path}"
        table |= {f"lora_te_{full.replace('.', '_')}": module, f"text_encoder.{full}": module}
    return table


_LEAVES = {
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".hada_w1_a": "w1a",
    ".hada_w1_b": "w1b",
    ".hada_w2_a": "w2a",
    ".hada_w2_b": "w2b",
    ".alpha": "alpha",
}


def weights_file(path: Path) -> Path:
    return path / "adapter_model.safetensors" if path.is_dir() else path


def deltas(pipe: Any, path: Path) -> dict[torch.nn.Module, torch.Tensor]:
    """The full weight change of every module at weight 1, in float32."""
    table = _module_table(pipe)
    found: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in load_file(weights_file(path)).items():
        suffix = next(s for s in _LEAVES if key.endswith(s))
        found.setdefault(key.removesuffix(suffix), {})[_LEAVES[suffix]] = value.float()
    out = {}
    for name, leaf in found.items():
        module = table[name]
        if "down" in leaf:
            rank, delta = leaf["down"].shape[0], leaf["up"].flatten(1) @ leaf["down"].flatten(1)
        else:
            rank, delta = leaf["w1b"].shape[0], (leaf["w1a"] @ leaf["w1b"]) * (leaf["w2a"] @ leaf["w2b"])
        scale = float(leaf["alpha"]) / rank if "alpha" in leaf else 1.0
        out[module] = scale * delta.reshape(module.weight.shape)  # type: ignore[operator, arg-type]
    return out


class Merged:
    """`with Merged(pipe, [(path, weight), ...]):` - the weights are as before, to the bit, afterwards."""

    def __init__(self, pipe: Any, parts: list[tuple[Path, float]]) -> None:
        self.pipe, self.parts = pipe, parts
        self.before: dict[torch.nn.Module, torch.Tensor] = {}

    @torch.no_grad()
    def __enter__(self) -> None:
        for path, weight in self.parts:
            for module, delta in deltas(self.pipe, path).items():
                self.before.setdefault(module, module.weight.detach().clone())  # type: ignore[operator]
                module.weight += weight * delta  # type: ignore[operator, assignment]

    @torch.no_grad()
    def __exit__(self, *exc: object) -> None:
        for module, weight in self.before.items():
            module.weight.copy_(weight)  # type: ignore[operator]
