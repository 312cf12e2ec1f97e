"""Layers to Kohya's layout: underscored names, an alpha tensor for each module, ``ss_*`` and ModelSpec metadata."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from typing import TYPE_CHECKING

import torch

from lora_mixer.errors import SaveError
from lora_mixer.families import family_named
from lora_mixer.writing.container import model_hashes
from lora_mixer.writing.encode import cast, shaped_lengths, shaped_pair

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_mixer.writing.layers import NewLayer
    from lora_mixer.writing.names import Names


def to_kohya(
    layers: Sequence[NewLayer], names: Names, dtype: torch.dtype | None, *, comfyui: bool = False
) -> dict[str, torch.Tensor]:
    """
    Spell layers as Kohya's trainer does, or as files for ComfyUI, whose modules and pairs have other names.

    Args:
        layers: What to write.
        names: The spelling of modules.
        dtype: To store in; None keeps each tensor's own. Alphas are always fp32, so that scales survive.
        comfyui: Whether modules are spelled with dots, as ComfyUI's own models name them.

    Returns:
        Tensors by key.

    Raises:
        SaveError: When a module has no name in this layout.
    """
    table: dict[str, torch.Tensor] = {}
    owners: dict[str, str] = {}
    spelled = names.comfyui if comfyui else names.kohya
    for layer in names.fused(layers, comfyui=comfyui):
        name = spelled(layer.place)
        if owners.setdefault(name, layer.place.component) != layer.place.component:
            raise SaveError(
                f"{layer.place}: names of this format do not tell {layer.place.component} from {owners[name]}; write one file for "
                "each, or use format='diffusers'"
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
            if comfyui:
                table |= _comfyui_pair(name, layer, scale, dtype)
            else:
                up, down = shaped_pair(layer, dtype)
                table[f"{name}.lora_up.weight"], table[f"{name}.lora_down.weight"] = up, down
                table[f"{name}.alpha"] = torch.tensor(layer.alpha, dtype=torch.float32)
            if layer.lengths is not None:
                keep = 0 if layer.by_output else 1
                table[f"{name}.dora_scale"] = shaped_lengths(layer, dtype, keep=keep)
        if layer.bias is not None:
            leaf = "b_norm" if layer.vector is not None else "diff_b"
            table[f"{name}.{leaf}"] = cast(layer.bias * scale, dtype, layer.place)
    return table


def _comfyui_pair(
    name: str, layer: NewLayer, scale: float, dtype: torch.dtype | None
) -> dict[str, torch.Tensor]:
    """
    Give the pair as trainers for ComfyUI write it: without an alpha, which not every reader of ``lora_A`` looks for.

    Where the scale would be rounded into halves it stays beside the pair.
    """
    wide = (dtype or layer.pair[0].dtype) in (torch.float32, torch.float64)
    exact = scale > 0 and math.frexp(scale)[0] == 0.5  # a power of two
    folds = wide or exact
    up = layer.pair[0] * scale if folds and scale != 1 else layer.pair[0]
    up, down = shaped_pair(dataclasses.replace(layer, up=up), dtype)
    table = {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
    if not folds:
        table[f"{name}.alpha"] = torch.tensor(layer.alpha, dtype=torch.float32)
    return table


def with_one_alpha(layers: Sequence[NewLayer]) -> list[NewLayer]:
    """
    Give all pairs one alpha, the commonest rank, with what that changes put into the ups.

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
    own = {"ss_output_name": title}
    if ranks:
        own["ss_network_dim"] = str(ranks.most_common(1)[0][0]) if len(ranks) == 1 else "Dynamic"
        own["ss_network_alpha"] = f"{alphas.most_common(1)[0][0]:g}" if len(alphas) == 1 else "Dynamic"
    others = any(layer.leaves or layer.vector is not None for layer in layers)
    own["ss_network_module"] = "lycoris.kohya" if others else "networks.lora"
    own["ss_network_args"] = json.dumps({"conv_dim": "Dynamic"}) if _has_kernels(layers) else "{}"
    spec = {"modelspec.sai_model_spec": "1.0.1", "modelspec.title": title}
    row = family_named(family)
    if row is not None and row.kohya is not None:
        version, v2, architecture = row.kohya
        own |= {"ss_base_model_version": version, "ss_v2": v2}
        spec["modelspec.architecture"] = architecture
        spec["modelspec.implementation"] = row.kohya_implementation
    stays = ("ss_network_module", "ss_network_args", "ss_base_model_version", "ss_v2", "ss_output_name")
    table = spec | own | {k: v for k, v in kept.items() if k not in own or k in stays}
    hashes = model_hashes(tensors, table)
    table["modelspec.hash_sha256"] = "0x" + hashes["sshs_model_hash"]
    return table | hashes


def _has_kernels(layers: Sequence[NewLayer]) -> bool:
    return any(max(layer.place.shape[2:], default=1) > 1 for layer in layers)
