"""
What is in effect in each component, for gradients: those of a call are right only while that is what it was at the call.

Backward passes read weights, and what stands beside them, anew: what autograd has saved of them is no copy, and checkpointing
computes whole blocks once more. Whoever changes a mix in between gets an error by name, before any of that call's gradients is
computed; a mix that is back by then, bit for bit, is the same.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.utils import _pytree as pytree

from lora_mixer.engines.denoiser.scaled import Scales
from lora_mixer.engines.engine import Call
from lora_mixer.errors import PipelineStateError
from lora_mixer.mixes import TEXT_ENCODERS
from lora_mixer.problem import Remedy

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from lora_mixer.binding.layers import BoundLayers
    from lora_mixer.engines.engine import Effect, Engine, Shares
    from lora_mixer.engines.gains import MixGains

_CHECKPOINT = "torch.utils.checkpoint"

_JIT: Any = torch.jit  # its words have no types


@dataclass(frozen=True, eq=False)
class _Mixed:
    """Mixes on the layers of adapters, and which engine has which of them; what others load since is not in it."""

    mixes: Sequence[MixGains]
    layers: Mapping[str, BoundLayers]
    served: Mapping[str, Shares]

    @classmethod
    def of(cls, effect: Effect) -> _Mixed:
        layers = {name: effect.layers[name] for name in effect.setting.names}
        mixes = [replace(mix, layers=layers, scales=Scales()) for mix in effect.mixes]
        return cls(mixes, layers, effect.served)


@dataclass(frozen=True, eq=False)
class _Moment:
    """What is in effect in a component at one time, and how often tensors beside its layers were written until then."""

    part: str
    mixed: _Mixed | None
    call: Call
    scale: float
    writes: Sequence[tuple[Any, int]]

    @property
    def is_overwritten(self) -> bool:
        """Whether tensors beside layers that were used have been written since."""
        return any(written.writes != count for written, count in self.writes)

    def holds(self, now: _Moment) -> bool:
        """Tell whether what is in effect now is the same."""
        same = self.mixed is now.mixed and self.call is now.call and self.scale == now.scale
        return same or self._contents() == now._contents()

    def _contents(self) -> object:
        mixed, call = self.mixed, self.call
        if mixed is None:
            return []
        contents: list[object] = []
        for mix in mixed.mixes:
            table = mix.at(call.step, call.turn)
            contents.append({name: own for name in table if (own := self._of(mixed, name, table[name]))})
            masks = {name: mix.mix[name].mask for name in mix.mix.names if mix.mix[name].mask is not None}
            contents += [masks, call.places] if masks and self.part not in TEXT_ENCODERS else []
        rows = call.rows if len(mixed.mixes) > 1 else None
        several = any(contents)
        return [*contents, None if rows is None else rows.tolist()] if several else []

    def _of(self, mixed: _Mixed, name: str, gains: Sequence[float]) -> list[object]:
        layers = mixed.layers[name]
        places = [
            (place, gain * self.scale)
            for place, (layer, gain) in enumerate(zip(layers, gains, strict=True))
            if gain * self.scale and layer.live.component == self.part
        ]
        who = {
            engine: [place for place, _ in places if shares[name][place]]
            for engine, shares in mixed.served.items()
            if name in shares
        }
        return [id(layers), places, who] if places else []


class InEffect:
    """
    What is in effect now.

    Args:
        engines: Those that may write tensors beside layers.
        scales: The scales of calls that are running.

    Attributes:
        watched: The components whose calls are made by way of :meth:`guarded`.
    """

    def __init__(self, engines: Sequence[Engine], scales: Scales) -> None:
        """Start with the base."""
        self._engines, self._scales = engines, scales
        self.watched: set[str] = set()
        self._mixed: _Mixed | None = None
        self._call = Call()
        self._texts: dict[str, Call] = {}
        self._again: dict[
            str, _Moment
        ] = {}  # whose calls are about to be made once more, by checkpointing around them
        self._repeated: Call | None = None  # that which is being made once more

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy has: none of its calls is under way."""
        return {**vars(self), "_again": {}, "_repeated": None}

    def enter(self, effect: Effect) -> None:
        """Note what has been put into effect, as before the first step."""
        self._mixed, self._call, self._texts = _Mixed.of(effect), Call(), {}

    def leave(self) -> None:
        """Note that nothing is in effect, and no call seen."""
        self._mixed = None
        self.watched.clear()

    def show(self, call: Call) -> Call:
        """
        Note the call that gains are those of, in all but text encoders.

        Returns:
            The call; where one is made once more for its gradients, that which it was, as its step cannot be read any more.
        """
        if self._repeated is not None:
            call = replace(self._repeated, turn=call.turn)
        self._call = call
        self._texts = {part: text for part, text in self._texts.items() if part in TEXT_ENCODERS}
        return call

    def show_text(self, component: str, rows: torch.Tensor) -> None:
        """Note the mix of each text, or picture."""
        self._texts[component] = Call(rows=rows)

    def _now(self, part: str) -> _Moment:
        call = self._texts.get(part, Call() if part in TEXT_ENCODERS else self._call)
        kept = [written for engine in self._engines if (written := engine.written(part)) is not None]
        return _Moment(
            part, self._mixed, call, self._scales.of(part), [(written, written.writes) for written in kept]
        )

    def guarded(
        self, part: str, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """
        Make a call, and have a look before its gradients are computed.

        Args:
            part: The component.
            call: Calls it.
            args: The arguments.
            kwargs: Those by name.
        """
        if not torch.is_grad_enabled() or torch.compiler.is_compiling() or _JIT.is_tracing():
            return call(*args, **kwargs)
        if part in self._again and _is_backward():
            moment = self._again.pop(part)
            self._repeated = moment.call if moment.mixed is self._mixed else None
            try:
                return call(*args, **kwargs)
            finally:  # such a call is broken off by an error of torch as soon as all that is needed has been computed
                self._repeated = None
                self._look(moment, made_again=True)
        output = call(*args, **kwargs)
        leaves = [x for x in pytree.tree_leaves(output) if isinstance(x, torch.Tensor) and x.requires_grad]
        if leaves:
            look = partial(self._expect if _is_checkpointed() else self._look, self._now(part))
            for leaf in leaves:
                leaf.register_hook(look)  # type: ignore[no-untyped-call]
        return output

    def _expect(self, moment: _Moment, _gradient: torch.Tensor) -> None:
        """Note that a call is about to be made once more, with its own step: there is nothing to compare yet, if it will be seen."""
        if moment.part in self.watched:
            self._again[moment.part] = moment
        else:
            self._look(moment)

    def _look(
        self, moment: _Moment, _gradient: torch.Tensor | None = None, *, made_again: bool = False
    ) -> None:
        """
        Look whether what is in effect is what it was.

        Args:
            moment: What was in effect.
            made_again: Whether the call has just been made once more.

        Raises:
            PipelineStateError: When it is not.
        """
        if moment.call.turn:
            raise PipelineStateError(
                f"gradients through {moment.part} under a method that calls it once for each adapter (composite): all passes "
                "are computed before any gradient is, and only the weights of the last are still there; use a mix that is one "
                "sum, which one call has",
                component=moment.part,
            )
        if moment.holds(self._now(moment.part)):
            if moment.is_overwritten and not made_again:
                raise PipelineStateError(
                    f"the mix in {moment.part} was another one since this output was computed, and what stands beside layers "
                    "was written anew in place, so that gradients cannot be computed: go backward before the mix changes, or "
                    "use engine='merged', whose weights are the same again",
                    component=moment.part,
                )
            return
        raise PipelineStateError(
            f"the mix in {moment.part} is another one now than when this output was computed, and gradients would be those of "
            "no mix at all: go backward before the mix changes (the next step of a schedule, set_adapters, the end of "
            "applied(), disable_lora, unloading, a call's scale); for one backward pass through several steps, use one mix "
            "that stays",
            component=moment.part,
            remedy=Remedy(
                "or make each call within torch.utils.checkpoint.checkpoint(..., use_reentrant=False), which makes it anew at its "
                "own step"
            ),
        )


def _is_checkpointed() -> bool:
    """Say whether this call is in a block that is computed once more for its gradients, or is being computed so."""
    hooks: Any = torch._C._autograd._top_saved_tensors_default_hooks(True)  # noqa: SLF001 -- there is no public question
    return hooks is not None and getattr(hooks[0], "__module__", "") == _CHECKPOINT


def _is_backward() -> bool:
    return torch._C._current_graph_task_id() != -1  # noqa: SLF001 -- as checkpointing itself asks
