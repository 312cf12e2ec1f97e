"""
An adapter's tensors as parameters, by the keys of its file.

The parameters are the adapter's tensors from first to last: what a kind makes of a tensor, such as the transpose of an
embedding's pair, is a view of the parameter, so an optimizer's step is seen at once and gradients reach it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from lora_mixer.engines.placement import compute_device
from lora_mixer.errors import UnsupportedAdapterError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from lora_mixer.binding import BoundLayer

_DROPOUTS = ("rank_dropout", "module_dropout")


@dataclass(frozen=True)
class Trained:
    """
    What is trained of an adapter.

    Attributes:
        parameters: By the keys of the file.
        dropout: The share of a pair's inputs that training drops.
        others: The file's tensors that are not trained, such as those of the base saved beside an embedding's pair.
        config: The file's PEFT configuration; empty where there is none.
    """

    parameters: Mapping[str, nn.Parameter]
    dropout: float = 0.0
    others: Mapping[str, torch.Tensor] = field(default_factory=dict)
    config: Mapping[str, object] = field(default_factory=dict)


def trained(
    layers: Sequence[BoundLayer],
    tensors: Mapping[str, torch.Tensor],
    config: Mapping[str, object],
    label: str,
) -> tuple[tuple[BoundLayer, ...], Trained]:
    """
    Put parameters in the place of an adapter's tensors, where the layers compute and in fp32 at least.

    Args:
        layers: The bound layers, whose tensors are those of ``tensors`` or views of them.
        tensors: The file's tensors by key.
        config: Its configuration.
        label: What to call it in messages.

    Returns:
        The layers, and what is trained.

    Raises:
        UnsupportedAdapterError: When a layer's tensors were made from several of the file's, or the configuration asks for
            something that is not trained here.
    """
    odd = [name for name in _DROPOUTS if config.get(name)]
    if odd or any(x.siblings is not None or x.widening is not None or x.weights.beside_only for x in layers):
        what = (
            f"{', '.join(odd)}"
            if odd
            else "layers that are rows of several modules, wider than the model's, or over all inputs of one in groups"
        )
        raise UnsupportedAdapterError(
            f"{label}: {what}: this cannot be trained by this version; nothing was changed"
        )
    by_place = {tensor.data_ptr(): key for key, tensor in tensors.items() if tensor.numel()}
    parameters: dict[str, nn.Parameter] = {}

    def mover(device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
        def move(tensor: torch.Tensor) -> torch.Tensor:
            if not tensor.is_floating_point() or not tensor.numel():
                return tensor.to(device)
            key = by_place.get(tensor.data_ptr())
            if key is None or tensor.numel() != tensors[key].numel():
                raise UnsupportedAdapterError(
                    f"{label}: a tensor of shape {tuple(tensor.shape)} is made from others of the file, so that it cannot be "
                    "trained; nothing was changed"
                )
            if ".base_layer." in key and key.rpartition(".")[0].endswith(".base_layer"):
                return tensor.to(device)  # the base's own, saved beside the adapter
            if key not in parameters:
                own = tensors[key].to(device, torch.promote_types(tensors[key].dtype, torch.float32))
                parameters[key] = nn.Parameter(own.clone())
            held = parameters[key]
            same = tensor.shape == held.shape and tensor.stride() == held.stride()
            return held if same else held.as_strided(tensor.shape, tensor.stride())

        return move

    with torch.inference_mode(mode=False), torch.enable_grad():
        moved = tuple(
            replace(layer, weights=layer.weights.map(mover(compute_device(layer.live.module))))
            for layer in layers
        )
    dropout = config.get("lora_dropout") or 0.0
    ordered = {key: parameters[key] for key in tensors if key in parameters}
    share = float(dropout) if isinstance(dropout, int | float) else 0.0
    others = {key: tensor for key, tensor in tensors.items() if key not in ordered}
    return moved, Trained(ordered, share, others, dict(config))
