"""
IA3: every input or every output of a module is multiplied by a learnt number (arXiv:2205.05638).

LyCORIS stores the change w: W' = W * (1 + gain * w), over W's columns with ``on_input``, else over its rows, the bias
untouched. PEFT stores the number l itself: W' = W * (1 + gain * (l - 1)), over columns in ``feedforward_modules``, else
over rows, where the bias is multiplied, too. PEFT knows no weights but 1; between, this goes straight.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from lora_mixer.algorithms.base import LayerWeights, all_equal, take_rows
from lora_mixer.algorithms.outputs import OutputChange
from lora_mixer.errors import InvalidAdapterError
from lora_mixer.parsing.module_patterns import PatternTooHardError, compiled
from lora_mixer.wording import shown

_STEPS = 1_000_000_000  # of all matches of a file, at the most that its pattern may cost

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch

    from lora_mixer.algorithms.base import ModuleTensors, Ranges


@dataclass(frozen=True)
class IA3(LayerWeights):
    """
    One number for each input or output.

    Attributes:
        vector: (channels,), (channels, 1) or (1, channels, ...).
        neutral: The value that changes nothing: 0 in LyCORIS, 1 in PEFT.
        on_input: Whether inputs are multiplied; None where only the live module can tell (the file does not say).
        with_bias: Whether the bias is multiplied with the outputs.
    """

    algorithm: ClassVar[str] = "ia3"

    vector: torch.Tensor
    neutral: float
    on_input: bool | None
    with_bias: bool

    @classmethod
    def from_parts(cls, parts: ModuleTensors) -> IA3:
        """
        Take the vector and the side that it works on.

        Raises:
            InvalidAdapterError: When the vector is missing or no vector.
        """
        if "ia3_l" in parts.tensors:
            (vector,) = parts.need("ia3_l")
            side = _peft_side(vector, parts)
            scaling = cls(vector, 1.0, side, with_bias=True)
        else:
            vector, flag = parts.need("ia3_weight", "on_input")
            if flag.numel() != 1:
                raise InvalidAdapterError(
                    f"on_input has shape {tuple(flag.shape)}, expected one number, 0 or 1", key=parts.label
                )
            scaling = cls(vector, 0.0, bool(flag.item()), with_bias=False)
        if vector.numel() != max(vector.shape, default=0):
            raise parts.broken("expected one number for each channel")
        return scaling

    def _columns(self, shape: tuple[int, ...]) -> bool:
        if self.on_input is not None:
            return self.on_input
        return self.vector.numel() != shape[0]  # outputs are the rule, inputs the exception

    def take(self, ranges: Ranges, total: int) -> LayerWeights:
        """Return the numbers of these outputs; those of inputs stay."""
        if self.on_input or self.vector.numel() != total:
            return replace(self, on_input=True)
        return replace(self, vector=take_rows(self.vector.flatten(), ranges), on_input=False)

    def misfit(self, shape: tuple[int, ...]) -> str | None:
        """Say why this cannot change a weight of ``shape``, or None."""
        columns = self._columns(shape)
        width = shape[1] if columns and len(shape) > 1 else shape[0]
        if self.vector.numel() == width:
            return None
        side = "inputs" if columns else "outputs"
        return f"made for {self.vector.numel()} {side}, the module has {width}"

    def _change(self, like: torch.Tensor, gain: float) -> torch.Tensor:
        return (self.vector.flatten().to(like) - self.neutral) * gain

    def is_zero(self) -> bool:
        """Say whether every factor is the neutral one."""
        return all_equal(self.vector, self.neutral)

    def delta(self, base: torch.Tensor, gain: float) -> torch.Tensor:
        """Return W * gain * w over columns or rows."""
        change = self._change(base, gain)
        if self._columns(tuple(base.shape)):
            return base * change.view(-1, *[1] * (base.ndim - 2))
        return base * change.view(-1, *[1] * (base.ndim - 1))

    def on_outputs(
        self, base: Callable[[], torch.Tensor], shape: tuple[int, ...], gain: float
    ) -> OutputChange:
        """Return what is multiplied: outputs or inputs."""
        change = self._change(self.vector if self.vector.dtype.itemsize > 2 else self.vector.float(), gain)
        if len(shape) != 2:
            return super().on_outputs(base, shape, gain)
        return OutputChange(columns=change) if self._columns(shape) else OutputChange(rows=change)

    def bias_delta(self, base: torch.Tensor | None, gain: float) -> torch.Tensor | None:
        """Return b * gain * (l - 1) for PEFT's outputs."""
        if base is None or not self.with_bias or self.on_input or self.vector.numel() != base.numel():
            return None
        return base * self._change(base, gain)


def _peft_side(vector: torch.Tensor, parts: ModuleTensors) -> bool | None:
    if vector.ndim == 2 and vector.numel() > 1:  # linears: (out, 1) or (1, in)
        return vector.shape[0] == 1
    names: Any = parts.config.get("feedforward_modules")
    if names is None:
        return None if not parts.config else False
    try:
        return parts.config.once(_Feedforward)(parts.module)
    except InvalidAdapterError as error:
        raise InvalidAdapterError(error.args[0], key=parts.label[:200]) from None


class _Feedforward:
    """The modules whose inputs are multiplied, by ends of their names or by a regular expression."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        names: Any = config["feedforward_modules"]
        self._names: frozenset[str] = frozenset()
        self._pattern, self._power, self._spent = "", 0, 0
        if isinstance(names, list):
            self._names = frozenset(map(str, names))
        elif not isinstance(names, str):
            raise InvalidAdapterError(
                f"feedforward_modules is {shown(names)}, expected a list of names or a regular expression"
            )
        else:
            try:
                pattern = compiled(names)
            except PatternTooHardError as error:
                raise InvalidAdapterError(f"feedforward_modules: {error}") from None
            if pattern is None:
                raise InvalidAdapterError(f"feedforward_modules is {names[:200]!r}, no regular expression")
            self._pattern, self._power = names, pattern[1]
        self._lengths = {len(name) for name in self._names}

    def __call__(self, module: str) -> bool:
        """Say whether a module is one of them."""
        if not self._power:
            return any(module[len(module) - n :] in self._names for n in self._lengths if n <= len(module))
        self._spent += len(module) ** self._power
        if self._spent > _STEPS:
            raise InvalidAdapterError(
                f"feedforward_modules is {self._pattern[:200]!r}, too much work for names of such a length"
            )
        return re.fullmatch(self._pattern, module) is not None
