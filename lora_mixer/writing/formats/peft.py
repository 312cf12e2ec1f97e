"""
Layers to PEFT's names: ``lora_A`` and ``lora_B``, with ranks and alphas in a configuration.

The same configuration stands in a folder's ``adapter_config.json`` and, by component, in a diffusers file's header.
"""

from __future__ import annotations

import json
from typing import IO, TYPE_CHECKING, Any

from lora_mixer.errors import SaveError
from lora_mixer.formats.fronts import COMPONENT_KEY
from lora_mixer.problem import SaveProblem, SaveReason
from lora_mixer.wording import first_of
from lora_mixer.writing.encode import cast, shaped_lengths, shaped_pair
from lora_mixer.writing.formats.format import OutputFormat, safetensors
from lora_mixer.writing.formats.peft_kinds import PEFT_ALONE, by_pattern, of_one_kind, plain

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import torch

    from lora_mixer.writing.formats.format import Content, NewAdapter
    from lora_mixer.writing.layers import NewLayer

_SHOWN = 8
WEIGHTS = "adapter_model.safetensors"
_CONFIG = "adapter_config.json"


def to_peft(
    layers: Sequence[NewLayer], spell: Callable[[NewLayer], str], dtype: torch.dtype | None
) -> dict[str, torch.Tensor]:
    """
    Spell layers as PEFT does.

    Args:
        layers: What to write.
        spell: Gives each module's name, prefix included.
        dtype: To store in; None keeps each tensor's own.

    Returns:
        Tensors by key.
    """
    table: dict[str, torch.Tensor] = {}
    for layer in layers:
        name = spell(layer)
        up, down = shaped_pair(layer, dtype)
        if layer.place.embedding:  # PEFT's embeddings change by (B @ A).T
            table[f"{name}.lora_embedding_A"] = up.T.contiguous()
            table[f"{name}.lora_embedding_B"] = down.T.contiguous()
        else:
            table[f"{name}.lora_A.weight"], table[f"{name}.lora_B.weight"] = down, up
        if layer.lengths is not None:  # (out,), of convolutions (1, out, 1, 1)
            values = cast(layer.lengths, dtype, layer.place)
            table[f"{name}.lora_magnitude_vector"] = (
                shaped_lengths(layer, dtype, keep=1) if len(layer.place.shape) > 2 else values
            )
        if layer.bias is not None:
            table[f"{name}.lora_B.bias"] = cast(layer.bias, dtype, layer.place)
    return table


def refuse_what_peft_lacks(layers: Sequence[NewLayer], where: str, *, embeddings: bool) -> None:
    """
    Refuse, by name, layers that ``lora_A`` and ``lora_B`` cannot hold.

    Args:
        layers: What to write.
        where: The format, for the message.
        embeddings: Whether tables of embeddings have a place.

    Raises:
        SaveError: Naming them all.
    """
    bad = {
        str(layer.place): "the change of a norm or another weight of one axis"
        for layer in layers
        if layer.vector is not None
    }
    bad |= {
        str(layer.place): "a table of embeddings"
        for layer in layers
        if layer.place.embedding and not embeddings
    }
    bad |= {
        str(layer.place): "the change of a parameter that is not a module's weight"
        if layer.place.bare
        else "factors that no configuration of PEFT's comes to; a rank makes it a pair"
        if layer.leaves
        else "the change of a bias alone"
        for layer in layers
        if layer.up is None and layer.vector is None
    }
    dora = [layer for layer in layers if layer.lengths is not None]
    bad |= {
        str(layer.place): "the magnitude of a DoRA " + why
        for layer in dora
        if (why := _no_place_for_lengths(layer))
    }
    if dora:
        bad |= {
            str(layer.place): "a pair without the magnitude that use_dora asks of every module"
            for layer in layers
            if layer.lengths is None and layer.up is not None
        }
    if bad:
        listed = first_of([f"{name} ({why})" for name, why in bad.items()], _SHOWN)
        raise SaveError(
            f"{where} has no place for {len(bad)} modules: {listed}; kohya's format has",
            problems=[SaveProblem(name, SaveReason.FORMAT, why) for name, why in bad.items()],
        )


def _no_place_for_lengths(layer: NewLayer) -> str:
    if layer.place.embedding:
        return "over a table of embeddings"
    if not layer.by_output:
        return "with lengths of inputs"
    return "beside a bias" if layer.bias is not None else ""


def lora_config(layers: Sequence[NewLayer], paths: Sequence[str]) -> dict[str, Any]:
    """
    Return the fields of PEFT's ``LoraConfig`` that say what the tensors mean.

    Args:
        layers: The layers of one component.
        paths: Their paths as the configuration shall name them.

    Returns:
        The commonest rank and alpha, and patterns for the others.

    Example:
        >>> import torch
        >>> from lora_mixer.writing.layers import NewLayer, ModulePlace
        >>> layer = NewLayer(ModulePlace("unet", "a", (2, 2)), torch.ones(2, 1), torch.ones(1, 2), alpha=0.5)
        >>> lora_config([layer], ["a"])["lora_alpha"]
        0.5
    """
    rank, ranks = by_pattern([layer.rank for layer in layers], paths)
    alpha, alphas = by_pattern([plain(layer.alpha) for layer in layers], paths)
    config: dict[str, Any] = {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "target_modules": sorted(paths),
    }
    if any(layer.bias is not None for layer in layers):
        config["lora_bias"] = True
    if any(layer.lengths is not None for layer in layers):
        config["use_dora"] = True
    return config


def _files(adapter: NewAdapter) -> dict[Path, Content]:
    contents: dict[Path, Content] = {}
    kinds = {part: of_one_kind(layers, adapter.dtype) for part, layers in adapter.components.items()}
    pairs = [layer for layer in adapter.layers if kinds[layer.place.component] is None]
    refuse_what_peft_lacks(pairs, "PEFT's format", embeddings=True)
    for component, layers in adapter.components.items():
        folder = adapter.path if len(adapter.components) == 1 else adapter.path / component
        config: dict[str, Any] = {"task_type": None, "base_model_name_or_path": None, "inference_mode": True}
        kind = kinds[component]
        if kind is None:
            config |= {
                "peft_type": "LORA",
                "bias": "none",
                "lora_dropout": 0.0,
                "fan_in_fan_out": False,
                "use_rslora": False,
                "use_dora": False,
                **lora_config(layers, [layer.place.path for layer in layers]),
            }
            tensors = to_peft(layers, lambda layer: f"base_model.model.{layer.place.path}", adapter.dtype)
        else:
            config |= kind.config
            tensors = {f"base_model.model.{key}": tensor for key, tensor in kind.tensors.items()}
        texts = {"format": "pt", **adapter.metadata, COMPONENT_KEY: component}
        contents[folder / WEIGHTS] = safetensors(tensors, texts)
        contents[folder / _CONFIG] = _json(config)
    return contents


def _json(values: dict[str, Any]) -> Content:
    text = (json.dumps(values, indent=2, sort_keys=True) + "\n").encode()

    def write(stream: IO[bytes]) -> None:
        stream.write(text)

    return write


PEFT = OutputFormat(
    "peft",
    f"pairs in {WEIGHTS} beside {_CONFIG}, a folder for each component",
    _files,
    is_folder=True,
    keeps_what_was_read=True,
    holds_alone=frozenset(PEFT_ALONE),
)
