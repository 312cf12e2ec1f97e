"""What a low-rank pair is: an ordinary one, one that started from a part of the base, or one for a bare parameter or a layer in groups."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_mixer.algorithms.experts import ParameterPair
from lora_mixer.algorithms.peft_starts import is_from_base
from lora_mixer.algorithms.started import Started
from lora_mixer.algorithms.ungrouped import pair_of_any_groups
from lora_mixer.errors import UnsupportedAdapterError

if TYPE_CHECKING:
    from lora_mixer.algorithms.base import LayerWeights, ModuleTensors


def pair_from_parts(parts: ModuleTensors) -> LayerWeights:
    """
    Build the kind of pair that the configuration says.

    Raises:
        UnsupportedAdapterError: When it asks for KaSA, whose tensors are not all there.
    """
    start: Any = parts.config.get("init_lora_weights")
    # PEFT starts lookup tables as usual; and where the file has the weight that training went on from, the start is out of it
    is_plain = "embedding_down" in parts.tensors or "set_weight" in parts.beside
    if parts.config.get("kasa_config"):
        raise UnsupportedAdapterError(
            "KaSA without the diagonal between its halves (lora_diag)", key=parts.label
        )
    if is_from_base(start) and not is_plain:
        return Started.from_parts(parts, start)
    if parts.config.get("target_parameters"):
        return ParameterPair.from_parts_for(parts, parts.parameters)
    return pair_of_any_groups(parts)
