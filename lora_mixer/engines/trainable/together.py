"""
What all layers of a component need of their adapters' factors at one call of it, made in a few operations.

A call of the component begins anew; the first of its layers has it all made, and each takes its own once. Whoever asks again (a layer
that is called twice, blocks that are computed again in the backward pass, a part that is called by itself) makes its own. So what is
made never outlives an optimizer's step: it is of this call, of parameters that have not changed since, by their version counters and
by the steps of all optimizers, since fused ones raise no counter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from lora_mixer.engines.trainable.joined import made_ready

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from lora_mixer.engines.trainable.joined import ReadyTerms, Terms


class Joining(Protocol):
    """What stands beside a layer and is one operation with it."""

    def terms(self) -> Terms | None:
        """Return what is one operation with the layer, or None."""

    def versions(self) -> list[float]:
        """Return how often each of the tensors has been written to, and what all is multiplied by."""


class _Steps:
    """Counts the steps of all optimizers from when it is first needed."""

    count = 0
    _is_counting = False

    @classmethod
    def now(cls) -> int:
        if not cls._is_counting:
            register_optimizer_step_post_hook(cls._stepped)
            cls._is_counting = True
        return cls.count

    @classmethod
    def _stepped(cls, *_: Any) -> None:
        cls.count += 1


class _Made(NamedTuple):
    """One layer's part."""

    terms: Terms
    ready: ReadyTerms
    versions: list[float]


class Together:
    """
    A hook before calls of a component, and what is made for the call.

    Args:
        layers: What stands beside the component's layers.
    """

    def __init__(self, layers: Sequence[Joining]) -> None:
        """Start outside of a call."""
        self._layers = layers
        self._is_new = False
        self._made: dict[int, _Made] = {}
        self._of: tuple[object, ...] = ()

    def __call__(self, _module: nn.Module, _args: Any) -> None:
        """Begin a call of the component."""
        if not torch.compiler.is_compiling():
            self._is_new = True
            self._made = {}

    def take(self, layer: Joining, kind: torch.dtype) -> tuple[Terms, ReadyTerms] | None:
        """
        Return what a layer adds and computes with, once for each call of the component; None where it has to make its own.

        Args:
            layer: Who asks.
            kind: The type of its inputs.
        """
        if self._is_new:
            self._is_new = False
            self._make(kind)
        made = self._made.pop(id(layer), None)
        if made is None or self._of != _circumstances(kind):
            return None
        return (made.terms, made.ready) if made.versions == layer.versions() else None

    def _make(self, kind: torch.dtype) -> None:
        """Make what all layers need for a call: gradients go through the terms, and none through what is made ready of them."""
        asking = [(layer, terms) for layer in self._layers if (terms := layer.terms()) is not None]
        self._of = _circumstances(kind)
        if not asking:
            return
        with torch.no_grad(), torch.autocast(asking[0][1].down.device.type, enabled=False):
            ready = made_ready([terms for _, terms in asking], kind)
        self._made = {
            id(layer): _Made(terms, part, layer.versions())
            for (layer, terms), part in zip(asking, ready, strict=True)
        }


def _circumstances(kind: torch.dtype) -> tuple[object, ...]:
    """Return what must not have changed since something was made."""
    return kind, torch.is_grad_enabled(), torch.is_inference_mode_enabled(), _Steps.now()
