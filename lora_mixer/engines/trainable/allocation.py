"""AdaLoRA in training: what its loss adds, which ranks stay after a step, and what is written of the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from lora_mixer.algorithms.adalora import AdaLora
from lora_mixer.algorithms.rank_allocation import (
    Importance,
    RankSchedule,
    kept,
    orthogonality,
    triplet_scores,
)
from lora_mixer.errors import MatchError, PipelineStateError
from lora_mixer.formats.fronts import PEFT_ROOT
from lora_mixer.problem import Problem
from lora_mixer.wording import first_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

    from lora_mixer.binding import BoundLayer

_SMOOTHING = 0.85  # PEFT's default for both


@dataclass
class _Triplets:
    """The singular values of one module, their rows and columns, by the key that the values have in a file."""

    down: nn.Parameter
    values: nn.Parameter
    up: nn.Parameter
    keys: tuple[str, str, str]
    importance: tuple[Importance, Importance, Importance] | None = None
    mask: torch.Tensor | None = None

    @property
    def parameters(self) -> tuple[nn.Parameter, nn.Parameter, nn.Parameter]:
        return self.down, self.values, self.up

    @property
    def name(self) -> str:
        """The name that configurations have a module's mask under."""
        return self.keys[1].removeprefix(PEFT_ROOT)


_Before = tuple[tuple[Importance, Importance, Importance] | None, torch.Tensor | None, torch.Tensor]


class RankAllocation:
    """
    Gives an AdaLoRA its orthogonality term and takes ranks away while it is trained.

    Args:
        triplets: What is trained.
        config: The configuration, of which the schedule is read.
    """

    def __init__(self, triplets: Sequence[_Triplets], config: Mapping[str, Any]) -> None:
        """Start at the first step."""
        self._triplets = triplets
        self._weight = float(config.get("orth_reg_weight", 0.5))
        self._betas = tuple(float(config.get(name, _SMOOTHING)) for name in ("beta1", "beta2"))
        total = config.get("total_step")
        target = int(config.get("target_r", 8)) * len(triplets)
        self._schedule = (
            None
            if not total
            else RankSchedule(
                sum(one.down.shape[0] for one in triplets),
                target,
                int(config.get("tinit", 0)),
                int(config.get("tfinal", 0)),
                max(1, int(config.get("deltaT", 1))),
                int(total),
            )
        )

    @classmethod
    def of(
        cls, layers: Sequence[BoundLayer], parameters: Mapping[str, nn.Parameter], config: Mapping[str, Any]
    ) -> RankAllocation | None:
        """Return the allocation of an adapter's layers; None where they have none."""
        keys = {id(parameter): key for key, parameter in parameters.items()}
        triplets = []
        for layer in layers:
            weights = layer.weights
            if isinstance(weights, AdaLora) and weights.rank:
                # the parameters themselves: AdaLoRA's tensors are used as they lie in the file
                down, values, up = (next(p for p in parameters.values() if p is t) for t in _tensors(weights))
                triplets.append(_Triplets(down, values, up, (keys[id(down)], keys[id(values)], keys[id(up)])))
        return cls(triplets, config) if triplets else None

    def loss(self) -> torch.Tensor:
        """Return what is to be added to the loss."""
        return self._weight * orthogonality([(one.down, one.up) for one in self._triplets])

    def after_step(self, step: int) -> None:
        """
        Take ranks away after an optimizer's step, before the gradients are let go.

        Args:
            step: Counted from 0.

        Raises:
            PipelineStateError: When there are no gradients, or the configuration says no ``total_step``.
        """
        schedule = self._schedule
        if schedule is None:
            raise PipelineStateError(
                "AdaLoRA cannot plan its ranks without total_step, the number of optimizer steps, in its configuration",
                argument="total_step",
            )
        end = schedule.total - schedule.final
        with torch.no_grad():
            if step < end:
                self._look(step)
            if schedule.chooses(step):
                self._choose(schedule.budget(step))
            elif step > end:
                for one in self._triplets:
                    self._clear(one)
            if step == end:
                for one in self._triplets:
                    one.importance = None

    def record(self) -> list[_Before]:
        """Return what :meth:`after_step` changes, for the way back."""
        return [(one.importance, one.mask, one.values.detach().clone()) for one in self._triplets]

    def roll_back(self, record: Sequence[_Before]) -> None:
        """Hold what was held at a record."""
        with torch.no_grad():
            for one, (importance, mask, values) in zip(self._triplets, record, strict=True):
                one.importance, one.mask = importance, mask
                one.values.copy_(values)

    def _look(self, step: int) -> None:
        """Take the importance of every entry at this step."""
        lost = [
            key
            for one in self._triplets
            for key, p in zip(one.keys, one.parameters, strict=True)
            if p.grad is None
        ]
        if lost:
            raise PipelineStateError(
                f"step {step}: {len(lost)} parameters ({', '.join(lost[:3])}) have no gradient: call after_step() behind "
                "loss.backward() and optimizer.step(), and before optimizer.zero_grad()",
                problems=[Problem(key, "has no gradient") for key in lost],
            )
        for one in self._triplets:
            before = one.importance or tuple(Importance.start(p) for p in one.parameters)
            down, values, up = (
                held.after(p, p.grad, *self._betas)
                for held, p in zip(before, one.parameters, strict=True)
                if p.grad is not None
            )
            one.importance = down, values, up

    def _choose(self, budget: int) -> None:
        """Keep so many triplets, those that matter most."""
        ready = {number: one for number, one in enumerate(self._triplets) if one.importance is not None}
        if not ready:
            return  # gone on with at the very end: what was chosen before stays
        device = self._triplets[0].values.device
        scores = {
            str(n): triplet_scores(*one.importance).to(device) for n, one in ready.items() if one.importance
        }
        for number, mask in kept(scores, budget).items():
            one = self._triplets[int(number)]
            one.mask = mask.to(one.values.device)
            self._clear(one)

    @staticmethod
    def _clear(one: _Triplets) -> None:
        if one.mask is not None:
            one.values.masked_fill_(~one.mask.reshape(one.values.shape), 0.0)

    def state(self) -> dict[str, torch.Tensor]:
        """Return all that a run needs to go on: values at every rank, what is known of their importance, which ranks stay."""
        tensors: dict[str, torch.Tensor] = {}
        for one in self._triplets:
            for key, parameter in zip(one.keys, one.parameters, strict=True):
                tensors[key] = parameter.detach().clone()
            if one.importance is not None:
                for key, known in zip(one.keys, one.importance, strict=True):
                    tensors[f"{key}:mean"], tensors[f"{key}:spread"] = (
                        known.mean.clone(),
                        known.spread.clone(),
                    )
            if one.mask is not None:
                tensors[f"{one.name}:mask"] = one.mask.clone()
        return tensors

    def take_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """
        Go on from what :meth:`state` has returned.

        Raises:
            MatchError: When it is of another adapter; nothing is changed then.
        """
        odd = [
            key
            for one in self._triplets
            for key, parameter in zip(one.keys, one.parameters, strict=True)
            if key not in state
            or any(
                state[name].shape != parameter.shape
                for name in (key, f"{key}:mean", f"{key}:spread")
                if name in state
            )
            or (f"{key}:mean" in state) != (f"{key}:spread" in state)
        ]
        known = {
            f"{key}{end}" for one in self._triplets for key in one.keys for end in ("", ":mean", ":spread")
        }
        odd += [key for key in state if key not in known | {f"{one.name}:mask" for one in self._triplets}]
        odd += [
            f"{one.name}:mask"
            for one in self._triplets
            if f"{one.name}:mask" in state and state[f"{one.name}:mask"].shape != one.values.shape[:1]
        ]
        if odd:
            raise MatchError(
                f"the training state is of another adapter than the one in training: {first_of(odd, 5)} are missing, of other "
                "shapes or not known",
                problems=[Problem(key, "is missing, of another shape or not known") for key in odd],
            )
        with torch.no_grad():
            for one in self._triplets:
                for key, parameter in zip(one.keys, one.parameters, strict=True):
                    parameter.copy_(state[key])
                importance = [
                    Importance(state[f"{key}:mean"].to(p), state[f"{key}:spread"].to(p))
                    for key, p in zip(one.keys, one.parameters, strict=True)
                    if f"{key}:mean" in state
                ]
                one.importance = (
                    (importance[0], importance[1], importance[2]) if len(importance) == 3 else None
                )
                mask = state.get(f"{one.name}:mask")
                one.mask = None if mask is None else mask.to(one.values.device, torch.bool, copy=True)

    def written(
        self, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any]
    ) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Return what is saved: tensors cut to the ranks that stay, and which these are in the configuration."""
        cut, masks = dict(tensors), dict(config.get("rank_pattern") or {})
        for one in self._triplets:
            if one.mask is None:
                continue
            places = one.mask.nonzero().flatten()
            down, values, up = one.keys
            cut |= {
                down: one.down.detach()[places],
                values: one.values.detach()[places],
                up: one.up.detach()[:, places],
            }
            masks[one.name] = _within(masks.get(one.name), one.mask.tolist())
        return cut, {**config, "rank_pattern": masks or config.get("rank_pattern")}


def _tensors(weights: AdaLora) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return weights.down, weights.values, weights.up


def _within(before: list[bool] | None, mask: list[bool]) -> list[bool]:
    """Return a mask over all ranks that a module began with, where a mask over those that were left is given."""
    if before is None or sum(before) != len(mask):
        return mask
    left = iter(mask)
    return [keep and next(left) for keep in before]
