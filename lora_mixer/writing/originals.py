"""
What PEFT wrote, to be written again: the tensors by their keys, beside a configuration with all of its fields.

Layers hold the tensors of a file, or views of them, so nothing is kept twice: only where each tensor stands is, and those that
no layer has as they were.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from lora_mixer.binding import BoundLayer


@dataclass(frozen=True)
class Original:
    """
    How an adapter of PEFT was read.

    Attributes:
        config: Its configuration.
        shapes: The shape of each tensor by key, in the file's order.
        places: Of those that layers hold: which layer, and which of its tensors.
        others: Those that no layer holds as they were.
    """

    config: Mapping[str, object]
    shapes: Mapping[str, torch.Size]
    places: Mapping[str, tuple[int, int]]
    others: Mapping[str, torch.Tensor]

    @classmethod
    def of(
        cls, config: Mapping[str, object], tensors: Mapping[str, torch.Tensor], layers: Sequence[BoundLayer]
    ) -> Original:
        """
        Find the tensors of a file among those of its layers.

        Args:
            config: The configuration.
            tensors: By key.
            layers: As bound, before their tensors are copied.
        """
        held = {
            tensor.data_ptr(): (number, place, tensor)
            for number, layer in enumerate(layers)
            for place, tensor in enumerate(layer.weights.tensors())
            if tensor.numel()
        }
        places: dict[str, tuple[int, int]] = {}
        for key, tensor in tensors.items():
            number, place, original = held.get(tensor.data_ptr(), (0, 0, None))
            if original is not None and original.dtype == tensor.dtype and _is_same(original, tensor.shape):
                places[key] = number, place
        others = {key: tensor.clone() for key, tensor in tensors.items() if key not in places}
        return cls(dict(config), {key: t.shape for key, t in tensors.items()}, places, others)

    def tensors(self, layers: Sequence[BoundLayer]) -> dict[str, torch.Tensor]:
        """
        Return the file's tensors by key.

        Args:
            layers: The layers, in the order that they were bound in.
        """
        tensors: dict[str, torch.Tensor] = {}
        for key, shape in self.shapes.items():
            if key not in self.places:
                tensors[key] = self.others[key]
                continue
            number, place = self.places[key]
            tensor = list(layers[number].weights.tensors())[place]
            tensors[key] = tensor if tensor.shape == shape else tensor.T.contiguous()
        return tensors


def _is_same(tensor: torch.Tensor, shape: torch.Size) -> bool:
    """Whether a tensor is a file's as it is, or its transpose."""
    return (tensor.shape == shape and tensor.is_contiguous()) or (
        tensor.ndim == 2 and tensor.T.shape == shape and tensor.T.is_contiguous()
    )
