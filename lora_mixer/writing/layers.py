"""What is to be written, before any format: layers at their places, as pairs with an alpha."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from torch import nn

from lora_mixer.algorithms.columns import Padded, with_columns
from lora_mixer.errors import SaveError
from lora_mixer.problem import Remedy

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from lora_mixer.adapter import AdapterInfo
    from lora_mixer.algorithms import LayerWeights
    from lora_mixer.binding.index import LiveModule
    from lora_mixer.problem import Remark, UnusedReason


OTHER_FORMAT = Remedy(
    "use format='diffusers' or 'peft'",
    "use --to diffusers or --to peft",
    "choose diffusers or PEFT as the format",
)
"""What writes modules that a format has no names for."""
BASE_OR_FORMAT = Remedy(
    f"name the base model, a checkpoint or a diffusers folder, with model=, or {OTHER_FORMAT.python}",
    f"name the base model, a checkpoint or a diffusers folder, with --model, or {OTHER_FORMAT.command}",
)
"""What writes modules whose names in a format follow from their base, which is not known."""


@dataclass(frozen=True)
class ModulePlace:
    """
    A module that an adapter changes, whether or not a model is at hand.

    Attributes:
        component: Its component's name, such as ``unet``.
        path: Its path in the component; the file's own spelling where no model is known.
        shape: Shape of its weight, (out, in, *kernel).
        embedding: Whether it is a table of embeddings, (tokens, width).
        bare: Whether it is a parameter that is no module's weight, such as a table of shifts: its change is written in full.
    """

    component: str
    path: str
    shape: tuple[int, ...]
    embedding: bool = False
    bare: bool = False

    @classmethod
    def of(cls, live: LiveModule) -> ModulePlace:
        """Return the place of a module, or of a bare parameter, of a live model."""
        is_table = isinstance(live.module, nn.Embedding)
        return cls(live.component, live.path, live.shape, is_table, live.is_bare and not live.is_packed)

    def __str__(self) -> str:
        """Return component and path, for messages."""
        return f"{self.component}.{self.path}"


@dataclass(frozen=True)
class Part:
    """
    One adapter's part in one module, and what its change is computed from.

    Attributes:
        place: The module.
        weights: The adapter's tensors and algorithm.
        base: The clean base weight, (out, in, *kernel), or None where there is none at hand.
        bias: The clean bias, or None.
        leaves: The tensors under the file's own leaf names, such as ``.hada_w1_a``; empty where unknown.
        columns: The inputs that it gives the module, where these are more than the model's.
    """

    place: ModulePlace
    weights: LayerWeights
    base: torch.Tensor | None = None
    bias: torch.Tensor | None = None
    leaves: Mapping[str, torch.Tensor] = field(default_factory=dict)
    columns: int | None = None

    def __post_init__(self) -> None:
        """
        Refuse what no weight can hold.

        Raises:
            SaveError: When the change runs beside its layer only.
        """
        if self.weights.beside_only:
            raise SaveError(
                "a pair over all inputs of a convolution in groups runs beside its "
                "layer, and no format has a place for it that other programs read alike; save an adapter without it",
                key=str(self.place),
            )


@dataclass(frozen=True)
class AdapterParts:
    """
    One adapter, from a file or from a mixer, as what a new one is made of.

    Attributes:
        info: Its description.
        parts: Its layers.
        unused: Keys of its file that are in none, with the reason.
    """

    info: AdapterInfo
    parts: Sequence[Part]
    unused: Mapping[str, Remark[UnusedReason]] = field(default_factory=dict)

    @property
    def components(self) -> tuple[str, ...]:
        """The components that it changes, in their order."""
        return tuple(dict.fromkeys(part.place.component for part in self.parts))

    @property
    def places(self) -> tuple[tuple[str, str], ...]:
        """The component and path of each of its layers."""
        return tuple((part.place.component, part.place.path) for part in self.parts)


@dataclass(frozen=True)
class Share:
    """
    What one adapter adds to one module of a mix.

    Attributes:
        adapter: The adapter's name.
        part: Its part in the module.
        gain: Its weight there, blocks and components in it.
    """

    adapter: str
    part: Part
    gain: float


def of_one_width(place: ModulePlace, shares: Sequence[Share]) -> tuple[ModulePlace, list[Share]]:
    """
    Return what adapters add to a module that some of them give more inputs, all for as many.

    Args:
        place: The module.
        shares: What they add.
    """
    columns = max((share.part.columns or 0 for share in shares), default=0)
    if not columns:
        return place, list(shares)
    wide = replace(place, shape=(place.shape[0], columns, *place.shape[2:]))
    same = []
    for share in shares:
        part, weights = share.part, share.part.weights
        own = weights.in_width or place.shape[1]
        padded = weights if own == columns else Padded(weights, own, weights.alpha)
        base = None if part.base is None else with_columns(part.base, columns)
        leaves = part.leaves if own == columns else {}
        same.append(replace(share, part=replace(part, place=wide, weights=padded, base=base, leaves=leaves)))
    return wide, same


@dataclass(frozen=True)
class NewLayer:
    """
    One module of the adapter to write; its change is ``alpha / rank * up @ down``.

    Attributes:
        place: The module.
        up: (out, rank).
        down: (rank, in * kernel).
        alpha: Alpha; the rank itself where the pair needs no scale.
        bias: Change of the bias (out,), scaled like the pair; or None.
        lengths: A DoRA's magnitude over the pair, one length for each output or input; or None.
        by_output: Whether the lengths are those of outputs.
        vector: Instead of a pair, the change of a weight of one axis, such as a norm's; or None.
        leaves: Instead of a pair, tensors under leaf names that only Kohya's layout has; empty otherwise.
        error: What a lower rank left out, as a share of the norm of the layer's change.
        note: A remark for the report, or nothing.
    """

    place: ModulePlace
    up: torch.Tensor | None = None
    down: torch.Tensor | None = None
    alpha: float = 0.0
    bias: torch.Tensor | None = None
    lengths: torch.Tensor | None = None
    by_output: bool = True
    vector: torch.Tensor | None = None
    leaves: Mapping[str, torch.Tensor] = field(default_factory=dict)
    error: float = 0.0
    note: str = ""

    @property
    def rank(self) -> int:
        """The rank of the pair; 0 where there is none."""
        return 0 if self.up is None else self.up.shape[1]

    @property
    def pair(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The pair, for layers that have one."""
        if self.up is None or self.down is None:
            raise TypeError(f"{self.place} has no pair")
        return self.up, self.down
