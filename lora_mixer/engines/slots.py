"""One live parameter that adapters change, and its kept base."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch

if TYPE_CHECKING:
    from torch import nn

BaseDevice = Literal["device", "host"]
"""Where kept bases live: beside the weights, or in host memory (pinned when there is a GPU)."""


class Slot:
    """
    A parameter by its place in the module tree, with the clean base once something is to be written.

    Args:
        name: Component and path, for messages.
        module: The module that owns it.
        attribute: ``weight`` or ``bias``.
        keep_on: Where the base is kept.
    """

    def __init__(self, name: str, module: nn.Module, attribute: str, keep_on: BaseDevice) -> None:
        """Note the place; nothing is copied yet."""
        self.name = name
        self.module = module
        self.attribute = attribute
        self.keep_on = keep_on
        self.base: torch.Tensor | None = None
        self.blended = False
        self._version = 0

    @property
    def parameter(self) -> torch.Tensor:
        """The live parameter, looked up anew: ``.to`` and offloading may replace it."""
        parameter: torch.Tensor = getattr(self.module, self.attribute)
        return parameter

    @property
    def live(self) -> torch.Tensor:
        """The live values for writing; writes through here leave the parameter's version counter alone."""
        return self.parameter.data

    def problem(self) -> str | None:
        """Say why the parameter cannot be worked on now, or None."""
        reason = unsupported(self.parameter)
        if reason:
            return f"{self.name}: {reason}"
        if self.base is not None and self._same_place() and _version(self.parameter) != self._version:
            return (
                f"{self.name}: changed by something else since its base was kept; call mixer.rebase() to take what is "
                "there now as the new base, or mixer.restore_base() to put the kept one back"
            )
        if self.base is not None and self.parameter.shape != self.base.shape:
            return f"{self.name}: has another shape than its kept base; call mixer.rebase()"
        return None

    def _same_place(self) -> bool:
        return self.base is not None and self.parameter.dtype == self.base.dtype

    def keep(self) -> torch.Tensor:
        """Keep the base if it is not kept yet, follow the parameter's dtype and device, and return it."""
        live = self.live
        if self.base is None:
            self.base = self._copy(live)
            self._version = _version(self.parameter)
        elif self.base.dtype != live.dtype:
            # .to(dtype) rounded the mix; rounding the base gives what .to(dtype) makes of a pipeline without adapters
            self.base = self.base.to(live.dtype)
            self._version = _version(self.parameter)
        if self.keep_on == "device" and self.base.device != live.device:
            self.base = self.base.to(live.device)
        return self.base

    def _copy(self, live: torch.Tensor) -> torch.Tensor:
        if self.keep_on == "device" or live.device.type == "cpu":
            return live.detach().clone()
        host = torch.empty_like(live, device="cpu", pin_memory=True)
        return host.copy_(live)

    def restore(self) -> None:
        """Write the base back, bit for bit."""
        if self.base is not None and self.blended:
            self.live.copy_(self.keep())
            self.blended = False

    def release(self) -> None:
        """Forget the base; the parameter must hold it by now."""
        self.base = None

    def rebase(self) -> None:
        """Take what the parameter holds now as the base."""
        self.base = None
        self.blended = False


def unsupported(parameter: torch.Tensor) -> str | None:
    """Say why a parameter's values cannot be rewritten in place, or None if they can."""
    if parameter.device.type == "meta":
        return (
            "its weights are on the meta device (sequential CPU offload, device_map or low_cpu_mem_usage); load adapters "
            "before offloading, or use enable_model_cpu_offload(), which keeps weights in memory"
        )
    kind = type(parameter.data)
    if kind is not torch.Tensor or parameter.is_quantized or not parameter.is_floating_point():
        kept = f"{type(parameter).__name__} of {parameter.dtype}"
        return f"its weights are quantised ({kept}); load the base unquantised (float16, bfloat16 or float32)"
    if parameter.dtype.itemsize == 1:
        return f"its weights are stored as {parameter.dtype}; load the base as float16, bfloat16 or float32"
    return None


def _version(parameter: torch.Tensor) -> int:
    return 0 if parameter.is_inference() else parameter._version  # noqa: SLF001 -- the public way to see writes
