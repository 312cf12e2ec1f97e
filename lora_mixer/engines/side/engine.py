"""The side path of a pipeline: which layers it stands beside, now or for as long as it is reserved."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from lora_mixer.engines.denoiser.places import is_off_picture
from lora_mixer.engines.engine import Call, Engine, Room
from lora_mixer.engines.hooks import hook_output
from lora_mixer.engines.modes import lasting
from lora_mixer.engines.placement import compute_device
from lora_mixer.engines.read_past import READ_PAST
from lora_mixer.engines.side.gain_buffers import AdapterPart, CallGains, GainBuffers, Stack
from lora_mixer.engines.side.layer import SharedDown, SideLayer
from lora_mixer.engines.side.masks import stacked_masks
from lora_mixer.engines.side.support import compute_dtype, layer_kind, side_pair
from lora_mixer.errors import MixError
from lora_mixer.families import family_of_class
from lora_mixer.mixes import TEXT_ENCODERS
from lora_mixer.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from torch import nn

    from lora_mixer.algorithms import Factors
    from lora_mixer.binding import BoundLayer
    from lora_mixer.binding.index import LiveModule
    from lora_mixer.engines.engine import Effect, Shares, Wish
    from lora_mixer.engines.gains import MixGains
    from lora_mixer.engines.hooks import HookHandle

_ADDED = ("add_q_proj", "add_k_proj", "add_v_proj")
"""The same for the text's stream of transformers."""
_ONE_INPUT = ("to_q", "to_k", "to_v", *_ADDED)
"""Leaves of an attention's path that have one input: queries too, unless they look at something else."""

MORE = "; engine='side' holds its whole changes beside the layers, which takes about as much memory as those"

_UNETS = ("unet", "prior", "decoder")


@dataclass
class LayerParts:
    """A layer beside which adapters stand, and their parts."""

    live: LiveModule
    parts: list[AdapterPart] = field(default_factory=list)

    @property
    def rank(self) -> int:
        """The ranks of all parts."""
        return sum(part.rank for part in self.parts)


@dataclass
class Reservation:
    """
    Room that stays.

    Attributes:
        rank: The ranks of each layer that all active adapters may have together.
        rows: The rows of a batch that may differ; 1 where all have one mix.
        layers: By the identity of their modules.
        buffers: By component.
        modules: The modules of the layers.
    """

    rank: int
    rows: int
    layers: dict[int, SideLayer]
    buffers: dict[str, GainBuffers]
    modules: list[nn.Module]

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Stand on copied modules, which have other identities."""
        vars(self).update(state)
        self.layers = dict(zip(map(id, self.modules), self.layers.values(), strict=True))


@dataclass(frozen=True)
class _Built:
    """
    What stands beside the layers of a component; another mix of the same adapters needs other gains only.

    Attributes:
        key: What it was made for.
        buffers: Its gains.
        layers: In the order of what it was made for.
    """

    key: tuple[object, ...]
    buffers: GainBuffers
    layers: list[SideLayer]


class SideEngine(Engine):
    """Runs low-rank pairs beside layers: holds the hooks of layers and the buffers of components."""

    name = "side"
    is_asked_for = True
    leaves_weights = True

    def __init__(self) -> None:
        """Start with none."""
        self.buffers: dict[str, GainBuffers] = {}
        self._reserved: Reservation | None = None
        self._generations: Counter[str] = Counter()  # by component; another number: other hooks than before
        self._handles: list[HookHandle] = []
        self._held: list[HookHandle] = []
        self._mixes: Sequence[MixGains] = ()
        self._names: Sequence[str] = ()
        self._pairs: dict[str, list[Factors | None]] = {}
        self._shown: dict[str, Call] = {}  # what was last put into effect in each component
        self._built: dict[str, _Built] = {}  # without masks, by component
        self._before: dict[str, _Built] = {}  # between clear() and enter(): what stood there

    # --- who carries out what ------------------------------------------------------------------------------------------

    def take(self, name: str, layers: Sequence[BoundLayer]) -> None:  # noqa: ARG002
        """Work the adapter's factors out anew when they are asked for."""
        self._pairs.pop(name, None)

    def forget(self, name: str) -> None:
        """Forget an adapter's factors."""
        self._pairs.pop(name, None)

    def _pairs_of(self, name: str, layers: Sequence[BoundLayer]) -> list[Factors | None]:
        """Return the factors of an adapter's layers, worked out once for as long as it takes part."""
        if name not in self._pairs:
            self._pairs[name] = [side_pair(layer) for layer in layers]
        return self._pairs[name]

    def cost(self, wish: Wish) -> float:  # noqa: ARG002
        """Return what two more products a layer cost: more than a constant mix in weights, less than writing each step."""
        return 1.0

    def share(self, wish: Wish) -> Shares:
        """
        Take the denoisers' layers, and all where rows have mixes of their own.

        Raises:
            MixError: When an adapter has no low-rank form in one of them.
        """
        dense: dict[str, str] = {}
        shares = {}
        for name in wish.names:
            layers = wish.layers[name]
            may_run = [wish.images > 1 or layer.live.component not in TEXT_ENCODERS for layer in layers]
            pairs = self._pairs_of(name, layers) if any(may_run) else [None] * len(layers)
            shares[name] = [mine and pair is not None for mine, pair in zip(may_run, pairs, strict=True)]
            if wish.read_past and any(shares[name]):
                shares[name] = [
                    mine and id(layer.live.module) not in wish.read_past
                    for mine, layer in zip(shares[name], layers, strict=True)
                ]
            for mine, pair, layer in zip(may_run, pairs, layers, strict=True):
                if not mine or pair is not None or layer.widening is not None:
                    continue  # a widened weight is for who has it
                if id(layer.live.module) not in wish.read_past:
                    dense[name] = layer.weights.algorithms[0]
                    break
        # who asks for it by name gets whole changes beside layers, too, but no mask over them
        masked = any(mix[name].mask is not None for mix in wish.setting.every for name in mix.names)
        if dense and (masked or wish.setting.engine != self.name):
            shown = ", ".join(f"{name} ({algorithm})" for name, algorithm in dense.items())
            raise MixError(
                f"{shown}: changes weights in a way that has no low-rank form, so it has no side path; "
                "constant mixes and schedules of it can be merged (engine='merged')"
                f"{'' if masked else MORE}",
                adapter=next(iter(dense)),
                problems=tuple(
                    Problem(name, f"{algorithm} has no low-rank form, so it has no side path")
                    for name, algorithm in dense.items()
                ),
            )
        return shares

    def refusal(self, wish: Wish, name: str, place: int) -> str | None:
        """Return that an adapter has no low-rank form in a layer, where that is so."""
        layers = wish.layers[name]
        if id(layers[place].live.module) in wish.read_past:
            return READ_PAST
        if self._pairs_of(name, layers)[place] is not None:
            return None
        if layers[place].widening is not None:
            return "it gives the module more inputs"
        return (
            f"{name} ({layers[place].weights.algorithms[0]}) has no low-rank form there, so that it cannot run beside "
            "them either"
        )

    # --- taking effect -------------------------------------------------------------------------------------------------

    @property
    def acts(self) -> bool:
        """Whether any adapter has a part beside a layer."""
        return bool(self._mixes)

    @property
    def components(self) -> Collection[str]:
        """The components beside whose layers anything stands."""
        return self.buffers.keys()

    def sees_places(self, component: str) -> bool:
        """Tell whether a component has masks."""
        buffers = self.buffers.get(component)
        return buffers is not None and buffers.masks is not None

    def written(self, component: str) -> GainBuffers | None:
        """Return what counts the writes of gains."""
        return self.buffers.get(component)

    def generation(self, component: str) -> int:
        """Return a number that is another one as soon as the hooks on a component are others."""
        return self._generations[component]

    def clear(self) -> None:
        """Take every hook away that is not reserved, and empty those that are."""
        kept = self._reserved.buffers if self._reserved is not None else {}
        self._generations.update(part for part in self.buffers if part not in kept)
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._before, self._built = self._built, {}
        self.buffers = {}
        self._mixes, self._shown = (), {}

    def empty(self) -> None:
        """Let what is reserved add nothing."""
        self._before = {}
        for buffers in self._reserved.buffers.values() if self._reserved else ():
            buffers.load([])
            buffers.forget()
            buffers.show(CallGains([[]]))

    def enter(self, effect: Effect) -> None:
        """
        Stand beside the layers that this engine was given.

        Raises:
            MixError: When there is not enough room reserved.
        """
        before, self._before = self._before, {}
        served = effect.served[self.name]
        names = sorted(served)
        if any(any(shares) for shares in served.values()):
            pairs = {
                name: [
                    pair if mine else None
                    for pair, mine in zip(
                        self._pairs_of(name, effect.layers[name]), served[name], strict=True
                    )
                ]
                for name in names
            }
            masks = stacked_masks(effect.setting.every, names)
            self._build(effect.mixes, names, pairs, effect.components, masks, before)
        else:
            self.empty()
        self._pairs = {name: pairs for name, pairs in self._pairs.items() if name in served}

    def _build(
        self,
        mixes: Sequence[MixGains],
        names: Sequence[str],
        pairs: Mapping[str, Sequence[Factors | None]],
        components: Mapping[str, nn.Module],
        masks: torch.Tensor | None,
        before: Mapping[str, _Built],
    ) -> None:
        """
        Stand beside layers.

        Args:
            mixes: The mix of each image.
            names: The adapters, in the order of the masks.
            pairs: The factors of each adapter's layers that the side path serves; None for those that it does not.
            components: The pipeline's modules.
            masks: (images * adapters, frames, height, width), or None.
            before: What stood beside layers under the mix before, whose hooks are gone.

        Raises:
            MixError: When there is not enough room reserved.
        """
        wanted = self._wanted(mixes, names, pairs)
        held = self._reserved
        if held is not None:
            inside = [one for one in wanted if one.live.component in held.buffers]
            self._check_room(held, inside, masks, len(mixes))
            for component, buffers in held.buffers.items():
                buffers.load(
                    [
                        (held.layers[id(one.live.module)], one.parts)
                        for one in inside
                        if one.live.component == component
                    ]
                )
                buffers.forget()
                self.buffers[component] = buffers
            wanted = [one for one in wanted if one.live.component not in held.buffers]
        for component in dict.fromkeys(one.live.component for one in wanted):
            members = [one for one in wanted if one.live.component == component]
            # a text has no places: masks are no matter for what it is read with
            placed = None if component in TEXT_ENCODERS else masks
            key = (
                len(mixes) == 1,
                id(components[component]),
                *(_place_of(one, components[component]) for one in members),
            )
            built = before.get(component)
            if built is None or built.key != key or placed is not None:
                buffers = GainBuffers(folds=len(mixes) == 1, masks=placed)
                made = make_layers([(one.live, one.rank) for one in members], buffers, components[component])
                built = _Built(key, buffers, made)
            if placed is None:
                self._built[component] = built
            buffers, layers = built.buffers, built.layers
            buffers.load([(layer, one.parts) for layer, one in zip(layers, members, strict=True)])
            for one, layer in zip(members, layers, strict=True):
                self._handles.append(hook_output(one.live.module, layer))
            self.buffers[component] = buffers
            self._generations[component] += 1
        self._mixes, self._names = mixes, names
        self.show(Call())

    def _wanted(
        self,
        mixes: Sequence[MixGains],
        names: Sequence[str],
        pairs: Mapping[str, Sequence[Factors | None]],
    ) -> list[LayerParts]:
        wanted: dict[int, LayerParts] = {}
        for adapter, name in enumerate(names):
            gains = [mix.constant(name) for mix in mixes]
            for place, (layer, pair) in enumerate(zip(mixes[0].layers[name], pairs[name], strict=True)):
                pair_gains = [image[place] for image in gains]
                if pair is not None and any(pair_gains):
                    one = wanted.setdefault(id(layer.live.module), LayerParts(layer.live))
                    one.parts.append(AdapterPart(adapter, pair, pair_gains, place))
        return list(wanted.values())

    def show(self, call: Call) -> None:
        """Put the gains of a step and a pass into effect in all denoisers; before any, in text encoders too."""
        parts = [part for part in self.buffers if part not in TEXT_ENCODERS or call.turn is None]
        self._shown.update(dict.fromkeys(parts, call))
        self._put(parts, call)

    def show_again(self, component: str) -> None:
        """Put into effect in a component what was last, with the scale that calls of it have now."""
        if component in self._shown:
            self._put([component], self._shown[component])

    def _put(self, parts: Sequence[str], call: Call) -> None:
        step, turn = call.step, call.turn
        choices = [[mix.choice(name, step) for name in self._names] for mix in self._mixes]
        chosen = None
        if any(choice is not None for image in choices for choice in image):
            chosen = [
                [
                    choice or [1.0] * len(mix.layers[name])
                    for name, choice in zip(self._names, image, strict=True)
                ]
                for mix, image in zip(self._mixes, choices, strict=True)
            ]
        for part in parts:
            shares = [[mix.share(name, part, step, turn) for name in self._names] for mix in self._mixes]
            self.buffers[part].show(CallGains(shares, chosen, call.rows, call.places))

    def show_text(self, component: str, rows: torch.Tensor) -> None:
        """Give each prompt of a text encoder's batch its own mix."""
        if component in self.buffers:  # else another engine has all layers of it
            self._shown[component] = Call(rows=rows)
            self.show_again(component)

    # --- room that stays -------------------------------------------------------------------------------------------

    @property
    def room(self) -> Room | None:
        """What is reserved."""
        held = self._reserved
        return (
            None if held is None else Room(held.rank, held.rows, frozenset(held.layers), tuple(held.buffers))
        )

    def reserve(
        self, layers: Sequence[LiveModule], rank: int, rows: int, components: Mapping[str, nn.Module]
    ) -> bool:
        """Stand beside layers until :meth:`release`, adding nothing yet."""
        layers = [live for live in layers if layer_kind(live.module) is not None]
        if not layers:
            return False
        by_module: dict[int, SideLayer] = {}
        modules: list[nn.Module] = []
        by_component: dict[str, GainBuffers] = {}
        for component in dict.fromkeys(live.component for live in layers):
            members = [live for live in layers if live.component == component]
            buffers = GainBuffers(folds=rows == 1, rows=rows)
            made = make_layers([(live, rank) for live in members], buffers, components[component])
            buffers.load([])
            for live, layer in zip(members, made, strict=True):
                by_module[id(live.module)] = layer
                modules.append(live.module)
            by_component[component] = buffers
        self._hold(Reservation(rank, rows, by_module, by_component, modules))
        return True

    def _hold(self, reservation: Reservation | None) -> None:
        """Let this be what is reserved, with its own tensors; nothing happens where it is already."""
        if reservation is self._reserved and (
            reservation is None or len(self._held) == len(reservation.layers)
        ):
            return
        self.release()
        self._reserved = reservation
        if reservation is not None:
            for module in reservation.modules:
                self._held.append(hook_output(module, reservation.layers[id(module)]))
            self._generations.update(reservation.buffers.keys())

    def record(self) -> Reservation | None:
        """Note what is reserved."""
        return self._reserved

    def put_back(self, record: Any) -> None:  # noqa: ARG002 -- nothing was reserved since
        """Work out all factors anew: the adapters may be others."""
        self._pairs.clear()

    def roll_back(self, record: Any) -> None:
        """Reserve what was reserved."""
        self._pairs.clear()
        self._hold(record)

    def force_base(self, record: Any) -> list[str]:  # noqa: ARG002
        """Let go of what is reserved, too: nothing is in effect."""
        self._pairs.clear()
        self.release()
        return []

    def swept(self) -> None:
        """Know of no hook any more; what is reserved stays, for :meth:`roll_back`."""
        self.clear()
        self._before = {}  # it may be half written
        self._held.clear()

    def release(self) -> None:
        """Take the reserved hooks away."""
        for handle in self._held:
            handle.remove()
        self._held.clear()
        if self._reserved is not None:
            self._generations.update(self._reserved.buffers.keys())
        self._reserved = None

    @staticmethod
    def _check_room(
        held: Reservation, wanted: Sequence[LayerParts], masks: torch.Tensor | None, images: int
    ) -> None:
        problems = []
        if masks is not None:
            problems.append("masks need tensors that follow the picture; call release() first")
        if images > 1 and held.rows == 1:
            problems.append(f"{images} mixes for one batch need rows of their own: reserve with rows=")
        outside = [s for s in wanted if id(s.live.module) not in held.layers]
        if outside:
            shown = ", ".join(f"{s.live.component}.{s.live.path}" for s in outside[:3])
            problems.append(
                f"{len(outside)} layers were not changed by any adapter when it was reserved ({shown}); reserve again"
            )
        most = max((s.rank for s in wanted), default=0)
        if most > held.rank:
            problems.append(f"the mix needs rank {most}, reserved is {held.rank}: reserve with rank={most}")
        if problems:
            raise MixError(
                f"the reserved side path cannot hold this mix: {'; '.join(problems)}",
                problems=tuple(Problem("", text) for text in problems),
            )


def _place_of(one: LayerParts, root: nn.Module) -> tuple[object, ...]:
    """Return what the tensors beside a layer are made for."""
    live = one.live
    return (
        id(live.module),
        one.rank,
        live.beside_shape,
        compute_device(live.module),
        compute_dtype(live.module, root),
    )


def make_layers(
    wanted: Sequence[tuple[LiveModule, int]], buffers: GainBuffers, root: nn.Module
) -> list[SideLayer]:
    """
    Make the side layers of a component, those of one input side by side in one tensor.

    Args:
        wanted: Layers of one component, and the rank of each.
        buffers: Their gains, still without layers.
        root: The component.
    """
    spans = [buffers.span(rank) for _, rank in wanted]
    groups: dict[object, list[int]] = {}
    for number, (live, _) in enumerate(wanted):
        groups.setdefault(_group_of(live, root) or number, []).append(number)
    layers: dict[int, SideLayer] = {}
    family = family_of_class(type(root).__name__)
    with lasting():
        ups = _ups(wanted, spans, buffers, root)
        for members in groups.values():
            live = wanted[members[0]][0]
            ranks = sum(wanted[number][1] for number in members)
            down = torch.zeros(
                ranks,
                *live.beside_shape[1:],
                device=compute_device(live.module),
                dtype=compute_dtype(live.module, root),
            )  # (ranks of all members, in, *kernel)
            shared = SharedDown(down, len(members)) if len(members) > 1 else None
            start = 0
            for number in members:
                live_layer, rank = wanted[number]
                layer = SideLayer(
                    f"{live_layer.component}.{live_layer.path}",
                    live_layer.module,
                    rank,
                    down[start : start + rank],
                    live_layer.beside_shape,
                    buffers,
                    spans[number],
                    *ups[number],
                    off_picture=live_layer.component not in _UNETS
                    and is_off_picture(live_layer.path, family),
                )
                layer.shared, layer.start = shared, start
                layers[number] = layer
                start += rank
    made = [layers[number] for number in range(len(wanted))]
    for layer in made:
        buffers.add(layer)
    return made


def _ups(
    wanted: Sequence[tuple[LiveModule, int]], spans: Sequence[slice], buffers: GainBuffers, root: nn.Module
) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
    """Make the B of all layers, as they are and as they are used; those of one shape lie together."""
    alike: dict[tuple[object, ...], list[int]] = {}
    for number, (live, rank) in enumerate(wanted):
        key = (live.shape[0], rank, compute_device(live.module), compute_dtype(live.module, root))
        alike.setdefault(key, []).append(number)
    ups: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    for members in alike.values():
        live, rank = wanted[members[0]]
        like = torch.empty(0, device=compute_device(live.module), dtype=compute_dtype(live.module, root))
        if buffers.folds:
            stack = Stack([spans[number] for number in members], live.shape[0], like)
            buffers.stack(stack)
            ups.update(zip(members, zip(stack.raw, stack.folded, strict=True), strict=True))
        else:
            raw = like.new_zeros(len(members), live.shape[0], rank)  # (layers, out, rank)
            ups.update((number, (up, up)) for number, up in zip(members, raw, strict=True))
    return ups


def _group_of(live: LiveModule, root: nn.Module) -> object:
    """Name the group of layers with one input that a layer belongs to, or None."""
    parent, _, leaf = live.path.rpartition(".")
    if leaf not in _ONE_INPUT or not parent or layer_kind(live.module) != "linear":
        return None
    holder = root.get_submodule(parent) if _has(root, parent) else None
    crossing = getattr(holder, "is_cross_attention", False)
    if leaf == "to_q" and crossing:
        return None
    # all blocks look at one text
    name = f"{parent}+" if leaf in _ADDED else "text" if crossing else parent
    return name, live.shape[1], compute_device(live.module), compute_dtype(live.module, root)


def _has(root: nn.Module, path: str) -> bool:
    try:
        root.get_submodule(path)
    except AttributeError:  # a path from before torch.compile or PEFT wrapped a part
        return False
    return True
