"""The side path of a pipeline: which layers it stands beside, now or for as long as it is reserved."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from lora_mixer.engines.placement import compute_device
from lora_mixer.engines.side.gain_buffers import CallGains, GainBuffers
from lora_mixer.engines.side.layer import SharedDown, SideLayer, SidePart
from lora_mixer.engines.side.stacks import Stack
from lora_mixer.engines.side.support import compute_dtype, layer_kind
from lora_mixer.errors import MixError
from lora_mixer.mixes import TEXT_ENCODERS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn
    from torch.utils.hooks import RemovableHandle

    from lora_mixer.algorithms import Factors
    from lora_mixer.binding.index import LiveModule
    from lora_mixer.engines.denoiser.steps import Step
    from lora_mixer.engines.gains import MixGains

_ONE_INPUT = ("to_q", "to_k", "to_v")
"""Leaves of an attention's path that have one input: queries too, unless they look at something else."""


@dataclass
class Seat:
    """A layer beside which adapters stand, and their parts."""

    live: LiveModule
    parts: list[SidePart] = field(default_factory=list)

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
        scenes: By component.
        modules: The modules of the layers.
    """

    rank: int
    rows: int
    layers: dict[int, SideLayer]
    scenes: dict[str, GainBuffers]
    modules: list[nn.Module]

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Stand on copied modules, which have other identities."""
        vars(self).update(state)
        self.layers = dict(zip(map(id, self.modules), self.layers.values(), strict=True))


class SideEngine:
    """Holds the hooks of layers and the scenes of components."""

    def __init__(self) -> None:
        """Start with none."""
        self.scenes: dict[str, GainBuffers] = {}
        self.reserved: Reservation | None = None
        self.generations: Counter[str] = Counter()  # by component; another number: other hooks than before
        self._handles: list[RemovableHandle] = []
        self._held: list[RemovableHandle] = []
        self._mixes: Sequence[MixGains] = ()
        self._names: Sequence[str] = ()
        self._start: Step | None = None

    @property
    def active(self) -> bool:
        """Whether any adapter has a part beside a layer."""
        return bool(self._mixes)

    def clear(self) -> None:
        """Take every hook away that is not reserved, and empty those that are."""
        kept = self.reserved.scenes if self.reserved is not None else {}
        self.generations.update(part for part in self.scenes if part not in kept)
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.scenes = {}
        self._mixes = ()

    def empty(self) -> None:
        """Let what is reserved add nothing."""
        for scene in self.reserved.scenes.values() if self.reserved else ():
            scene.load([])
            scene.forget()
            scene.show(CallGains([[]]))

    # --- one mix ---------------------------------------------------------------------------------------------------

    def build(
        self,
        mixes: Sequence[MixGains],
        names: Sequence[str],
        pairs: Mapping[str, Sequence[Factors | None]],
        components: Mapping[str, nn.Module],
        masks: torch.Tensor | None,
        start: Step,
    ) -> None:
        """
        Stand beside layers.

        Args:
            mixes: The mix of each image.
            names: The adapters, in the order of the masks.
            pairs: The factors of each adapter's layers that the side path serves; None for those that it does not.
            components: The pipeline's modules.
            masks: (images * adapters, height, width), or None.
            start: The step before the first one.

        Raises:
            MixError: When there is not enough room reserved.
        """
        seats = self._seats(mixes, names, pairs)
        held = self.reserved
        if held is not None:
            inside = [seat for seat in seats if seat.live.component in held.scenes]
            self._check_room(held, inside, masks, len(mixes))
            for part, scene in held.scenes.items():
                own = [(held.layers[id(s.live.module)], s.parts) for s in inside if s.live.component == part]
                scene.load(own)
                scene.forget()
                self.scenes[part] = scene
            seats = [seat for seat in seats if seat.live.component not in held.scenes]
        for part in dict.fromkeys(seat.live.component for seat in seats):
            own_seats = [seat for seat in seats if seat.live.component == part]
            # a text has no places: masks are no matter for what it is read with
            scene = GainBuffers(folds=len(mixes) == 1, masks=None if part in TEXT_ENCODERS else masks)
            made = make_layers([(seat.live, seat.rank) for seat in own_seats], scene, components[part])
            scene.load([(layer, seat.parts) for layer, seat in zip(made, own_seats, strict=True)])
            for seat, layer in zip(own_seats, made, strict=True):
                self._handles.append(seat.live.module.register_forward_hook(layer))
            self.scenes[part] = scene
            self.generations[part] += 1
        self._mixes, self._names, self._start = mixes, names, start
        self.show(start, None)

    def _seats(
        self,
        mixes: Sequence[MixGains],
        names: Sequence[str],
        pairs: Mapping[str, Sequence[Factors | None]],
    ) -> list[Seat]:
        seats: dict[int, Seat] = {}
        for adapter, name in enumerate(names):
            gains = [mix.constant(name) for mix in mixes]
            for place, (layer, pair) in enumerate(zip(mixes[0].layers[name], pairs[name], strict=True)):
                own = [image[place] for image in gains]
                if pair is not None and any(own):
                    seat = seats.setdefault(id(layer.live.module), Seat(layer.live))
                    seat.parts.append(SidePart(adapter, pair, own, place))
        return list(seats.values())

    def show(
        self,
        step: Step,
        turn: int | None,
        rows: torch.Tensor | None = None,
        latents: tuple[int, int] = (0, 0),
    ) -> None:
        """Put the gains of a step and a pass into effect in all denoisers; before any, in text encoders too."""
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
        for part, scene in self.scenes.items():
            if part in TEXT_ENCODERS and turn is not None:
                continue
            shares = [[mix.share(name, part, step, turn) for name in self._names] for mix in self._mixes]
            scene.show(CallGains(shares, chosen, rows, latents))

    def show_text(self, part: str, rows: torch.Tensor) -> None:
        """Give each prompt of a text encoder's batch its own mix."""
        assert self._start is not None  # noqa: S101 -- called by what build has made
        start = self._start
        shares = [[mix.share(name, part, start) for name in self._names] for mix in self._mixes]
        self.scenes[part].show(CallGains(shares, None, rows))

    # --- room that stays -------------------------------------------------------------------------------------------

    def reserve(
        self, layers: Sequence[LiveModule], rank: int, rows: int, components: Mapping[str, nn.Module]
    ) -> None:
        """Stand beside layers until :meth:`release`, adding nothing yet."""
        by_module: dict[int, SideLayer] = {}
        modules: list[nn.Module] = []
        scenes = {}
        for part in dict.fromkeys(live.component for live in layers):
            own = [live for live in layers if live.component == part]
            scene = GainBuffers(folds=rows == 1, rows=rows)
            made = make_layers([(live, rank) for live in own], scene, components[part])
            scene.load([])
            modules += [live.module for live in own]
            by_module.update(zip(map(id, modules[-len(own) :]), made, strict=True))
            scenes[part] = scene
        self.put_back(Reservation(rank, rows, by_module, scenes, modules))

    def put_back(self, reservation: Reservation | None) -> None:
        """Let this be what is reserved, with its own tensors; nothing happens where it is already."""
        if reservation is self.reserved and (
            reservation is None or len(self._held) == len(reservation.layers)
        ):
            return
        self.release()
        self.reserved = reservation
        if reservation is not None:
            for module in reservation.modules:
                self._held.append(module.register_forward_hook(reservation.layers[id(module)]))
            self.generations.update(reservation.scenes.keys())

    def release(self) -> None:
        """Take the reserved hooks away."""
        for handle in self._held:
            handle.remove()
        self._held.clear()
        if self.reserved is not None:
            self.generations.update(self.reserved.scenes.keys())
        self.reserved = None

    @staticmethod
    def _check_room(
        held: Reservation, seats: Sequence[Seat], masks: torch.Tensor | None, images: int
    ) -> None:
        problems = []
        if masks is not None:
            problems.append("masks need tensors that follow the picture; call release() first")
        if images > 1 and held.rows == 1:
            problems.append(f"{images} mixes for one batch need rows of their own: reserve with rows=")
        outside = [s for s in seats if id(s.live.module) not in held.layers]
        if outside:
            shown = ", ".join(f"{s.live.component}.{s.live.path}" for s in outside[:3])
            problems.append(
                f"{len(outside)} layers were not changed by any adapter when it was reserved ({shown}); reserve again"
            )
        most = max((s.rank for s in seats), default=0)
        if most > held.rank:
            problems.append(f"the mix needs rank {most}, reserved is {held.rank}: reserve with rank={most}")
        if problems:
            raise MixError(f"the reserved side path cannot hold this mix: {'; '.join(problems)}")


def make_layers(
    wanted: Sequence[tuple[LiveModule, int]], scene: GainBuffers, root: nn.Module
) -> list[SideLayer]:
    """
    Make the side layers of a scene, those of one input side by side in one tensor.

    Args:
        wanted: Layers of one component, and the rank of each.
        scene: Their scene, still without layers.
        root: The component.
    """
    spans = [scene.span(rank) for _, rank in wanted]
    groups: dict[object, list[int]] = {}
    for number, (live, _) in enumerate(wanted):
        groups.setdefault(_group_of(live, root) or number, []).append(number)
    layers: dict[int, SideLayer] = {}
    with torch.inference_mode(mode=False), torch.no_grad():
        ups = _ups(wanted, spans, scene, root)
        for members in groups.values():
            live = wanted[members[0]][0]
            ranks = sum(wanted[number][1] for number in members)
            down = torch.zeros(
                ranks,
                *live.shape[1:],
                device=compute_device(live.module),
                dtype=compute_dtype(live.module, root),
            )
            shared = SharedDown(down, len(members)) if len(members) > 1 else None
            start = 0
            for number in members:
                own, rank = wanted[number]
                layer = SideLayer(
                    f"{own.component}.{own.path}",
                    own.module,
                    rank,
                    down[start : start + rank],
                    own.shape,
                    scene,
                    spans[number],
                    *ups[number],
                )
                layer.shared, layer.start = shared, start
                layers[number] = layer
                start += rank
    made = [layers[number] for number in range(len(wanted))]
    for layer in made:
        scene.add(layer)
    return made


def _ups(
    wanted: Sequence[tuple[LiveModule, int]], spans: Sequence[slice], scene: GainBuffers, root: nn.Module
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
        if scene.folds:
            stack = Stack([spans[number] for number in members], live.shape[0], like)
            scene.stack(stack)
            ups.update(zip(members, zip(stack.raw, stack.folded, strict=True), strict=True))
        else:
            raw = like.new_zeros(len(members), live.shape[0], rank)
            ups.update((number, (own, own)) for number, own in zip(members, raw, strict=True))
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
    name = "text" if crossing else parent
    return name, live.shape[1], compute_device(live.module), compute_dtype(live.module, root)


def _has(root: nn.Module, path: str) -> bool:
    try:
        root.get_submodule(path)
    except AttributeError:  # a path from before torch.compile or PEFT wrapped a part
        return False
    return True
