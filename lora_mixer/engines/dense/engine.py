"""
Runs what has no low-rank form beside weights that stay as they are.

The dearest engine, for what no other can have: beside weights that cannot be rewritten (IA3, DoRA, LoHa, LoKr, trained heads and
biases on packed layers), where rows of a batch have mixes of their own, and where ``engine="side"`` asks that no layer's weight
be written.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from lora_mixer.engines.dense.layer import DenseLayer, refusal
from lora_mixer.engines.engine import Call, Engine
from lora_mixer.engines.hooks import hook_output
from lora_mixer.engines.merged.kept_weight import unsupported
from lora_mixer.engines.offloaded import is_kept
from lora_mixer.engines.read_past import READ_PAST
from lora_mixer.engines.side.support import side_pair
from lora_mixer.errors import MixError
from lora_mixer.mixes import TEXT_ENCODERS

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    import torch

    from lora_mixer.algorithms import LayerWeights
    from lora_mixer.binding.index import LiveModule
    from lora_mixer.engines.engine import Effect, Shares, Wish
    from lora_mixer.engines.gains import MixGains
    from lora_mixer.engines.hooks import HookHandle
    from lora_mixer.engines.merged.engine import MergedEngine


class DenseEngine(Engine):
    """Holds the hooks of modules, by component."""

    name = "dense"

    def __init__(self, bases: MergedEngine) -> None:
        """Start with none; ``bases`` knows the weights of the whole layer where a module has some rows of one."""
        self._bases = bases
        self._layers: dict[str, list[DenseLayer]] = {}
        self._handles: list[HookHandle] = []
        self._mixes: Sequence[MixGains] = ()
        self._generations: Counter[str] = Counter()
        self._shown: dict[str, Call] = {}

    # --- who carries out what ------------------------------------------------------------------------------------------

    def cost(self, wish: Wish) -> float:  # noqa: ARG002
        """Return the cost: more than all others."""
        return 3.0

    def share(self, wish: Wish) -> Shares:
        """
        Take what has no low-rank form; pairs go to who has them for less.

        Raises:
            MixError: When gains differ by place in the picture, or rows of a layer cannot be told apart.
        """
        if has_masks(wish):
            raise MixError("masks need a low-rank form in every layer")
        shares = {}
        for name in wish.names:
            layers = wish.layers[name]
            shares[name] = [
                side_pair(layer) is None and id(layer.live.module) not in wish.read_past for layer in layers
            ]
            for place, mine in enumerate(shares[name]):
                reason = self.refusal(wish, name, place) if mine else None
                if reason:
                    live = layers[place].live
                    raise MixError(
                        f"adapter {name!r}: {reason}", key=f"{live.component}.{live.path}", adapter=name
                    )
        return shares

    def refusal(self, wish: Wish, name: str, place: int) -> str | None:
        """Return why a layer's output cannot be changed from outside; None where it can."""
        layer = wish.layers[name][place]
        reasons = {
            READ_PAST: id(layer.live.module) in wish.read_past,
            "it is a pair, which the side path has": side_pair(layer) is not None,
            "it is a pair over all inputs of a convolution in groups, which only a side path could have": (
                layer.weights.beside_only
            ),
            "masks need a low-rank form in every layer": has_masks(wish),
            "it gives the module more inputs": layer.widening is not None,
            "an adapter beside it gives the module more inputs": wish.is_widened(layer.live),
        }
        for reason, holds in reasons.items():
            if holds:
                return reason
        packed = (
            not layer.live.is_bare
            and unsupported(layer.live.weight) is not None
            and not (layer.live.weight.is_meta and is_kept(layer.live.module, layer.live.attribute))
        )
        why = refusal(layer.live, packed=packed, rows=wish.images > 1)
        if why is not None or wish.images > 1 or self._bases.refusal(wish, name, place) is not None:
            return why
        if wish.leaves_weights and layer.live.component not in TEXT_ENCODERS:
            return None
        return "its weight can be written"

    # --- taking effect -------------------------------------------------------------------------------------------------

    @property
    def acts(self) -> bool:
        """Whether anything stands beside a module."""
        return bool(self._handles)

    @property
    def components(self) -> Collection[str]:
        """The components beside whose modules anything stands."""
        return self._layers.keys()

    def generation(self, component: str) -> int:
        """Return a number that is another one as soon as the hooks on a component, or what they add, are others."""
        return self._generations[component]

    def clear(self) -> None:
        """Take every hook away."""
        self._generations.update(self._layers.keys())
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._layers, self._mixes, self._shown = {}, (), {}

    def enter(self, effect: Effect) -> None:
        """Stand beside the modules that this engine was given."""
        layers: dict[tuple[int, str], tuple[LiveModule, list[tuple[LayerWeights, str, int]]]] = {}
        for name, shares in effect.served[self.name].items():
            if not any(shares):
                continue
            constant = [mix.constant(name) for mix in effect.mixes]
            for place, mine in enumerate(shares):
                if mine and any(gains[place] for gains in constant):
                    layer = effect.layers[name][place]
                    key = id(layer.live.module), layer.live.attribute
                    weights = layer.weights if layer.siblings is None else self._bases.held_at(name, place)
                    layers.setdefault(key, (layer.live, []))[1].append((weights, name, place))
        if not layers:  # nearly always: what nothing is beside costs nothing at a step either
            return
        for live, parts in layers.values():
            beside = DenseLayer(live, parts)
            self._layers.setdefault(live.component, []).append(beside)
            self._handles.append(hook_output(live.module, beside, first=True))
        self._generations.update(self._layers.keys())
        self._mixes = effect.mixes
        self.show(Call())

    def show(self, call: Call) -> None:
        """Put the gains of a call into effect in all denoisers; before any, in text encoders, too."""
        self._put([part for part in self._layers if part not in TEXT_ENCODERS or call.turn is None], call)

    def show_again(self, component: str) -> None:
        """Put into effect in a component what was last, with the scale that calls of it have now."""
        if component in self._shown:
            self._put([component], self._shown[component])

    def show_text(self, component: str, rows: torch.Tensor) -> None:
        """Give each text of a text encoder's batch its own mix."""
        if component in self._layers:
            self._put([component], Call(rows=rows))

    def _put(self, components: Sequence[str], call: Call) -> None:
        gains = [mix.at(call.step, call.turn) for mix in self._mixes] if components else []
        for component in components:
            self._shown[component] = call
            for layer in self._layers[component]:
                layer.show(gains, call.rows)
            self._generations[component] += 1


def has_masks(wish: Wish) -> bool:
    """Tell whether an adapter of any mix has a mask."""
    return any(mix[name].mask is not None for mix in wish.setting.every for name in mix.names)
