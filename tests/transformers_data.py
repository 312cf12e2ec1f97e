"""The tiny transformers of ``../shared/data/dit``, and the references that adapters on them have to meet."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import diffusers
import torch
import transformers
from safetensors.torch import load_file
from torch import nn

if TYPE_CHECKING:
    from pathlib import Path

IDS = [[58, 3, 9, 17, 23, 59]]


class Parts:
    """Components with nothing around them, as a pipeline has them."""

    def __init__(self, components: dict[str, nn.Module]) -> None:
        """Take them."""
        self.components = components


@dataclass(frozen=True)
class Reference:
    """
    An adapter and what it must do.

    Attributes:
        family: The folder of the tiny model.
        adapter: The adapter's file or folder.
        facts: What the JSON says.
        tensors: Merged weights and outputs.
    """

    family: str
    adapter: Path
    facts: dict[str, Any]
    tensors: dict[str, torch.Tensor]

    @property
    def where(self) -> dict[str, str]:
        """The arguments that say where the adapter belongs."""
        named = self.facts.get("component")
        return {"component": named} if named else {}

    def merged(self, component: str) -> dict[str, torch.Tensor]:
        """Give every parameter of a component that must have changed at weight 1, by name."""
        front = f"merged@1.0/{component}."
        return {
            plain(key[len(front) :]): value for key, value in self.tensors.items() if key.startswith(front)
        }


def plain(name: str) -> str:
    """Drop what transformers of some versions have in the names of CLIP's parameters."""
    return name.replace("text_model.", "")


@functools.cache
def reference(root: Path, name: str) -> Reference:
    """Read a reference by ``family/name``."""
    family, _, stem = name.partition("/")
    folder = root / "dit" / family
    adapter = folder / stem
    facts = json.loads((folder / f"golden_{stem}.json").read_text(encoding="utf-8"))
    tensors = load_file(folder / f"golden_{stem}.safetensors")
    return Reference(
        family, adapter if adapter.is_dir() else adapter.with_suffix(".safetensors"), facts, tensors
    )


def parts_of(root: Path, reference: Reference) -> Parts:
    """Load the tiny model of a reference in fp32."""
    components = {}
    for name, kind in reference.facts["classes"].items():
        cls: Any = getattr(diffusers, kind, None) or getattr(transformers, kind)
        folder = root / "dit" / "models" / reference.family / name
        components[name] = cls.from_pretrained(folder, torch_dtype=torch.float32).eval()
    return Parts(components)


def state(parts: Parts) -> dict[tuple[str, str], torch.Tensor]:
    """Copy every parameter and buffer."""
    return {
        (part, name): tensor.clone()
        for part, module in parts.components.items()
        for name, tensor in module.state_dict().items()
    }


def outputs(root: Path, reference: Reference, parts: Parts) -> dict[str, torch.Tensor]:
    """Run every component on its inputs; names are those of the references' tensors."""
    found = {}
    with torch.no_grad():
        for part, module in parts.components.items():
            if part.startswith("transformer"):
                out = module(**call_arguments(root, reference), return_dict=False)[0]
                found[f"{part}.out"] = out[0] if isinstance(out, list) else out
            else:
                found[f"{part}.last_hidden_state"] = module(input_ids=torch.tensor(IDS)).last_hidden_state
    return found


def call_arguments(root: Path, reference: Reference) -> dict[str, Any]:
    """Give the inputs of a family's denoiser; those of a control adapter's reference where it has its own."""
    folder = root / "dit" / "models" / reference.family
    inputs = load_file(folder / "inputs.safetensors")
    facts = json.loads((folder / "inputs.json").read_text(encoding="utf-8"))
    table: dict[str, Any] = arguments(facts["inputs"], inputs)
    if "control/hidden_states" in reference.tensors:
        table["hidden_states"] = reference.tensors["control/hidden_states"].float()
    return table


def arguments(spec: Any, inputs: dict[str, torch.Tensor]) -> Any:
    """Put tensors for their names in the arguments of a call, as the data set writes them."""
    if isinstance(spec, list):
        return [arguments(entry, inputs) for entry in spec]
    if isinstance(spec, dict) and "$tensor" in spec:
        return inputs[spec["$tensor"]]
    if isinstance(spec, dict) and "$tuple" in spec:
        return tuple(arguments(entry, inputs) for entry in spec["$tuple"])
    if isinstance(spec, dict) and "$dict" in spec:
        return {key: arguments(value, inputs) for key, value in spec["$dict"]}
    return spec


def distance(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Give the relative Frobenius distance."""
    found, wanted = found.detach().double(), wanted.detach().double()
    return float((found - wanted).norm() / wanted.norm())
