"""diffusers' files: PEFT's names under components, ranks and alphas in the header."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from lora_mixer.formats.peft_config import HEADER_KEY
from lora_mixer.writing.formats.format import OutputFormat, safetensors
from lora_mixer.writing.formats.peft import lora_config, refuse_what_peft_lacks, to_peft

if TYPE_CHECKING:
    from pathlib import Path

    from lora_mixer.writing.formats.format import Content, NewAdapter


def _files(adapter: NewAdapter) -> dict[Path, Content]:
    refuse_what_peft_lacks(adapter.layers, "diffusers' format", embeddings=False)
    header: dict[str, object] = {}
    for component, layers in adapter.components.items():
        # without the root that transformers 5 dropped, an end of the path in every version
        config = lora_config(layers, [layer.place.path.removeprefix("text_model.") for layer in layers])
        front = "" if component == "model" else f"{component}."
        header |= {f"{front}{field}": value for field, value in config.items()}
    tensors = to_peft(adapter.layers, lambda layer: adapter.names.diffusers(layer.place), adapter.dtype)
    texts = {"format": "pt", **adapter.metadata, HEADER_KEY: json.dumps(header, indent=2, sort_keys=True)}
    return {adapter.file: safetensors(tensors, texts)}


DIFFUSERS = OutputFormat("diffusers", "pairs under diffusers' names, as its pipelines save them", _files)
