"""Modes of torch for a block, which are as before afterwards although Ctrl-C comes where the block ends."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

import torch

from lora_mixer.interrupts import Interruptible, uninterrupted

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

_PRECISIONS = (
    "allow_tf32",
    "allow_fp16_reduced_precision_reduction",
    "allow_bf16_reduced_precision_reduction",
)
_CASTING = tuple(kind for kind in ("cpu", "cuda", "mps", "xpu") if torch.amp.is_autocast_available(kind))
"""Devices for which autocast may be on."""


def _held(*guards: Callable[[], AbstractContextManager[object]]) -> Interruptible[None]:
    """
    Hold guards for a block.

    Ctrl-C between the end of a block and what a guard puts back would leave the mode on; a guard that a traceback holds puts
    it back when that goes, in the middle of something else.
    """
    stack = ExitStack()

    @uninterrupted
    def begin() -> None:
        for guard in guards:
            stack.enter_context(guard())

    @uninterrupted
    def end(_: BaseException | None) -> None:
        stack.close()

    return Interruptible(begin, end)


def lasting(*, gradients: bool = False) -> Interruptible[None]:
    """
    Make tensors that may be used in any mode, whatever the caller's is.

    Example:
        >>> with torch.inference_mode(), lasting():
        ...     torch.ones(1).is_inference()
        False
    """
    return _held(partial(torch.inference_mode, mode=False), partial(torch.set_grad_enabled, gradients))


def writing(live: torch.Tensor) -> Interruptible[None]:
    """Allow writing to a tensor: one made in inference mode may only be written in that mode, others without gradients."""
    return _held(torch.inference_mode if live.is_inference() else torch.no_grad)


def exact_matmul() -> Interruptible[None]:
    """Keep TF32, half-precision accumulators and autocast out of products, whatever the process has set."""
    matmul = torch.backends.cuda.matmul
    kept: dict[str, bool] = {}
    cast: list[str] = []

    @uninterrupted
    def begin() -> None:
        for name in _PRECISIONS:
            kept[name] = getattr(matmul, name)
            setattr(matmul, name, False)
        for device in _CASTING:
            if torch.is_autocast_enabled(device):
                cast.append(device)
                torch.set_autocast_enabled(device, False)

    @uninterrupted
    def end(_: BaseException | None) -> None:
        for name, value in kept.items():
            setattr(matmul, name, value)
        for device in cast:
            torch.set_autocast_enabled(device, True)

    return Interruptible(begin, end)
