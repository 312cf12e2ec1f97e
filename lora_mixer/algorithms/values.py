"""
Values that take the place of what the base has, at any weight but 0: nothing to scale, nothing to average.

PEFT's ``modules_to_save``, trained biases (``bias="lora_only"``, ``"all"``) and trainable tokens, ComfyUI's
``set_weight``, the norm scales of BFL's control LoRAs. In a mix the differences from the clean base add up like all
others, so two adapters that set the same weight give W + (V1 - W) + (V2 - W).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from lora_mixer.algorithms.base import LayerWeights
from lora_mixer.algorithms.full import WeightAndBias
from lora_mixer.algorithms.outputs import OutputChange
from lora_mixer.algorithms.peft_starts import is_from_base
from lora_mixer.errors import InvalidAdapterError
from lora_mixer.parsing.module_ends import ends, places
from lora_mixer.wording import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lora_mixer.algorithms.base import ModuleTensors


@dataclass(frozen=True)
class Values(WeightAndBias):
    """
    A weight, a bias or both.

    Attributes:
        is_remainder: Whether the weight is what training left of the base when it took a start out of it.
    """

    algorithm: ClassVar[str] = "set"

    is_remainder: bool = False

    @classmethod
    def from_parts(cls, parts: ModuleTensors) -> Values:
        """Take the tensors; what they fit is for the live module to say."""
        is_remainder = "down" in parts.beside and is_from_base(parts.config.get("init_lora_weights"))
        return cls(parts.tensors.get("set_weight"), parts.tensors.get("set_bias"), is_remainder)

    @property
    def took_from_base(self) -> bool:
        """Whether it is a remainder."""
        return self.is_remainder

    def delta(self, base: torch.Tensor, gain: float) -> torch.Tensor:
        """Return V - W, or zeros."""
        if self.weight is None or not gain:
            return base.new_zeros(base.shape)
        return self.weight.to(base).reshape(base.shape) - base

    def on_outputs(
        self, base: Callable[[], torch.Tensor], shape: tuple[int, ...], gain: float
    ) -> OutputChange:
        """Return the values' product in the place of the weight's."""
        if self.weight is None or not gain:
            return OutputChange()
        if len(shape) != 2:
            return super().on_outputs(base, shape, gain)
        rows = torch.full((shape[0],), -1.0, device=self.weight.device)
        return OutputChange(rows=rows, dense=self.weight.reshape(shape))

    def bias_delta(self, base: torch.Tensor | None, gain: float) -> torch.Tensor | None:
        """Return the way to the trained bias; one that the base lacks counts as zeros."""
        if self.bias is None or not gain:
            return None
        return self.bias.flatten().float() if base is None else self.bias.flatten().to(base) - base


@dataclass(frozen=True)
class Tokens(LayerWeights):
    """
    Rows of an embedding (PEFT's trainable tokens; its "delta" tensors are the new rows themselves).

    Attributes:
        vectors: (n, width).
        indices: The n token ids that they belong to.
    """

    algorithm: ClassVar[str] = "tokens"
    reaches_twins: ClassVar[bool] = True

    vectors: torch.Tensor
    indices: torch.Tensor

    @classmethod
    def from_parts(cls, parts: ModuleTensors) -> Tokens:
        """
        Take the rows, and their token ids from the configuration.

        Raises:
            InvalidAdapterError: When the configuration does not name as many tokens as there are rows.
        """
        (rows,) = parts.need("tokens")
        config = parts.config
        table: Any = config.get("trainable_token_indices", config.get("token_indices"))
        if isinstance(table, dict):
            there = config.once(_token_places)
            named = [name for name in ends(parts.module) if name in there]
            table = table[min(named, key=there.__getitem__)] if named else None
        fits = isinstance(table, list) and rows.ndim == 2 and len(table) == rows.shape[0]
        if not fits or not all(type(i) is int and 0 <= i < 2**31 for i in table):
            raise InvalidAdapterError(
                f"trained tokens of shape {tuple(rows.shape)}, and the configuration's token indices are "
                f"{shown(table)}; expected one id for each row",
                key=parts.label,
            )
        return cls(rows, torch.tensor(table, dtype=torch.long))

    def misfit(self, shape: tuple[int, ...]) -> str | None:
        """Say why these rows do not belong to a weight of ``shape``, or None."""
        if len(shape) != 2 or shape[1] != self.vectors.shape[1]:
            return f"rows of {self.vectors.shape[1]} values, the module has {shape}"
        last = int(self.indices.max())
        if last >= shape[0]:
            return f"token {last}, the module has {shape[0]}: add the new tokens to the tokenizer and the text encoder first"
        return None

    def delta(self, base: torch.Tensor, gain: float) -> torch.Tensor:
        """Return the way from the base's rows to the trained ones."""
        change = base.new_zeros(base.shape)
        if gain:
            indices = self.indices.to(base.device)
            change[indices] = self.vectors.to(base) - base[indices]
        return change


def _token_places(config: Mapping[str, Any]) -> dict[str, int]:
    return places(config.get("trainable_token_indices", config.get("token_indices")))
