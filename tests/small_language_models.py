"""The tiny Transformers models of ``../shared/data/transformers``, and what PEFT makes of adapters on them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import transformers
from safetensors.torch import load_file

if TYPE_CHECKING:
    from pathlib import Path

OUTPUTS = ("logits", "logits_per_text", "text_embeds", "image_embeds", "encoder_last_hidden_state")


@dataclass(frozen=True)
class Reference:
    """
    One model with adapters, and outputs to be met.

    Attributes:
        root: The folder of all of them.
        facts: What the JSON says.
        tensors: Outputs and merged weights by tag.
    """

    root: Path
    facts: dict[str, Any]
    tensors: dict[str, torch.Tensor]

    @property
    def adapters(self) -> dict[str, Path]:
        """The adapters' folders by name."""
        return {name: self.root / folder for name, folder in self.facts["adapters"].items()}

    def model(self) -> Any:
        """Load the model anew."""
        kind: Any = getattr(transformers, self.facts["class_name"])
        return kind.from_pretrained(self.root / self.facts["model"]).eval()

    def inputs(self) -> dict[str, torch.Tensor]:
        """Read the arguments of its forward."""
        return load_file(self.root / self.facts["inputs"])


def reference(data: Path, name: str) -> Reference:
    """Read a reference by ``arch/name``."""
    root = data / "transformers"
    facts = json.loads((root / "golden" / f"{name}.json").read_text(encoding="utf-8"))
    return Reference(root, facts, load_file(root / "golden" / f"{name}.safetensors"))


def run(model: Any, inputs: dict[str, torch.Tensor], *, generate: bool) -> dict[str, torch.Tensor]:
    """Return what the references hold of a call, and greedy tokens where asked for."""
    with torch.no_grad():
        out = model(**inputs)
        found = {key: getattr(out, key) for key in OUTPUTS if getattr(out, key, None) is not None}
        if generate:
            found["tokens"] = model.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                do_sample=False,
                max_new_tokens=6,
                min_new_tokens=6,
                pad_token_id=1,
            )
    return found


def distance(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Give the relative Frobenius distance."""
    found, wanted = found.detach().double(), wanted.detach().double()
    return float((found - wanted).norm() / wanted.norm())
