"""
Trains adapters beside weights that stay as they are.

Each layer has the cheapest form that its change has (``forms.py``), and all forms of a module stand in one hook (``beside.py``). Rows
of a batch may have mixes of their own, so that several adapters are trained in one pass over the base. Modules that share a
parameter have their own changes. While any adapter is in training, no parameter of the model asks for a gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from lora_mixer.engines.denoiser.scaled import Scales
from lora_mixer.engines.denoiser.steps import START
from lora_mixer.engines.engine import Call, Engine
from lora_mixer.engines.hooks import hook_output, hook_within, output_hooks
from lora_mixer.engines.trainable.beside import Beside
from lora_mixer.engines.trainable.forms import Layer
from lora_mixer.engines.trainable.registry import register, unregister
from lora_mixer.engines.trainable.together import Together
from lora_mixer.errors import MixError
from lora_mixer.mixes import TEXT_ENCODERS
from lora_mixer.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    import torch
    from torch import nn
    from torch.utils.hooks import RemovableHandle

    from lora_mixer.binding import BoundLayer
    from lora_mixer.engines.engine import Effect, Wish
    from lora_mixer.engines.hooks import HookHandle
    from lora_mixer.engines.trainable.forms import Clean
    from lora_mixer.engines.trainable.parameters import Trained


class Bases(Protocol):
    """What keeps clean weights."""

    def clean_weights(self, name: str) -> Sequence[Clean]:
        """Return what gives the clean weight (out, in, *kernel) of each layer of an adapter."""

    def blended(self, modules: Collection[int]) -> list[str]:
        """Name those of some modules, by identity, that a mix is in."""


@dataclass(frozen=True)
class TrainableRecord:
    """What was in training at one time."""

    trained: Mapping[str, Trained]
    frozen: Sequence[nn.Parameter]
    roots: Mapping[str, Sequence[nn.Module]]


class TrainableEngine(Engine):
    """
    Holds the adapters in training, their hooks, and which parameters of the model asked for gradients before.

    Args:
        bases: What keeps the clean weights.
    """

    name = "trainable"

    def __init__(self, bases: Bases) -> None:
        """Start with none."""
        self._bases = bases
        self._own: dict[str, Trained] = {}
        self._handles: list[HookHandle | RemovableHandle] = []
        self._frozen: list[nn.Parameter] = []
        self._roots: dict[str, list[nn.Module]] = {}
        self._beside: list[Beside] = []
        self._rows: dict[str, tuple[int, ...] | None] = {}
        self._images = 1
        self._scales = Scales()

    @property
    def acts(self) -> bool:
        """Whether any adapter in training takes part."""
        return bool(self._handles)

    def clear(self) -> None:
        """Take every hook away."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._beside.clear()
        self._rows.clear()

    def show_again(self, component: str) -> None:
        """Multiply what adapters in training add in a component by the scale that calls of it have now."""
        for beside in self._beside:
            if beside.component == component:
                beside.scale = self._scales.of(component)

    def own(self, name: str) -> Trained | None:
        """Return what is trained of an adapter."""
        return self._own.get(name)

    def claim(self, name: str, trained: Trained, roots: Sequence[nn.Module]) -> None:
        """
        Take an adapter that is to be trained; its parameters are the components' from now on.

        Args:
            name: Its name.
            trained: Its parameters.
            roots: The components that it reaches, whose own parameters ask for no gradient from now on.
        """
        in_training = {id(p) for held in self._own.values() for p in held.parameters.values()}
        self._own[name] = trained
        for root in roots:
            for parameter in root.parameters():
                if parameter.requires_grad and id(parameter) not in in_training:
                    self._frozen.append(parameter)
                    parameter.requires_grad_(False)
        self._roots[name] = [root for root in roots if trained.on(root)]
        for root in self._roots[name]:
            register(root, name, trained.on(root), trained.of_norms())

    def forget(self, name: str) -> None:
        """Let an adapter go; with the last one, the model's parameters ask for gradients as they did."""
        self._own.pop(name, None)
        for root in self._roots.pop(name, ()):
            unregister(root, name)
        if not self._own:
            for parameter in self._frozen:
                parameter.requires_grad_(True)
            self._frozen.clear()

    def record(self) -> TrainableRecord:
        """Note what is in training, and which parameters ask for no gradient because of that."""
        return TrainableRecord(dict(self._own), tuple(self._frozen), dict(self._roots))

    def put_back(self, record: TrainableRecord) -> None:
        """Have the same in training again, whatever was let go or came since."""
        for name in {*self._own, *self._roots}:
            if name not in record.trained or self._own.get(name) is not record.trained[name]:
                self.forget(name)
        for name, roots in record.roots.items():
            trained = record.trained[name]
            for root in roots:  # also where it was let go half-way: what is there stays the same
                register(root, name, trained.on(root), trained.of_norms())
        kept = {id(parameter) for parameter in record.frozen}
        for parameter in self._frozen:
            if id(parameter) not in kept:
                parameter.requires_grad_(True)
        for parameter in record.frozen:
            parameter.requires_grad_(False)
        self._own, self._frozen = dict(record.trained), list(record.frozen)
        self._roots = {name: list(roots) for name, roots in record.roots.items()}

    def look(self, wish: Wish) -> None:
        """
        Check that adapters in training have one weight for each row.

        Raises:
            MixError: Where they have not, or rows with mixes of their own cannot be told apart.
        """
        names = [name for name in sorted(wish.setting.names) if name in self._own]
        if not names:
            return
        masked = any(mix[name].mask is not None for mix in wish.setting.every for name in mix.names)
        if masked or wish.is_moving:
            raise MixError(
                f"{', '.join(names)}: an adapter in training has one weight for each row, at all steps and places; set a mix "
                "without schedules and masks",
                adapter=names[0],
                problems=tuple(
                    Problem(name, "has one weight for each row, at all steps and places") for name in names
                ),
            )
        for name in names:
            wide = next((layer.live for layer in wish.layers[name] if wish.is_widened(layer.live)), None)
            if wide is not None:
                raise MixError(
                    f"another adapter of the mix than {name!r} gives this module more inputs, and what is trained beside it "
                    "knows those of the base model; train it without that one",
                    key=f"{wide.component}.{wide.path}",
                    adapter=name,
                )
        if wish.images == 1:
            return
        for name in names:
            bare = next((layer.live for layer in wish.layers[name] if layer.live.is_bare), None)
            if bare is not None:
                raise MixError(
                    "a bare parameter has no rows of a batch: its module groups them by what they are routed to. Train "
                    f"{name!r} by itself",
                    key=f"{bare.component}.{bare.path}",
                    adapter=name,
                )

    @property
    def components(self) -> Collection[str]:
        """The components beside whose modules anything stands."""
        return dict.fromkeys(beside.component for beside in self._beside)

    def enter(self, effect: Effect) -> None:
        """
        Stand beside the modules that adapters in training reach.

        Raises:
            PipelineStateError: When a change cannot be computed beside its module.
        """
        names = sorted(effect.served[self.name])
        if not names:
            return
        self._scales = effect.mixes[0].scales
        mixes = [mix.at(START) for mix in effect.mixes]
        self._images = len(mixes)
        self._stand(
            [
                (layer, clean, gains, self._own[name].dropout)
                for name in names
                for place, (layer, clean) in enumerate(
                    zip(effect.layers[name], self._bases.clean_weights(name), strict=True)
                )
                if any(gains := tuple(mix[name][place] if name in mix else 0.0 for mix in mixes))
            ],
            effect.components,
        )
        self.show(Call())

    def _stand(
        self,
        layers: Sequence[tuple[BoundLayer, Clean, Sequence[float], float]],
        roots: Mapping[str, nn.Module],
    ) -> None:
        """Stand beside modules: layers come with their clean base (out, in, *kernel), weight in each mix, and dropout."""
        by_module: dict[int, Beside] = {}
        for layer, clean, gains, dropout in layers:
            live = layer.live
            modules = [live.module]
            if live.tied and layer.weights.reaches_twins:
                weight = live.weight
                modules = [
                    module
                    for module in roots[live.component].modules()
                    if module._parameters.get("weight") is weight  # noqa: SLF001 -- shared by identity
                ]
            for module in modules:
                is_alone = not output_hooks(module) and not self._bases.blended([id(module)])
                beside = by_module.setdefault(
                    id(module), Beside(module, live.component, live.path, is_alone=is_alone)
                )
                beside.add(
                    live.attribute,
                    layer.weights,
                    Layer(
                        module,
                        live.shape,
                        clean,
                        is_own=is_alone,
                        component=live.component,
                        path=live.path,
                    ),
                    gains,
                    dropout,
                    transposed=live.transposed,
                )
        self._beside = list(by_module.values())
        for beside in self._beside:
            # behind what others of this package make of the output, before all else
            if beside.settle():
                self._handles.append(hook_within(beside.module, beside))
            else:
                first = not output_hooks(beside.module)
                self._handles.append(hook_output(beside.module, beside, first=first))
        for component in self.components:
            joining = [one for one in self._beside if one.component == component and one.can_join]
            if joining:
                together = Together(joining)
                for beside in joining:
                    beside.together = together
                self._handles.append(roots[component].register_forward_pre_hook(together))

    def show(self, call: Call) -> None:
        """Give each row of a call its mix; text encoders have theirs by :meth:`show_text`."""
        for component in self.components:
            if component not in TEXT_ENCODERS:
                self._show_rows(component, call.rows)

    def show_text(self, component: str, rows: torch.Tensor) -> None:
        """Give each text of a text encoder's batch its own mix."""
        self._show_rows(component, rows)

    def _show_rows(self, component: str, rows: torch.Tensor | None) -> None:
        # before any call of the component: parts that are called by themselves, such as an encoder that generate() asks first
        unknown = tuple(range(self._images)) if self._images > 1 else None
        owners = unknown if rows is None else tuple(rows.tolist())
        if component in self._rows and self._rows[component] == owners:
            return
        self._rows[component] = owners
        for beside in self._beside:
            if beside.component == component:
                beside.show(owners)
