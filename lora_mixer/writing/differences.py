"""An adapter out of two models: the change of every weight from one to the other, at a rank."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from lora_mixer.errors import MatchError
from lora_mixer.problem import Problem
from lora_mixer.wording import first_of
from lora_mixer.writing.compose import same
from lora_mixer.writing.layers import ModulePlace, NewLayer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import nn

    from lora_mixer.families.skeleton import Skeleton
    from lora_mixer.writing.compose import Progress, RankCut

    Job = tuple[str, str, nn.Module]


@dataclass(frozen=True)
class Extracted:
    """
    What was found.

    Attributes:
        layers: The layers of the adapter.
        left_out: Parameters that changed and are in no layer.
    """

    layers: tuple[NewLayer, ...]
    left_out: tuple[str, ...]


def changes(
    base: Skeleton,
    tuned: Skeleton,
    *,
    cut: RankCut,
    pairs_only: bool = False,
    progress: Progress = same,
) -> Extracted:
    """
    Return the change from one diffusers folder to another as an adapter.

    Args:
        base: The model to start from.
        tuned: The same model after training.
        cut: The rank of each layer.
        pairs_only: Leave changes of biases, norms and other single parameters out, and list them.
        progress: Wraps the work, to show how far it is.

    Returns:
        The layers that changed, with the error of each; parameters that are no module's weight or bias in full.

    Raises:
        MatchError: When the two are not the same model, nothing changed, or one has no weights to compare.
    """
    _check(base, tuned)
    jobs: list[Job] = [
        (part, path, module)
        for part, root in base.components.items()
        for path, module in root.named_modules()
        if getattr(module, "weight", None) is not None
    ]
    layers: list[NewLayer] = []
    left_out: list[str] = []
    for part, path, module in progress(jobs):
        weight, bias = (_change(base, tuned, part, f"{path}.{name}") for name in ("weight", "bias"))
        if pairs_only:
            dropped = {"bias": bias, "weight": weight if weight is not None and weight.ndim < 2 else None}
            left_out += [f"{part}.{path}.{name}" for name, change in dropped.items() if change is not None]
            bias = None
            weight = None if weight is None or weight.ndim < 2 else weight
        if weight is not None or bias is not None:
            layers.append(_layer(part, path, module, weight, bias, cut))
    others = {place: _change(base, tuned, place.component, place.path) for place in _other_parameters(base)}
    in_full = [
        NewLayer(place, leaves={".diff": change}) for place, change in others.items() if change is not None
    ]
    if pairs_only:
        left_out += [str(layer.place) for layer in in_full]
    else:
        layers += in_full
    _refuse_nothing(base, tuned, layers, left_out)
    return Extracted(tuple(layers), tuple(left_out))


def _check(base: Skeleton, tuned: Skeleton) -> None:
    """
    Refuse two models that have other parts, or no weights at hand.

    Raises:
        MatchError: Naming the parts.
    """
    missing = sorted(set(base.components) ^ set(tuned.components))
    if missing:
        raise MatchError(
            f"only one of this and {base.name} has {', '.join(missing)}",
            file=tuned.name,
            component=missing[0],
            problems=[Problem(part, "is in one of the two only") for part in missing],
        )
    for model in (base, tuned):
        bare = [part for part in model.components if not model.has_weights(part)]
        if bare:
            raise MatchError(
                f"has no weights of {', '.join(bare)} in .safetensors files",
                file=model.name,
                component=bare[0],
                problems=[Problem(part, "has no weights in .safetensors files") for part in bare],
            )


def _refuse_nothing(
    base: Skeleton, tuned: Skeleton, layers: Sequence[NewLayer], left_out: Sequence[str]
) -> None:
    """
    Refuse to write an adapter without layers.

    Raises:
        MatchError: Saying whether anything changed.
    """
    if not layers and not left_out:
        raise MatchError(f"is the same as {base.name}, weight for weight", file=tuned.name)
    if not layers:
        raise MatchError(
            f"differs from {base.name} in {first_of(left_out, 5)} alone, and these are left out",
            file=tuned.name,
            problems=[Problem(name, "differs and is left out") for name in left_out],
        )


def _other_parameters(model: Skeleton) -> Iterator[ModulePlace]:
    """Yield the places of parameters that are not the weight or the bias of a module, such as tables of shifts."""
    for part, root in model.components.items():
        for path, module in root.named_modules():
            weighted = getattr(module, "weight", None) is not None
            for name, parameter in module.named_parameters(path, recurse=False):
                if not weighted or name.rpartition(".")[2] not in ("weight", "bias"):
                    yield ModulePlace(part, name, tuple(parameter.shape), bare=True)


def _layer(
    part: str,
    path: str,
    module: nn.Module,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    cut: RankCut,
) -> NewLayer:
    shape: tuple[int, ...] = tuple(module.weight.shape)  # type: ignore[arg-type]
    place = ModulePlace(part, path, shape, isinstance(module, torch.nn.Embedding))
    if len(shape) < 2:
        return NewLayer(place, vector=weight if weight is not None else torch.zeros(shape), bias=bias)
    if weight is None:  # a pair of zeros carries the bias
        return NewLayer(place, torch.zeros(shape[0], 1), torch.zeros(1, math.prod(shape[1:])), 1.0, bias)
    form = cut.of_matrix(weight.flatten(1), place)
    return NewLayer(place, form.up, form.down, float(form.rank), bias, error=form.error)


def _change(base: Skeleton, tuned: Skeleton, part: str, name: str) -> torch.Tensor | None:
    before, after = base.tensor(part, name), tuned.tensor(part, name)
    if before is None or after is None:
        if (before is None) != (after is None):
            raise MatchError(f"is in only one of this and {base.name}", file=tuned.name, key=f"{part}.{name}")
        return None
    if before.shape != after.shape:
        raise MatchError(
            f"is {tuple(after.shape)} here and {tuple(before.shape)} in {base.name}: not the same model",
            file=tuned.name,
            key=f"{part}.{name}",
        )
    change = after.float() - before.float()
    return change if change.any() else None
