"""Files for ComfyUI: Kohya's leaves under the dotted names of ComfyUI's own models."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import torch

from lora_mixer.writing.encode import shaped_pair
from lora_mixer.writing.formats.format import OutputFormat
from lora_mixer.writing.formats.kohya import named_tensors, one_file

if TYPE_CHECKING:
    from pathlib import Path

    from lora_mixer.writing.formats.format import Content, NewAdapter
    from lora_mixer.writing.layers import NewLayer


def _pair(name: str, layer: NewLayer, dtype: torch.dtype | None) -> dict[str, torch.Tensor]:
    """
    Return the pair as trainers for ComfyUI write it: without an alpha, which not every reader of ``lora_A`` looks for.

    Where the scale would be rounded into halves it stays beside the pair.
    """
    scale = layer.alpha / layer.rank
    wide = (dtype or layer.pair[0].dtype) in (torch.float32, torch.float64)
    exact = scale > 0 and math.frexp(scale)[0] == 0.5  # a power of two
    folds = wide or exact
    up = layer.pair[0] * scale if folds and scale != 1 else layer.pair[0]
    up, down = shaped_pair(dataclasses.replace(layer, up=up), dtype)
    table = {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
    if not folds:
        table[f"{name}.alpha"] = torch.tensor(layer.alpha, dtype=torch.float32)
    return table


def _files(adapter: NewAdapter) -> dict[Path, Content]:
    layers = adapter.names.fused(adapter.layers, comfyui=True)
    return one_file(adapter, named_tensors(layers, adapter.names.comfyui, _pair, adapter.dtype))


COMFYUI = OutputFormat(
    "comfyui",
    "the same with dots, as ComfyUI's own models name their modules",
    _files,
    spelling=lambda names: names.comfyui,
    holds_every_algorithm=True,
    dora="straight (dora_scale)",
)
