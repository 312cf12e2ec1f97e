"""
What an engine is: one way in which adapters take effect on live modules.

The controller holds one engine for each row of ``engines/table.py`` and asks who can carry a mix out
and how dearly, shares the layers out, and lets each engine have its own. Of the merged one alone it knows more: that keeps the bases, which
all need. A new engine is a file with a subclass of
:class:`Engine`, which has to say three things (``clear``, ``enter``, ``acts``), and a row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from lora_mixer.engines.denoiser.places import Places
from lora_mixer.engines.denoiser.steps import START, Step
from lora_mixer.engines.read_past import read_past
from lora_mixer.mixes import TEXT_ENCODERS

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    import torch
    from torch import nn

    from lora_mixer.binding import BoundLayer
    from lora_mixer.binding.index import LiveModule
    from lora_mixer.binding.layers import BoundLayers
    from lora_mixer.engines.active import ActiveMixes
    from lora_mixer.engines.gains import MixGains

    Shares = Mapping[str, Sequence[bool]]
    """By adapter, which of its layers."""


class Written(Protocol):
    """Counts how often tensors were written in place."""

    writes: int


class Own:
    """What one engine alone needs of an adapter, beside its layers; such an adapter is in no other engine."""

    engine: ClassVar[str]
    """The engine's name in the table."""


@dataclass(frozen=True)
class Wish:
    """
    What is to take effect, before it is known who carries it out.

    Attributes:
        setting: The mixes and how to serve them.
        layers: The layers of all loaded adapters.
        names: The adapters of the mixes that are shared out, without those that one engine has alone.
        is_reserved: Whether an engine keeps room for mixes to come.
        components: The pipeline's modules.
        leaves_weights: Whether no weight of a denoiser is to be written.
    """

    setting: ActiveMixes
    layers: Mapping[str, BoundLayers]
    names: Sequence[str]
    is_reserved: bool = False
    components: Mapping[str, nn.Module] = field(default_factory=dict)
    leaves_weights: bool = False

    @cached_property
    def read_past(self) -> Collection[int]:
        """The identities of modules beside which nothing is heard: others read their weights without calling them."""
        parts = {part for name in self.names for part in self.layers[name].components}
        return {
            module for part in parts & self.components.keys() for module in read_past(self.components[part])
        }

    @property
    def images(self) -> int:
        """How many mixes the rows of a batch can have."""
        return len(self.setting.every)

    def is_widened(self, live: LiveModule) -> bool:
        """Tell whether an adapter of the mixes gives a module more inputs: its weight is another one then."""
        place = live.component, live.path
        return any(place in self.layers[name].widened for name in self.setting.names)

    @property
    def is_by_place(self) -> bool:
        """Whether gains differ from row to row, or from place to place in the picture."""
        mixes = self.setting.every
        return len(mixes) > 1 or any(mix[name].mask is not None for mix in mixes for name in mix.names)

    @property
    def is_moving(self) -> bool:
        """Whether gains differ from step to step."""
        return any(not mix.is_constant for mix in self.setting.every)


@dataclass(frozen=True)
class Effect:
    """
    What takes effect.

    Attributes:
        mixes: The gains of each mix that rows can have.
        layers: The layers of all loaded adapters.
        served: By engine, the layers that it has been given.
        components: The pipeline's modules.
        setting: What was asked for.
        is_moving: Whether gains differ from step to step.
    """

    mixes: Sequence[MixGains]
    layers: Mapping[str, BoundLayers]
    served: Mapping[str, Shares]
    components: Mapping[str, nn.Module]
    setting: ActiveMixes
    is_moving: bool = False

    def has_denoiser(self, engine: str) -> bool:
        """Tell whether an engine has been given a layer of a denoiser."""
        return any(
            mine and layer.live.component not in TEXT_ENCODERS
            for name, shares in self.served[engine].items()
            for mine, layer in zip(shares, self.layers[name], strict=True)
        )


@dataclass(frozen=True)
class Call:
    """
    One call of a denoiser.

    Attributes:
        step: The step.
        turn: The pass, from 0, where a call takes several; None before any call.
        rows: The mix of each row; None where there is one for all.
        places: Where the picture lies.
    """

    step: Step = START
    turn: int | None = None
    rows: torch.Tensor | None = None
    places: Places = Places()  # noqa: RUF009 -- frozen


@dataclass(frozen=True)
class Room:
    """
    What an engine keeps for mixes to come.

    Attributes:
        rank: The ranks of each layer.
        rows: The rows of a batch that may differ.
        modules: The identities of the modules that it is beside.
        components: The components of these.
    """

    rank: int
    rows: int
    modules: frozenset[int]
    components: tuple[str, ...]


class Engine(ABC):
    """
    One way to carry mixes out.

    The order of things: ``take`` and ``claim`` when an adapter is loaded, ``forget`` when it goes. For each new mix ``look``,
    then ``cost`` and ``share`` or ``refusal``, ``clear``, ``enter``; at each step of a moving mix ``show``. What has changed
    between ``record`` and ``roll_back`` is undone, whatever state it was left in.
    """

    name: ClassVar[str]
    """Its name in the table."""
    is_asked_for: ClassVar[bool] = False
    """Whether ``set_mix(engine=name)`` may name it."""
    leaves_weights: ClassVar[bool] = False
    """Whether who asks for it asks that no weight of a denoiser is written: what it cannot serve is served beside, too."""

    # --- adapters --------------------------------------------------------------------------------------------------

    def take(self, name: str, layers: Sequence[BoundLayer]) -> None:
        """Take an adapter's layers, in the place of those that it has; nothing takes effect yet."""
        del name, layers

    def claim(self, name: str, trained: Any, roots: Sequence[nn.Module]) -> None:
        """Have an adapter alone from now on, with what goes with it; ``roots`` are the components that it reaches."""
        raise NotImplementedError(f"{self.name} has no adapters of its own")

    def own(self, name: str) -> Own | None:
        """Return what this engine alone has of an adapter; None where it may be shared out."""
        del name
        return None

    def forget(self, name: str) -> None:
        """Forget an adapter that is in no mix any more."""
        del name

    # --- who carries out what --------------------------------------------------------------------------------------

    def look(self, wish: Wish) -> None:
        """
        Look at what others did since, and whether the wish makes sense here; nothing is changed.

        Raises:
            PipelineStateError: When what is in effect cannot be changed any more.
            MixError: When the wish cannot be carried out, whoever has its layers.
        """
        del wish

    def cost(self, wish: Wish) -> float | None:
        """Return what the wish costs here beside other engines; None where only what is given by name is taken."""
        del wish
        return None

    def share(self, wish: Wish) -> Shares:
        """
        Return which layers of the wish this engine takes; the others go to who can have them.

        Raises:
            MixError: When it cannot carry the wish out.
            PipelineStateError: When it could, but for the state of the pipeline.
        """
        raise NotImplementedError(f"{self.name} takes no mixes; cost() says so")

    def refusal(self, wish: Wish, name: str, place: int) -> str | None:
        """Return why this engine cannot have one layer of an adapter; None where it can."""
        del wish, name, place
        return f"{self.name} takes none"

    # --- taking effect ---------------------------------------------------------------------------------------------

    @abstractmethod
    def clear(self) -> None:
        """Take all away that stands beside layers, but for room that is kept; :meth:`enter` or :meth:`empty` follows."""

    def empty(self) -> None:  # noqa: B027 -- most engines keep none
        """Let room that is kept add nothing."""

    @abstractmethod
    def enter(self, effect: Effect) -> None:
        """Let the layers that this engine was given have their part of the mixes, as before the first step."""

    def show(self, call: Call) -> None:
        """Put the gains of a call of a denoiser into effect."""
        del call

    def show_again(self, component: str) -> None:
        """Put into effect in a component what was last, with the scale that calls of it have now."""
        del component

    def show_text(self, component: str, rows: torch.Tensor) -> None:
        """Give each text of a text encoder's batch its own mix."""
        del component, rows

    def sees_places(self, component: str) -> bool:
        """Tell whether gains go by where the picture lies in the calls of a component."""
        del component
        return False

    @property
    def components(self) -> Collection[str]:
        """The components beside whose layers something stands now."""
        return ()

    @property
    @abstractmethod
    def acts(self) -> bool:
        """Whether anything changes the pipeline now: a mix of zeros does not."""

    @property
    def is_in_parameters(self) -> bool:
        """Whether all that is in effect here is in parameters."""
        return not self.acts

    def written(self, component: str) -> Written | None:
        """Return what counts the writes to tensors beside the layers of a component that graphs of calls hold; None where none is written."""
        del component
        return None

    def generation(self, component: str) -> int:
        """Return a number that is another one as soon as what was recorded of a component is no more true."""
        del component
        return 0

    # --- room for mixes to come ------------------------------------------------------------------------------------

    @property
    def room(self) -> Room | None:
        """What is kept for mixes to come."""
        return None

    def reserve(
        self,
        layers: Sequence[LiveModule],
        rank: int,
        rows: int,
        components: Mapping[str, nn.Module],
    ) -> bool:
        """Keep room beside those of some layers that this engine can stand beside; tell whether there are any."""
        del layers, rank, rows, components
        return False

    def release(self) -> None:  # noqa: B027 -- most engines keep none
        """Let go of room that is kept."""

    # --- all or nothing --------------------------------------------------------------------------------------------

    def record(self) -> Any:
        """Note what is held, for the three that follow."""
        return None

    def put_back(self, record: Any) -> None:
        """Hold the adapters that were recorded, where nothing else has changed since."""
        del record

    def roll_back(self, record: Any) -> None:
        """Hold what was recorded, after every hook was taken off the modules; the mix from before is entered then."""
        self.put_back(record)

    def force_base(self, record: Any) -> list[str]:
        """
        Hold the adapters that were recorded and let none be in effect, whatever fails.

        Returns:
            The names of weights that could not be given their base; that is kept.
        """
        self.put_back(record)
        return []

    def swept(self) -> None:
        """Know that every hook was taken off the modules, also those of room that is kept."""
        self.clear()

    def settle(self, *, undone: bool = False) -> None:
        """
        Let go of what only a way back needs; ``undone`` says that the way back was gone.

        A change that is settled stands, so that an error here is nobody's: the next :meth:`record` lets go of what is left.
        """
        del undone
