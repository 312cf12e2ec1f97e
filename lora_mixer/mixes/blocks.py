"""
Weights in depth, as diffusers nests them: ``{"down": 0.5, "mid": 1, "up": {"block_0": [0.1, 0.5, 0.9]}}``.

On the transformers of a UNet the weights are those of diffusers' ``set_adapters``. The other layers follow the rule
that a block's weight reaches all of the block (diffusers leaves middle resnets, samplers and blocks without
transformers at 1):

- a number reaches every layer of the blocks that it is written for;
- of a list, entry i reaches transformer i and resnet i; a sampler, which comes last in its block, takes the last entry;
- what is not written has 1; so has what is in no block (``conv_in``, ``conv_out``, embeddings), unless ``other`` says
  more.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_mixer.components import TEXT_ENCODERS
from lora_mixer.mixes.reading import Reading
from lora_mixer.mixes.unet_blocks import BlockLayout, BlockPosition, BlockShape, block_position
from lora_mixer.parsing.frozen import FrozenMap
from lora_mixer.wording import list_of, shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

TREE_KEYS = ("down", "mid", "up", "other")

Weights = float | tuple[float, ...]


class Blocks(ABC):
    """
    Weights by the place of a layer; they multiply the component's weight.

    Example:
        >>> from lora_mixer import Mix
        >>> from lora_mixer.mixes import BlockLayout
        >>> blocks = Mix.of({"ink": {"blocks": {"down": 0.5}}})["ink"].blocks
        >>> layout = BlockLayout.from_module_names(["down_blocks.0.resnets.0.conv1", "mid_block.resnets.0.conv1"])
        >>> blocks.weight("unet", "down_blocks.0.resnets.0.conv1", layout), blocks.weight("unet", "mid_block.resnets.0.conv1", layout)
        (0.5, 1.0)
        >>> list(blocks.misfits(layout)), list(blocks.unmatched([])), blocks.require_fit(layout), blocks.to_spec()
        ([], [], None, {'down': 0.5})
        >>> isinstance(blocks.meaning(), dict | list | tuple)
        True
    """

    @abstractmethod
    def weight(self, component: str, module: str, layout: BlockLayout | None = None) -> float:
        """
        Return the weight of one layer.

        Args:
            component: The attribute of the pipeline, as ``unet``.
            module: The layer's dotted path in the live component.
            layout: The blocks of the live component; with it, lists are checked.

        Returns:
            The weight.

        Raises:
            MixError: The weights do not fit the layout.
        """

    @abstractmethod
    def misfits(self, layout: BlockLayout) -> tuple[str, ...]:
        """
        Tell what does not fit a live model.

        Args:
            layout: The blocks of the model.

        Returns:
            One sentence for each problem.
        """

    def unmatched(self, layers: Iterable[tuple[str, str]]) -> tuple[str, ...]:
        """
        Return what names layers by patterns, and matches none of these.

        Args:
            layers: Component and dotted path of each.
        """
        del layers
        return ()

    def require_fit(self, layout: BlockLayout) -> None:
        """
        Check the weights against a live denoiser; other models have no blocks to check, and a ControlNet the half of them.

        Args:
            layout: The blocks of the model.

        Raises:
            MixError: The weights do not fit; the message has all reasons.
        """
        # Asked for each layer, answered once for each layout.
        if self.__dict__.get("_fits") is layout:
            return
        reading = Reading()
        half = bool(layout.down) and not layout.up
        known = layout.is_unet or layout.double or layout.single
        for problem in self.misfits(layout) if known and not half else ():
            reading.problem("", problem)
        reading.finish("set of block weights")
        object.__setattr__(self, "_fits", layout)

    @abstractmethod
    def to_spec(self) -> object:
        """
        Return the plain form.

        Returns:
            Numbers, texts, lists and dicts only, which ``read_blocks`` reads back.
        """

    def meaning(self) -> object:
        """
        Return a plain form that is the same for every way to say the same.

        Returns:
            Numbers, texts, lists and dicts only.
        """
        return self.to_spec()


@dataclass(frozen=True)
class BlockTree(Blocks):
    """
    diffusers' nested weights.

    Attributes:
        down: A number, a list with one number for each transformer of a block, or these by block index.
        mid: A number, or a list of one.
        up: As ``down``.
        other: The weight of the layers outside the blocks.

    Example:
        >>> tree = BlockTree(down=0.5, up={0: (0.1, 0.5, 0.9)})
        >>> [tree.weight("unet", f"up_blocks.0.{part}") for part in ("attentions.1.proj_in", "upsamplers.0.conv")]
        [0.5, 0.9]
    """

    down: Weights | Mapping[int, Weights] = 1.0
    mid: Weights = 1.0
    up: Weights | Mapping[int, Weights] = 1.0
    other: float = 1.0

    def __post_init__(self) -> None:
        """Check and freeze the values."""
        reading = Reading()
        for side in ("down", "up"):
            object.__setattr__(self, side, _read_side(getattr(self, side), side, reading))
        object.__setattr__(self, "mid", _read_weights(self.mid, "mid", reading))
        if isinstance(self.mid, tuple) and len(self.mid) != 1:
            reading.problem("mid", f"expected a number or a list of 1, got a list of {len(self.mid)}.")
        object.__setattr__(self, "other", reading.number("other", self.other))
        reading.finish("set of block weights")

    def weight(self, component: str, module: str, layout: BlockLayout | None = None) -> float:
        """Return the weight of one layer; text encoders have 1."""
        if component in TEXT_ENCODERS:
            return 1.0
        if layout is not None:
            self.require_fit(layout)
        place = block_position(module)
        return self.other if place is None else _pick(self._of_block(place), place)

    def _of_block(self, place: BlockPosition) -> Weights:
        side: Weights | Mapping[int, Weights] = getattr(self, place.side)
        return side.get(place.block, 1.0) if isinstance(side, Mapping) else side

    def misfits(self, layout: BlockLayout) -> tuple[str, ...]:
        """Tell lists of other lengths than the blocks have, and blocks that are not there."""
        if not layout.is_unet:
            return (
                f"{list_of(TREE_KEYS[:3])} are blocks of a UNet, and this model has none; use layer patterns.",
            )
        return (*_misfits("down", self.down, layout.down), *_misfits("up", self.up, layout.up))

    def to_spec(self) -> dict[str, object]:
        """Return diffusers' dict."""
        sides = {"down": _side_spec(self.down), "mid": _weights_spec(self.mid), "up": _side_spec(self.up)}
        return {key: value for key, value in {**sides, "other": self.other}.items() if value not in (1.0, {})}

    def meaning(self) -> object:
        """Return the dict with lists of one as numbers and without ones."""
        return BlockTree(_single(self.down), _single(self.mid), _single(self.up), self.other).to_spec()  # type: ignore[arg-type]


def read_tree(spec: Mapping[object, object], where: str, reading: Reading) -> BlockTree | None:
    """
    Read diffusers' nested dict.

    Example:
        >>> read_tree({"down": 0.5, "up": {"block_1": [1, 0, 1]}}, "a.unet", Reading()).up
        {1: (1.0, 0.0, 1.0)}
    """
    before = len(reading.problems)
    for key in spec:
        if key not in TREE_KEYS:
            reading.unknown_key(where, key, TREE_KEYS, 'Layer patterns go under "patterns".')
    sides: dict[str, object] = {}
    for side in ("down", "up"):
        sides[side] = _read_side(
            _by_index(spec.get(side, 1.0), f"{where}.{side}", reading), f"{where}.{side}", reading
        )
    sides["mid"] = _read_weights(spec.get("mid", 1.0), f"{where}.mid", reading)
    if isinstance(mid := sides["mid"], tuple) and len(mid) != 1:
        reading.problem(f"{where}.mid", f"expected a number or a list of 1, got a list of {len(mid)}.")
    sides["other"] = reading.number(f"{where}.other", spec.get("other", 1.0))
    return BlockTree(**sides) if len(reading.problems) == before else None  # type: ignore[arg-type]


def _by_index(spec: object, where: str, reading: Reading) -> object:
    if not isinstance(spec, Mapping):
        return spec
    weights: dict[int, object] = {}
    for key, value in spec.items():
        digits = key.removeprefix("block_") if isinstance(key, str) else ""
        if digits.isdecimal() and f"block_{int(digits)}" == key:
            weights[int(digits)] = value
        else:
            reading.problem(where, f'expected keys such as "block_0", got {shown(key)}.')
    return weights


def _read_side(spec: object, where: str, reading: Reading) -> Weights | FrozenMap[int, Weights]:
    if not isinstance(spec, Mapping):
        return _read_weights(spec, where, reading)
    for key in spec:
        if not isinstance(key, int) or isinstance(key, bool) or key < 0:
            reading.problem(where, f"expected the index of a block, got {shown(key)}.")
    weights = FrozenMap(
        {key: _read_weights(value, f"{where}.block_{key}", reading) for key, value in spec.items()}
    )
    return weights or 1.0


def _read_weights(spec: object, where: str, reading: Reading) -> Weights:
    if not isinstance(spec, (list, tuple)):
        return reading.number(where, spec)
    if not spec:
        reading.problem(where, "expected a number or a list of numbers, got an empty list.")
    return tuple(reading.number(f"{where}[{index}]", value) for index, value in enumerate(spec))


def _pick(weights: Weights, place: BlockPosition) -> float:
    if not isinstance(weights, tuple):
        return weights
    if len(weights) == 1:
        return weights[0]
    if place.kind == "attentions" and place.index >= len(weights):
        reading = Reading()
        reading.problem(
            f"{place.side}.block_{place.block}",
            f"expected at least {place.index + 1} weights, one for each transformer, got {len(weights)}.",
        )
        reading.finish("set of block weights")
    return weights[-1 if place.kind.endswith("samplers") else min(place.index, len(weights) - 1)]


def _misfits(side: str, given: Weights | Mapping[int, Weights], shapes: Sequence[BlockShape]) -> list[str]:
    by_block = given if isinstance(given, Mapping) else dict.fromkeys(range(len(shapes)), given)
    problems: list[str] = []
    for block, weights in by_block.items():
        where = f"{side}.block_{block}"
        if block >= len(shapes):
            there = f"block_0 to block_{len(shapes) - 1}" if shapes else "none"
            problems.append(f"{where}: this UNet has no such block; it has {there}.")
        elif isinstance(weights, tuple) and len(weights) not in {1, shapes[block].slots}:
            kind = "transformer" if shapes[block].attentions else "resnet"
            problems.append(
                f"{where}: expected {shapes[block].slots} weights, one for each {kind}, or 1, got {len(weights)}."
            )
    return problems


def _weights_spec(weights: Weights) -> object:
    return list(weights) if isinstance(weights, tuple) else weights


def _side_spec(side: Weights | Mapping[int, Weights]) -> object:
    if not isinstance(side, Mapping):
        return _weights_spec(side)
    return {f"block_{block}": _weights_spec(weights) for block, weights in side.items()}


def _single(weights: object) -> object:
    if isinstance(weights, Mapping):
        singles = {block: _single(of_block) for block, of_block in sorted(weights.items())}
        return {block: of_block for block, of_block in singles.items() if of_block != 1.0}
    return weights[0] if isinstance(weights, tuple) and len(weights) == 1 else weights
