"""
Scales that diffusers' callers pass: ``cross_attention_kwargs={"scale": s}`` multiplies the whole mix for that call.

diffusers has such a scale multiply all adapters of PEFT in a model while that model is called, in text encoders by
``encode_prompt``'s ``lora_scale``. It is read where the component is called, from outside of what ``torch.compile`` made of
it, so it does not matter which pipeline or loop calls. Nothing is done at a call without a scale but looking for one.
"""

from __future__ import annotations

import inspect
import math
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from lora_mixer.engines.compiling import outside
from lora_mixer.engines.denoiser.caller import calling
from lora_mixer.errors import MixError
from lora_mixer.interrupts import Interruptible, uninterrupted
from lora_mixer.wording import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager

    from lora_mixer.engines.denoiser.turns import Turns

    Read = Callable[[tuple[Any, ...], Mapping[str, Any]], float]
    Hold = Callable[[str, float], AbstractContextManager[None]]
    Guarded = Callable[[str, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]

NAMES = ("cross_attention_kwargs", "joint_attention_kwargs", "attention_kwargs")
"""Arguments of denoisers in which diffusers passes a scale."""


def scale_of(value: Any, name: str) -> float:
    """
    Read a scale; none is 1.

    Raises:
        MixError: When it is not a finite number.

    Example:
        >>> scale_of(0.5, "lora_scale"), scale_of(None, "lora_scale")
        (0.5, 1.0)
    """
    if value is None:
        return 1.0
    number = value.item() if isinstance(value, torch.Tensor) and value.numel() == 1 else value
    try:
        scale = float(number)
    except (TypeError, ValueError, OverflowError):
        scale = math.nan
    if isinstance(number, str | bytes) or not math.isfinite(scale):
        raise MixError(
            f"{name}: the scale of a mix must be a finite number, got {shown(value)}", argument=name
        )
    return scale


class ScaleArgument:
    """
    Reads the scale from the arguments of a denoiser.

    Args:
        kind: The denoiser's class, whose ``forward`` says in which place the arguments stand.
    """

    def __init__(self, kind: type) -> None:
        """Find the places."""
        forward: Any = kind.forward  # type: ignore[attr-defined]
        names = list(inspect.signature(forward).parameters)[1:]  # without self
        self._places = [(name, names.index(name) if name in names else -1) for name in NAMES]

    def __call__(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> float:
        """Return the scale; 1 where there is none."""
        for name, place in self._places:
            given = args[place] if 0 <= place < len(args) else kwargs.get(name)
            if isinstance(given, dict) and "scale" in given:
                scale = given["scale"]
                if not isinstance(scale, float) or scale != 1.0:
                    return scale_of(scale, f"{name}={{'scale': ...}}")
        return 1.0


class ScaleOfPrompts:
    """
    Reads the ``lora_scale`` that the pipeline which is calling a text encoder was given.

    Args:
        part: The text encoder's name.
    """

    def __init__(self, part: str) -> None:
        """Note the name."""
        self._part = part

    def __call__(self, _args: tuple[Any, ...], _kwargs: Mapping[str, Any]) -> float:
        """Return the scale; 1 where there is none. Compiled code cannot look at who is calling: ``encode_prompt`` tells."""
        if torch.compiler.is_compiling():
            return 1.0
        caller = calling(self._part)
        return 1.0 if caller.pipe is None else scale_of(caller.local("lora_scale"), "lora_scale")


class Scales:
    """The scales in effect, by component, and who may put one into effect."""

    def __init__(self) -> None:
        """Start with none."""
        self.by_part: dict[str, float] = {}
        self._lock = threading.RLock()

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy has: no call of it is running."""
        return {"by_part": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Start with none."""
        vars(self).update(state, _lock=threading.RLock())

    def of(self, part: str) -> float:
        """Return what all gains in a component are multiplied by now, beside the mix."""
        return self.by_part.get(part, 1.0)

    @contextmanager
    def hold(self, part: str, scale: float, show: Callable[[str], None]) -> Iterator[None]:
        """
        Hold a scale for a block, one thread after the other; inside of itself it counts once.

        Args:
            part: The component.
            scale: The scale.
            show: Puts what the component has into effect anew.

        Raises:
            MixError: While a CUDA graph is recorded outside of ``capture()``: it would keep the scale.
        """
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            raise MixError(
                f"a scale of {scale} for {part} while a CUDA graph is recorded, which would keep it for every replay; set a "
                "mix with these weights, or record it by mixer.capture()",
                component=part,
            )
        with self._lock:
            before = self.of(part)
            if before == scale:
                yield
                return

            @uninterrupted
            def begin() -> None:
                try:
                    self.by_part[part] = scale
                    show(part)
                except BaseException as error:
                    end(error)
                    raise

            @uninterrupted
            def end(_: BaseException | None) -> None:
                self.by_part[part] = before
                show(part)

            with Interruptible(begin, end):
                yield


class ScaledCall:
    """
    Makes the calls of a component: one with a scale is made under it.

    Args:
        part: The component's name.
        read: Reads the scale of a call.
        hold: Holds a scale for a block.
        turns: Says when a call may be made, beside those of other threads.
        guarded: Makes a call of a component, with a look before its gradients are computed.
    """

    def __init__(self, part: str, read: Read, hold: Hold, turns: Turns, guarded: Guarded) -> None:
        """Hold them all."""
        self._part, self._read, self._hold, self._turns = part, read, hold, turns
        self._guarded = guarded

    def __call__(self, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the component."""
        scale = self._read(args, kwargs)
        if scale != 1.0:
            return self._scaled(scale, call, args, kwargs)
        if torch.compiler.is_compiling():  # code that is one graph has no room to wait in
            return call(*args, **kwargs)
        with self._turns.taken(alone=self._turns.is_by_call):
            return self._guarded(self._part, call, args, kwargs)

    @outside
    def _scaled(
        self, scale: float, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if torch.is_grad_enabled() and any(map(_asks_for_gradients, (*args, *kwargs.values()))):
            raise MixError(
                f"a scale of {scale} for {self._part} in a call whose inputs ask for gradients: it is in effect for the call alone, "
                "and the gradients would be those of another mix; set a mix with the weights times the scale, and leave the "
                "scale out",
                component=self._part,
            )
        with self._turns.taken(alone=True), self._hold(self._part, scale):
            return self._guarded(self._part, call, args, kwargs)


def _asks_for_gradients(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.requires_grad
