"""Layers to Kohya's layout: underscored names, an alpha tensor for each module, ``ss_*`` and ModelSpec metadata."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from typing import TYPE_CHECKING

import torch

from lora_mixer.errors import SaveError
from lora_mixer.families import family_named
from lora_mixer.formats.fronts import COMPONENT_KEY
from lora_mixer.writing.container import model_hashes
from lora_mixer.writing.encode import cast, shaped_lengths, shaped_pair
from lora_mixer.writing.formats.format import OutputFormat, safetensors
from lora_mixer.writing.layers import OTHER_FORMAT

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from lora_mixer.writing.formats.format import Content, NewAdapter, Spelling
    from lora_mixer.writing.layers import NewLayer


def named_tensors(
    layers: Sequence[NewLayer],
    spelled: Spelling,
    pair: Callable[[str, NewLayer, torch.dtype | None], dict[str, torch.Tensor]],
    dtype: torch.dtype | None,
) -> dict[str, torch.Tensor]:
    """
    Spell layers as Kohya's trainer does, pairs and modules aside, for which formats that follow it have other names.

    Args:
        layers: What to write.
        spelled: Names a module.
        pair: Returns the tensors of a pair, scale included, by key.
        dtype: To store in; None keeps each tensor's own. Alphas are always fp32, so that scales survive.

    Returns:
        Tensors by key.

    Raises:
        SaveError: When a module has no name in this layout.
    """
    table: dict[str, torch.Tensor] = {}
    owners: dict[str, str] = {}
    for layer in layers:
        name = spelled(layer.place)
        if owners.setdefault(name, layer.place.component) != layer.place.component:
            raise SaveError(
                f"names of this format do not tell {layer.place.component} from {owners[name]}; write one file for each",
                key=str(layer.place),
                remedy=OTHER_FORMAT,
            )
        if layer.leaves:
            table |= {
                f"{name}{leaf}": tensor.contiguous()
                if leaf == ".alpha" or not tensor.is_floating_point()
                else cast(tensor, dtype, layer.place)
                for leaf, tensor in layer.leaves.items()
            }
            continue
        scale = 1.0
        if layer.vector is not None:
            table[f"{name}.w_norm"] = cast(layer.vector, dtype, layer.place)
        elif layer.up is not None:
            scale = layer.alpha / layer.rank
            table |= pair(name, layer, dtype)
            if layer.lengths is not None:
                keep = 0 if layer.by_output else 1
                table[f"{name}.dora_scale"] = shaped_lengths(layer, dtype, keep=keep)
        if layer.bias is not None:
            leaf = "b_norm" if layer.vector is not None else "diff_b"
            table[f"{name}.{leaf}"] = cast(layer.bias * scale, dtype, layer.place)
    return table


def _pair(name: str, layer: NewLayer, dtype: torch.dtype | None) -> dict[str, torch.Tensor]:
    up, down = shaped_pair(layer, dtype)
    return {
        f"{name}.lora_up.weight": up,
        f"{name}.lora_down.weight": down,
        f"{name}.alpha": torch.tensor(layer.alpha, dtype=torch.float32),
    }


def with_one_alpha(layers: Sequence[NewLayer]) -> list[NewLayer]:
    """
    Return all pairs with one alpha, the commonest rank, with what that changes put into the ups.

    Diffusers 0.42.1 looks alphas of attention layers up under names that they do not have, and so misreads Kohya files
    whose alphas differ from module to module; with one alpha it reads them right, as all others do.

    Args:
        layers: Layers whose tensors are new, so that they may change.

    Returns:
        The same layers, of one alpha.
    """
    ranks = Counter(layer.rank for layer in layers if layer.rank)
    if not ranks:
        return list(layers)
    alpha = float(ranks.most_common(1)[0][0])
    return [
        dataclasses.replace(
            layer,
            up=layer.up.float() * (layer.alpha / alpha),
            bias=_times(layer.bias, layer, alpha),
            alpha=alpha,
        )
        if layer.up is not None and layer.alpha != alpha
        else layer
        for layer in layers
    ]


def _times(bias: torch.Tensor | None, layer: NewLayer, alpha: float) -> torch.Tensor | None:
    return None if bias is None else bias.float() * (layer.alpha / alpha)


def kohya_metadata(
    layers: Sequence[NewLayer],
    tensors: Mapping[str, torch.Tensor],
    kept: Mapping[str, str],
    family: str,
    title: str,
) -> dict[str, str]:
    """
    Return the header that Kohya's trainer would write, as far as it is known.

    Args:
        layers: What is written.
        tensors: The same under its keys, for the hashes.
        kept: Texts of the source that still hold, and the provenance.
        family: The base family, as reports name it.
        title: The adapter's name.

    Returns:
        The header's texts: ``ss_*``, ``modelspec.*``, ``sshs_*`` and those kept.
    """
    ranks = Counter(layer.rank for layer in layers if layer.rank)
    alphas = Counter(layer.alpha for layer in layers if layer.rank)
    entries = {"ss_output_name": title}
    if ranks:
        entries["ss_network_dim"] = str(ranks.most_common(1)[0][0]) if len(ranks) == 1 else "Dynamic"
        entries["ss_network_alpha"] = f"{alphas.most_common(1)[0][0]:g}" if len(alphas) == 1 else "Dynamic"
    others = any(layer.leaves or layer.vector is not None for layer in layers)
    entries["ss_network_module"] = "lycoris.kohya" if others else "networks.lora"
    entries["ss_network_args"] = json.dumps({"conv_dim": "Dynamic"}) if _has_kernels(layers) else "{}"
    spec = {"modelspec.sai_model_spec": "1.0.1", "modelspec.title": title}
    row = family_named(family)
    if row is not None and row.kohya is not None:
        version, v2, architecture = row.kohya
        entries |= {"ss_base_model_version": version, "ss_v2": v2}
        spec["modelspec.architecture"] = architecture
        spec["modelspec.implementation"] = row.kohya_implementation
    stays = ("ss_network_module", "ss_network_args", "ss_base_model_version", "ss_v2", "ss_output_name")
    table = spec | entries | {k: v for k, v in kept.items() if k not in entries or k in stays}
    hashes = model_hashes(tensors, table)
    table["modelspec.hash_sha256"] = "0x" + hashes["sshs_model_hash"]
    return table | hashes


def _has_kernels(layers: Sequence[NewLayer]) -> bool:
    return any(max(layer.place.shape[2:], default=1) > 1 for layer in layers)


def one_file(adapter: NewAdapter, tensors: dict[str, torch.Tensor]) -> dict[Path, Content]:
    """Return the file with Kohya's header, and the denoiser's name where names of modules do not tell it: the second of two experts."""
    texts = kohya_metadata(adapter.layers, tensors, adapter.metadata, adapter.family, adapter.title)
    if any(layer.place.component == "transformer_2" for layer in adapter.layers):
        texts[COMPONENT_KEY] = "transformer_2"
    return {adapter.file: safetensors(tensors, texts)}


def _files(adapter: NewAdapter) -> dict[Path, Content]:
    layers = adapter.names.fused(adapter.layers)
    return one_file(adapter, named_tensors(layers, adapter.names.kohya, _pair, adapter.dtype))


KOHYA = OutputFormat(
    "kohya",
    "every algorithm's own tensors, norms and biases, as Kohya's and LyCORIS' trainers name them",
    _files,
    spelling=lambda names: names.kohya,
    holds_every_algorithm=True,
    dora="straight (dora_scale)",
)
