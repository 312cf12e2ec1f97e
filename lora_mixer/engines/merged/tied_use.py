"""
One of the modules that share a parameter, such as a lookup table and the head of a language model.

An adapter names a module, and its twin stays what it is, so the change cannot go into the parameter that both have. The
module computes with a weight of its own while a mix is in effect: the parameter's clean base and the mix. Nothing is put
into the module, and it has the parameter that it had, so keys, ties and other threads' calls see what was there before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from lora_mixer.engines.merged.kept_weight import OVERWRITTEN, KeepBase, KeptWeight
from lora_mixer.engines.offloaded import value_of
from lora_mixer.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn


class TiedUse(KeptWeight):
    """
    A module's own weight in the place of a parameter that it shares.

    Args:
        name: Component and path, for messages.
        module: The module.
        attribute: ``weight``.
        keep_on: Where the parameter's base is kept.
        shared: The parameter, with its base.
    """

    def __init__(
        self, name: str, module: nn.Module, attribute: str, keep_on: KeepBase, shared: KeptWeight
    ) -> None:
        """Use the parameter until something is written."""
        super().__init__(name, module, attribute, keep_on)
        self.shared = shared
        self._own: torch.Tensor | None = None

    @property
    def live(self) -> torch.Tensor:
        """The module's own weight for writing; the parameter's while there is none."""
        return super().live if self._own is None else self._own

    def clean(self) -> torch.Tensor:
        """Return the parameter's clean base."""
        return self.shared.clean()

    def keep(self) -> torch.Tensor:
        """Keep the parameter's base, make room for the module's own weight, and return the base."""
        base = self.shared.keep()
        live = super().live
        if self._own is None or (self._own.dtype, self._own.device) != (live.dtype, live.device):
            self._own = base.to(live.device, copy=True)
        return base

    def problem(self) -> Problem | None:
        """Say why a mix in the module's weight cannot be changed now, or None."""
        if self.blended and self._overwritten(self.parameter):
            return Problem(self.name, OVERWRITTEN)
        return super().problem()

    @property
    def writer(self) -> KeptWeight:
        """The parameter, for all its modules."""
        return self.shared

    def stamp(self) -> None:
        """Remember the parameter, which is not what is written."""
        super().stamp()
        self.counted = None

    def let_go(self) -> None:
        """Use the parameter again."""
        self._own = None
        self.blended = False

    def rebase(self) -> None:
        """Use the parameter again, whatever it holds."""
        self.let_go()
        super().rebase()


class OwnWeight:
    """
    A forward hook that computes a module's output with its own weight.

    The module's class computes it, on a stand-in that differs in the one tensor, so that scaled lookups and layers of other
    libraries stay what they are. It costs the module's product a second time.

    Args:
        use: The module and its weight.
    """

    def __init__(self, use: TiedUse) -> None:
        """Hold the use."""
        self._use = use

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Return the output with the own weight, where the output is and in the type that the parameter has by now."""
        weight = self._use.live.to(self._use.parameter.dtype)
        return computed_with(module, {self._use.attribute: weight}, args, output)


def computed_with(
    module: nn.Module, tensors: Mapping[str, torch.Tensor], args: Sequence[Any], output: Any
) -> Any:
    """
    Return what a module's class computes with other tensors, where its own output is; offloading has moved inputs there for it alone.

    Args:
        module: The module, whose ``forward`` is over: what it has of its own may be elsewhere by now.
        tensors: In the place of those of these names.
        args: The inputs.
        output: What the module has computed.
    """
    device = output.device if isinstance(output, torch.Tensor) else None
    table = dict(tensors)
    for name in (*module._parameters, *module._buffers):  # noqa: SLF001
        if name not in table and (tensor := value_of(module, name)) is not None:
            table[name] = tensor
    if device is not None:
        table = {name: tensor.to(device) for name, tensor in table.items()}
        args = [arg.to(device) if isinstance(arg, torch.Tensor) else arg for arg in args]
    return standing_in(module, table).forward(*args)


def standing_in(module: nn.Module, tensors: Mapping[str, torch.Tensor]) -> nn.Module:
    """Return a module that has all that another one has but for some tensors; neither owns anything of the other's."""
    kind = type(module)
    twin: nn.Module = object.__new__(kind)
    attributes = {key: value for key, value in vars(module).items() if key != "forward"}
    attributes["_parameters"] = {**module._parameters, **tensors}  # noqa: SLF001 -- no registration, no keys
    vars(twin).update(attributes)
    return twin
