"""
Changes without a low-rank form beside layers: where weights cannot be rewritten, or are not to be.

It costs as much memory as the layers that are changed, so nobody gets it who has not asked for it (``engine="side"``), but
for changes of biases and norms, and where there is no other way: quantised and offloaded weights.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import TYPE_CHECKING

import torch

from lora_mixer.engines.denoiser.places import sees_text
from lora_mixer.engines.denoiser.steps import START
from lora_mixer.engines.dense.layer import NO_PAIR, DenseLayer, DensePart, stands_beside
from lora_mixer.engines.engine import Call, Engine
from lora_mixer.engines.gains import choices_at
from lora_mixer.engines.hooks import hook_output
from lora_mixer.engines.placement import compute_device
from lora_mixer.engines.readable import readable
from lora_mixer.engines.side.gain_buffers import CallGains, GainBuffers
from lora_mixer.engines.side.masks import stacked_masks
from lora_mixer.engines.side.support import compute_dtype, is_pair, is_wanted, side_pair
from lora_mixer.errors import MixError
from lora_mixer.mixes import TEXT_ENCODERS

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from torch import nn

    from lora_mixer.algorithms import Factors
    from lora_mixer.binding import BoundLayer
    from lora_mixer.binding.index import LiveModule
    from lora_mixer.engines.engine import Effect, Shares, Wish
    from lora_mixer.engines.gains import MixGains
    from lora_mixer.engines.hooks import HookHandle
    from lora_mixer.engines.merged.engine import MergedEngine

_SAME = 1e-4
_UNETS = ("unet", "prior", "decoder")


class Change:
    """
    One layer's change, worked out from the clean base when it is asked for.

    Args:
        layer: The layer.
        bases: What keeps the clean weights, and the tensors with the whole base of a fused layer in reach.
        name: The adapter.
        place: The layer's place in it.
    """

    def __init__(self, layer: BoundLayer, bases: MergedEngine, name: str, place: int) -> None:
        """Work nothing out yet."""
        self.layer = layer
        self._held = partial(bases.held_at, name, place)
        self._unit: tuple[torch.Tensor | None, torch.Tensor | None] | None = None
        self._scales: bool | None = None

    def at(self, gain: float) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Return the change of weight and bias at a gain, where the layer computes."""
        device, live = compute_device(self.layer.live.module), self.layer.live
        weights, base, bias = self._held()
        change = None
        if weights.changes_weight and not is_pair(self.layer, weights):
            # where the base cannot be read, what depends on it has been refused
            clean = base.reshape(live.shape) if _is_plain(base, live.shape) else torch.zeros(live.shape)
            change = weights.delta(_wide(clean, device), gain)
        added = weights.bias_delta(None if bias is None else _wide(bias, device), gain)
        return change, added

    @property
    def pair(self) -> Factors:
        """The pair, where the weight's change is one; else an empty one."""
        live = self.layer.live
        weights = self._held()[0]
        found = weights.factors(live.shape) if is_pair(self.layer, weights) else None
        return NO_PAIR if found is None else found

    @property
    def unit(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """The change at 1, kept."""
        if self._unit is None:
            self._unit = self.at(1.0)
        return self._unit

    @property
    def scales(self) -> bool:
        """Whether the change at a gain is that times the change at 1: a rotation's is not, nor a replaced value."""
        if self._scales is None:
            pairs = zip(self.at(0.5), self.unit, strict=True)
            self._scales = all(one is None or whole is None or _near(2 * one, whole) for one, whole in pairs)
        return self._scales

    def lacks_base(self) -> bool:
        """Whether the change depends on weights that cannot be read."""
        weights, base, _ = self._held()
        live, siblings = self.layer.live, self.layer.siblings
        if siblings is not None:
            return not all(_is_readable(part.live) for part in siblings.parts)
        if not weights.changes_weight or _is_plain(base, live.shape):
            return False
        zeros = torch.zeros(live.shape, device=compute_device(live.module))
        drawn = torch.randn(live.shape, generator=torch.Generator().manual_seed(0)).to(zeros)
        return not torch.equal(weights.delta(zeros, 1.0), weights.delta(drawn, 1.0))


def _is_readable(live: LiveModule) -> bool:
    return readable(live.module, live.attribute) is not None


def _is_plain(base: torch.Tensor, shape: tuple[int, ...]) -> bool:
    return (
        base.is_floating_point()
        and base.device.type != "meta"
        and type(base) is torch.Tensor
        and tuple(base.shape) == shape
    )


def _wide(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    return tensor.to(device, torch.promote_types(torch.float32, tensor.dtype))


def _near(one: torch.Tensor, other: torch.Tensor) -> bool:
    return float((one - other).norm()) <= _SAME * float(other.norm())


class DenseEngine(Engine):
    """
    Holds changes beside layers.

    Args:
        bases: What keeps the clean weights.
    """

    name = "dense"

    def __init__(self, bases: MergedEngine) -> None:
        """Start with none."""
        self._bases = bases
        self._changes: dict[str, dict[int, Change]] = {}
        self._reasons: dict[str, dict[int, str | None]] = {}
        self._buffers: dict[str, GainBuffers] = {}
        self._generations: Counter[str] = Counter()
        self._handles: list[HookHandle] = []
        self._mixes: Sequence[MixGains] = ()
        self._names: Sequence[str] = ()

    def take(self, name: str, layers: Sequence[BoundLayer]) -> None:  # noqa: ARG002
        """Work the adapter's changes out anew when they are asked for."""
        self.forget(name)

    def forget(self, name: str) -> None:
        """Let go of an adapter's changes."""
        self._changes.pop(name, None)
        self._reasons.pop(name, None)

    # --- who carries out what ------------------------------------------------------------------------------------------

    def cost(self, wish: Wish) -> float:  # noqa: ARG002
        """Return more than others cost: this is for what they leave."""
        return 100.0

    def share(self, wish: Wish) -> Shares:
        """
        Take nothing at first.

        Raises:
            MixError: Always: others are asked before.
        """
        raise MixError(f"{', '.join(wish.names)}: no engine can carry this mix out")

    def refusal(self, wish: Wish, name: str, place: int) -> str | None:
        """Return why a layer is not held here; None where it is."""
        layer = wish.layers[name][place]
        if side_pair(layer) is not None:
            return "it is a pair, which the side path has"
        why = self._reason(wish, name, place)
        if why is not None:
            return f"its change cannot be held there in full, since it {why}"
        if self._bases.is_locked(wish, name, place) or is_wanted(wish, layer):
            return None
        return "its change is held beside it only where engine='side' asks for that"

    def _reason(self, wish: Wish, name: str, place: int) -> str | None:
        layers = wish.layers[name]
        known = self._reasons.setdefault(name, {})
        if place not in known:
            known[place] = self._why_not(layers[place], name, place)
        if (
            known[place] is None
            and wish.is_by_place
            and isinstance(layers[place].live.module, torch.nn.Embedding)
        ):
            return "is looked up once for all rows"
        moves = wish.is_moving and layers[place].live.component not in TEXT_ENCODERS
        if known[place] is None and moves and not self._change(layers[place], name, place).scales:
            return "is another change at each weight, and the mix changes its weight from step to step"
        return known[place]

    def _why_not(self, layer: BoundLayer, name: str, place: int) -> str | None:
        live = layer.live
        if layer.widening is not None:
            return "gives the layer more inputs"
        if live.is_bare:
            return "changes a parameter that is no layer's weight"
        if live.tied and layer.weights.reaches_twins:
            return "changes a parameter of several layers"
        if not stands_beside(live.module):
            return f"is for a {type(live.module).__name__}, whose own forward does not compute by its weight alone"
        if self._change(layer, name, place).lacks_base():
            return "depends on the weight, which cannot be read"
        return None

    def _change(self, layer: BoundLayer, name: str, place: int) -> Change:
        own = self._changes.setdefault(name, {})
        if place not in own or own[place].layer is not layer:
            own[place] = Change(layer, self._bases, name, place)
        return own[place]

    # --- taking effect -------------------------------------------------------------------------------------------------

    @property
    def acts(self) -> bool:
        """Whether any change is held beside a layer."""
        return bool(self._buffers)

    @property
    def components(self) -> Collection[str]:
        """The components beside whose layers anything stands."""
        return self._buffers.keys()

    def sees_places(self, component: str) -> bool:
        """Tell whether a component has masks."""
        buffers = self._buffers.get(component)
        return buffers is not None and buffers.masks is not None

    def generation(self, component: str) -> int:
        """Return a number that is another one as soon as the hooks on a component are others."""
        return self._generations[component]

    def clear(self) -> None:
        """Take every hook away."""
        self._generations.update(self._buffers.keys())
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._buffers = {}
        self._mixes = ()

    def swept(self) -> None:
        """Know that the hooks are gone."""
        self._handles.clear()
        self.clear()

    def enter(self, effect: Effect) -> None:
        """Stand beside the layers that this engine was given."""
        served = effect.served[self.name]
        names = sorted(served)
        wanted: dict[int, tuple[LiveModule, list[DensePart]]] = {}
        for adapter, name in enumerate(names):
            gains = [mix.constant(name) for mix in effect.mixes]
            for place, layer in enumerate(effect.layers[name]):
                own = [image[place] for image in gains]
                if served[name][place] and any(own):
                    entry = wanted.setdefault(id(layer.live.module), (layer.live, []))
                    entry[1].extend(self._parts(layer, name, place, adapter, own))
        self._changes = {name: own for name, own in self._changes.items() if name in served}
        masks = stacked_masks(effect.setting.every, names)
        for component in dict.fromkeys(live.component for live, _ in wanted.values()):
            members = [entry for entry in wanted.values() if entry[0].component == component]
            placed = None if component in TEXT_ENCODERS else masks
            buffers = GainBuffers(folds=len(effect.mixes) == 1, masks=placed)
            self._stand(members, buffers, effect.components[component])
            self._buffers[component] = buffers
            self._generations[component] += 1
        self._mixes, self._names = effect.mixes, names
        self.show(Call())

    def _parts(
        self, layer: BoundLayer, name: str, place: int, adapter: int, gains: Sequence[float]
    ) -> Iterator[DensePart]:
        """Give a layer's parts: one, or one for each gain where the change is another one at each."""
        change = self._change(layer, name, place)
        pair = change.pair
        different = {gain for gain in gains if gain}
        if different == {1.0} or change.scales:
            yield DensePart(adapter, pair, gains, place, *change.unit)
            return
        for gain in sorted(different):
            weight, bias = change.at(gain)
            yield DensePart(adapter, pair, [float(own == gain) for own in gains], place, weight, bias)

    def _stand(
        self,
        members: Sequence[tuple[LiveModule, Sequence[DensePart]]],
        buffers: GainBuffers,
        root: nn.Module,
    ) -> None:
        spans = [buffers.span(len(parts)) for _, parts in members]
        layers = []
        for (live, parts), span in zip(members, spans, strict=True):
            like = torch.empty(0, device=compute_device(live.module), dtype=compute_dtype(live.module, root))
            name = f"{live.component}.{live.path}"
            text = live.component not in _UNETS and sees_text(live.path)
            layers.append(DenseLayer(name, parts, buffers, span, like, sees_text=text))
            buffers.add(layers[-1])
        buffers.load([(layer, parts) for layer, (_, parts) in zip(layers, members, strict=True)])
        for layer, (live, _) in zip(layers, members, strict=True):
            self._handles.append(hook_output(live.module, layer))

    def show(self, call: Call) -> None:
        """Put the gains of a step and a pass into effect in all denoisers; before any, in text encoders too."""
        step, turn = call.step, call.turn
        chosen = choices_at(self._mixes, self._names, step)
        for part, buffers in self._buffers.items():
            if part in TEXT_ENCODERS and turn is not None:
                continue
            shares = [[mix.share(name, part, step, turn) for name in self._names] for mix in self._mixes]
            buffers.show(CallGains(shares, chosen, call.rows, call.places))

    def show_text(self, component: str, rows: torch.Tensor) -> None:
        """Give each prompt of a text encoder's batch its own mix."""
        buffers = self._buffers.get(component)
        if buffers is not None:
            shares = [[mix.share(name, component, START) for name in self._names] for mix in self._mixes]
            buffers.show(CallGains(shares, None, rows))
