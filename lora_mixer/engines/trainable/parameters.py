"""
An adapter's tensors as parameters, by the keys of its file.

The parameters are the adapter's tensors from first to last: what a kind makes of a tensor, such as the transpose of an
embedding's pair, is a view of the parameter, so an optimizer's step is seen at once and gradients reach it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from lora_mixer.engines.engine import Own
from lora_mixer.engines.modes import lasting
from lora_mixer.engines.placement import compute_device
from lora_mixer.engines.trainable.allocation import RankAllocation
from lora_mixer.errors import MatchError, UnsupportedAdapterError
from lora_mixer.formats.fronts import PEFT_ROOT
from lora_mixer.problem import Problem, Remedy
from lora_mixer.wording import first_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from lora_mixer.algorithms import LayerWeights
    from lora_mixer.binding import BoundLayer

_SHOWN = 5
_MEANING = ("peft_type", "r", "lora_alpha", "alpha", "alpha_pattern", "use_rslora", "use_dora", "init_r")
"""Fields of a configuration that say what tensors of the same shapes mean."""
_DROPOUTS = ("rank_dropout", "module_dropout")


@dataclass(frozen=True)
class Trained(Own):
    """
    What is trained of an adapter.

    Attributes:
        parameters: By the keys of the file.
        dropout: The share of a pair's inputs that training drops.
        others: The file's tensors that are not trained, such as those of the base saved beside an embedding's pair.
        config: The file's PEFT configuration; empty where there is none.
        allocation: What takes ranks away during the training; None for kinds of fixed ranks.
    """

    engine = "trainable"
    parameters: Mapping[str, nn.Parameter]
    dropout: float = 0.0
    others: Mapping[str, torch.Tensor] = field(default_factory=dict)
    config: Mapping[str, object] = field(default_factory=dict)
    allocation: RankAllocation | None = None
    owners: Mapping[str, nn.Module] = field(default_factory=dict)

    def on(self, root: nn.Module) -> dict[str, nn.Parameter]:
        """Return the parameters of layers of a component."""
        inside = {id(module) for module in root.modules()}
        return {key: p for key, p in self.parameters.items() if id(self.owners.get(key)) in inside}

    def of_norms(self) -> set[str]:
        """Return the keys of what belongs to norms, which no weight decay falls on."""
        return {key for key, owner in self.owners.items() if isinstance(owner, nn.LayerNorm)}

    def written(self) -> tuple[Mapping[str, torch.Tensor], Mapping[str, object]]:
        """Return the tensors by key and the configuration as they are saved."""
        tensors = {**self.others, **self.parameters}
        return (
            (tensors, self.config)
            if self.allocation is None
            else self.allocation.written(tensors, self.config)
        )

    def record(self) -> Callable[[], None]:
        """Return what puts the parameters' values, and what is known of their ranks, back to what they are now."""
        values = {key: held.detach().clone() for key, held in self.parameters.items()}
        ranks = None if self.allocation is None else self.allocation.record()

        def roll_back() -> None:
            with torch.no_grad():
                for key, held in self.parameters.items():
                    held.copy_(values[key])
            if self.allocation is not None and ranks is not None:
                self.allocation.roll_back(ranks)

        return roll_back

    def take_values(
        self, tensors: Mapping[str, torch.Tensor], config: Mapping[str, object], label: str
    ) -> None:
        """
        Write another state of the same adapter, such as a checkpoint's, into the parameters, which stay the caller's.

        Args:
            tensors: By key.
            config: The configuration beside them.
            label: What to call the file in messages.

        Raises:
            MatchError: When it is another adapter: keys, shapes or what the configuration makes of them differ. Nothing is
                written then.
        """
        tensors = {key: self._spread(key, tensor, config) for key, tensor in tensors.items()}
        problems = [Problem(key, "is missing") for key in self.parameters if key not in tensors]
        problems += [
            Problem(key, "is not a tensor of the adapter in training")
            for key in tensors
            if key not in self.parameters and key not in self.others
        ]
        problems += [
            Problem(key, f"is of shape {tuple(tensors[key].shape)}, expected {tuple(held.shape)}")
            for key, held in self.parameters.items()
            if key in tensors and tensors[key].shape != held.shape
        ]
        problems += [
            Problem(field, f"is {config.get(field)!r}, expected {self.config.get(field)!r}")
            for field in _MEANING
            if config and self.config and (config.get(field) or None) != (self.config.get(field) or None)
        ]
        if problems:
            listed = first_of([f"{one.place} {one.text}" for one in problems], _SHOWN, between="; ")
            raise MatchError(
                f"is another adapter than the one in training: {listed}",
                file=label,
                problems=problems,
            )
        with torch.no_grad():
            for key, held in self.parameters.items():
                held.copy_(tensors[key])

    def _spread(self, key: str, tensor: torch.Tensor, config: Mapping[str, object]) -> torch.Tensor:
        """Return an AdaLoRA's tensor that was cut to the ranks that stay at all ranks; those that went have the value 0."""
        held, masks = self.parameters.get(key), config.get("rank_pattern")
        module, _, leaf = key.removeprefix(PEFT_ROOT).rpartition(".")
        mask = (
            masks.get(f"{module}.lora_E") if self.allocation is not None and isinstance(masks, dict) else None
        )
        if held is None or not isinstance(mask, list) or leaf not in ("lora_A", "lora_B", "lora_E"):
            return tensor
        axis = 1 if leaf == "lora_B" else 0
        if len(mask) != held.shape[axis] or sum(mask) != tensor.shape[axis]:
            return tensor
        whole = torch.zeros_like(held) if leaf == "lora_E" else held.detach().clone()
        places = torch.tensor(mask, device=held.device).nonzero().flatten()
        return whole.index_copy_(axis, places, tensor.to(whole))


def trained(
    layers: Sequence[BoundLayer],
    tensors: Mapping[str, torch.Tensor],
    config: Mapping[str, object],
    label: str,
) -> tuple[tuple[BoundLayer, ...], Trained]:
    """
    Put parameters in the place of an adapter's tensors, where the layers compute and in fp32 at least.

    Args:
        layers: The bound layers, whose tensors are those of ``tensors`` or views of them.
        tensors: The file's tensors by key.
        config: Its configuration.
        label: What to call it in messages.

    Returns:
        The layers, and what is trained.

    Raises:
        UnsupportedAdapterError: When a layer's tensors were made from several of the file's, or the configuration asks for
            something that is not trained here.
    """
    odd = [name for name in _DROPOUTS if config.get(name)]
    if odd or any(x.siblings is not None or x.widening is not None or x.weights.beside_only for x in layers):
        what = (
            f"{', '.join(odd)}"
            if odd
            else "layers that are rows of several modules, wider than the model's, or over all inputs of one in groups"
        )
        raise UnsupportedAdapterError(
            f"{what}: this cannot be trained by this version; nothing was changed",
            file=label,
            problems=[Problem(name, "cannot be trained by this version") for name in odd],
        )
    idle = [x.live for x in layers if isinstance(x.live.module, NonDynamicallyQuantizableLinear)]
    if idle:
        raise UnsupportedAdapterError(
            f"its forward is never called (the attention around it reads its weight), so that "
            f"nothing that stands beside it would be trained; leave it out ({len(idle)} such layers); nothing was changed",
            file=label,
            key=f"{idle[0].component}.{idle[0].path}",
            remedy=Remedy("loaded without trainable=True it goes into the weights"),
        )
    by_place = {tensor.data_ptr(): key for key, tensor in tensors.items() if tensor.numel()}
    parameters: dict[str, nn.Parameter] = {}

    def mover(device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
        def move(tensor: torch.Tensor) -> torch.Tensor:
            if not tensor.is_floating_point() or not tensor.numel():
                return tensor.to(device)
            key = by_place.get(tensor.data_ptr())
            if key is None or tensor.numel() != tensors[key].numel():
                raise UnsupportedAdapterError(
                    f"a tensor of shape {tuple(tensor.shape)} is made from others of the file, so that it cannot be "
                    "trained; nothing was changed",
                    file=label,
                )
            if key.endswith(".base_layer.weight"):
                return tensor.to(device)  # the base's own, saved beside the adapter
            if key not in parameters:
                given = tensors[key].dtype  # torch promotes no types of one byte
                wide = torch.float32 if given.itemsize == 1 else torch.promote_types(given, torch.float32)
                start = tensors[key].to(device, wide)
                parameters[key] = nn.Parameter(start.clone())
            held = parameters[key]
            same = tensor.shape == held.shape and tensor.stride() == held.stride()
            return held if same else held.as_strided(tensor.shape, tensor.stride())

        return move

    with lasting(gradients=True):
        moved = tuple(
            replace(layer, weights=layer.weights.map(mover(compute_device(layer.live.module))))
            for layer in layers
        )
    dropout = config.get("lora_dropout") or 0.0
    ordered = {key: parameters[key] for key in tensors if key in parameters}
    share = float(dropout) if isinstance(dropout, int | float) else 0.0
    others = {key: tensor for key, tensor in tensors.items() if key not in ordered}
    keys = {id(parameter): key for key, parameter in ordered.items()}
    owners = {
        keys[id(held)]: layer.live.module
        for layer in moved
        for tensor in layer.weights.tensors()
        if id(held := parameter_of(tensor)) in keys
    }
    allocation = RankAllocation.of(moved, ordered, config)
    return moved, Trained(ordered, share, others, dict(config), allocation, owners)


def parameter_of(tensor: torch.Tensor) -> torch.Tensor:
    """Return the parameter that a tensor of an adapter in training is a view of, or is."""
    base: torch.Tensor | None = tensor._base  # noqa: SLF001 -- how torch tells
    return tensor if base is None else base


class Live:
    """
    An adapter's part of a layer, whose views look at their parameters as these are by now: ``model.to`` gives these other memory.

    Which tensors are views of what is looked up once, so that compilers see nothing but the views.

    Args:
        weights: The part, made from parameters and views of them.
    """

    def __init__(self, weights: LayerWeights) -> None:
        """Note the views."""
        self._views: list[tuple[torch.Tensor, torch.Size, tuple[int, ...]] | None] = []

        def note(tensor: torch.Tensor) -> torch.Tensor:
            base = parameter_of(tensor)
            is_view = base is not tensor and isinstance(base, nn.Parameter)
            self._views.append((base, tensor.shape, tensor.stride()) if is_view else None)
            return tensor.detach() if is_view else tensor  # what stands for a view takes no part

        self.weights = weights.map(note)
        self._has_views = any(view is not None for view in self._views)

    @property
    def now(self) -> LayerWeights:
        """The part as it is by now."""
        if not self._has_views:
            return self.weights
        views = iter(self._views)

        def again(tensor: torch.Tensor) -> torch.Tensor:
            view = next(views)
            return tensor if view is None else view[0].as_strided(view[1], view[2])

        return self.weights.map(again)
